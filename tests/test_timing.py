"""Time: known times found again by a clock of our own, and by the real one where a layer sleeps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from torch import Tensor, nn

from autodiffusion import InputError, Model, NoiseSchedule, Plan, Step
from autodiffusion._evaluation import timing
from autodiffusion._evaluation.timing import LEAST, MOST, Clock, layer_times, plan_times
from autodiffusion._sampling.sampling import stretches
from autodiffusion.layers import _base, register

SHAPE = (1, 4, 4)


class Ticks:
    """A clock that moves by what it is told alone: milliseconds, ``speed`` times as many on a busy machine."""

    def __init__(self) -> None:
        self.ms = 0.0
        self.speed = 1.0

    def pass_(self, ms: float) -> None:
        self.ms += ms * self.speed

    def __call__(self) -> float:
        return self.ms / 1000


class Slow(nn.Module):
    """Takes ``own`` milliseconds for its branch and ``shortcut`` for what is done without it too."""

    def __init__(self, spend: Callable[[float], object], own: float, shortcut: float = 0.0) -> None:
        super().__init__()
        self.spend, self.own, self.shortcut = spend, own, shortcut

    def forward(self, x: Tensor) -> Tensor:
        self.spend(self.own + self.shortcut)
        return 0.9 * x


def bypass(module: Any, x: Tensor) -> Tensor:
    module.spend(module.shortcut)
    return x


class Chain(nn.Module):
    """Layers one after the other, the last one ``again`` or not, and ``rest`` milliseconds besides."""

    def __init__(
        self, spend: Callable[[float], object], layers: list[tuple[float, ...]], rest: float, again: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Slow(spend, *times) for times in layers)
        self.spend, self.rest, self.again = spend, rest, again

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.spend(self.rest)
        for layer in (*self.layers, *[self.layers[-1]] * self.again):
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "_registered", {})
    register(Slow, "slow", bypass)


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """The clock that the measurements look at."""
    clock = Ticks()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def model(network: nn.Module) -> Model:
    return Model(network, NoiseSchedule.linear(100), SHAPE, name="slow")


def leaving(*skips: set[int]) -> Plan:
    times = range(90, 0, -10)
    return Plan(
        solver="ddim", steps=tuple(Step(t=t, skip=frozenset(skip)) for t, skip in zip(times, skips, strict=False))
    )


def test_what_each_layer_saves_is_found_for_one_sample_of_the_batch(ticks: Ticks) -> None:
    costs = layer_times(model(Chain(ticks.pass_, [(3.0, 0.5), (0.0, 2.0), (4.0,)], rest=8.0)), batch_size=4)
    # 8 + 3.5 + 2 + 2 * 4 for the batch
    assert (costs.unit, costs.whole) == ("ms", pytest.approx(21.5 / 4))
    assert costs.saved == pytest.approx((3 / 4, 0, 8 / 4))


def test_a_machine_that_is_busy_now_and_then_changes_no_share(ticks: Ticks) -> None:
    chain = Chain(ticks.pass_, [(3.0,), (1.0, 1.0), (4.0,)], rest=7.0)
    speeds: Iterator[float] = iter([5.0, 1.0, 3.0, 1.0, 1.0, 2.0] * 100)

    class Busy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain

        def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            ticks.speed = next(speeds)
            output: Tensor = self.chain(x, t, label)
            return output

    costs = layer_times(model(Busy()), batch_size=1)
    # all of a pass is slowed down alike: shares are exact whatever its speed
    assert [saved / costs.whole for saved in costs.saved] == pytest.approx([3 / 20, 1 / 20, 8 / 20])


def test_a_bypass_dearer_than_its_block_saves_nothing(ticks: Ticks) -> None:
    costs = layer_times(model(Chain(ticks.pass_, [(-1.0, 2.0), (3.0,)], rest=1.0)), batch_size=1)
    assert costs.saved == pytest.approx((0, 6))


@pytest.mark.parametrize("seed", range(30))
def test_layers_that_are_the_whole_network_save_no_more_than_it_takes(ticks: Ticks, seed: int) -> None:
    layers = [(float(ms),) for ms in np.random.default_rng(seed).uniform(0.1, 9, 6)]
    costs = layer_times(model(Chain(ticks.pass_, layers, rest=0.0)), batch_size=3, seconds=0)
    assert sum(costs.saved) == pytest.approx(costs.whole)
    assert math.fsum(costs.saved) <= costs.whole


@pytest.mark.parametrize("chance", [0.1, 0.8])
def test_interruptions_of_a_pass_change_no_share(ticks: Ticks, chance: float) -> None:
    # another program gets 20 milliseconds now and then, which fall into small parts seldom and into large ones often
    rng = np.random.default_rng(0)

    def spend(ms: float) -> None:
        ticks.pass_(ms + 20 * bool(rng.random() < chance * ms / 8))

    costs = layer_times(model(Chain(spend, [(0.5,), (2.0,), (3.0,)], rest=8.0, again=False)), batch_size=1)
    assert [saved / costs.whole for saved in costs.saved] == pytest.approx([0.5 / 13.5, 2 / 13.5, 3 / 13.5])
    assert costs.whole > 13.49


def test_a_network_without_known_layers_has_its_time_alone(ticks: Ticks) -> None:
    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        ticks.pass_(6)
        return x

    costs = layer_times(Model(network, NoiseSchedule.linear(100), SHAPE), batch_size=2)
    assert (costs.whole, costs.saved) == (pytest.approx(3), ())


def test_nothing_remains_of_a_measurement(ticks: Ticks) -> None:
    slow = model(Chain(ticks.pass_, [(1.0,), (1.0,)], rest=1.0))
    assert isinstance(slow.network, nn.Module)
    layer_times(slow, batch_size=1)
    plan_times(slow, [leaving({0}, {1})], batch_size=1)
    for module in slow.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert type(module) in (Chain, Slow, nn.ModuleList)


@pytest.mark.parametrize(("pass_ms", "passes"), [(1.0, 2 * (MOST + 1)), (900.0, 2 * (LEAST + 1)), (60_000.0, 4)])
def test_a_measurement_ends(ticks: Ticks, pass_ms: float, passes: int) -> None:
    seen: list[float] = []

    def spend(ms: float) -> None:
        seen.append(ms)
        ticks.pass_(ms)

    layer_times(model(Chain(spend, [(0.0,)], rest=pass_ms)), batch_size=1, seconds=5)
    # finding the layers takes one more
    assert sum(ms == pass_ms for ms in seen) == passes + 1


def test_plans_take_the_time_of_what_they_keep(ticks: Ticks) -> None:
    slow = model(Chain(ticks.pass_, [(3.0, 0.5), (1.0,), (2.0,)], rest=2.5))  # 11 milliseconds
    plans = [leaving({0}, {1, 2}, set()), leaving(set(), set()), leaving({0}, {1, 2}, set())]
    before = ticks.ms
    found = plan_times(slow, plans, batch_size=5, most=7)
    assert found[0] == found[2]
    assert (found[0].ms, found[0].ms_whole) == (pytest.approx((8 + 6 + 11) / 5), pytest.approx(33 / 5))
    assert found[0].low == pytest.approx(found[0].high)
    assert found[0].ratio == pytest.approx(25 / 33)
    assert (found[1].ms, found[1].ratio) == (pytest.approx(22 / 5), 1)
    # each plan that differs runs once a round, and the layers are found in one more pass, with their bypasses
    assert ticks.ms - before == pytest.approx(8 * (25 + 33 + 22) + 11 + 0.5)


def test_measured_layers_add_up_to_a_plan(ticks: Ticks) -> None:
    slow = model(Chain(ticks.pass_, [(3.0, 0.5), (1.0,), (2.0,)], rest=2.5))
    plan = leaving({0, 1}, {2}, set())
    asked = [len(stretch.move.ask) for stretch in stretches(plan, slow)]
    [found] = plan_times(slow, [plan], batch_size=2)
    assert layer_times(slow, batch_size=2).of(plan, asked) == pytest.approx(found.ms)


def test_a_layer_that_sleeps_is_missed_by_the_real_clock() -> None:
    slow = model(Chain(lambda ms: time.sleep(ms / 1000), [(4.0,), (6.0,)], rest=4.0))  # 20 milliseconds
    [found] = plan_times(slow, [leaving({1}, {1})], batch_size=2, seconds=0.5)
    # what is beside the sleep makes it no more than 1, and sleeping takes what it takes on a busy machine too
    assert 0.3 < found.ratio < 0.8
    assert found.ms_whole >= 20
    costs = layer_times(slow, batch_size=2, seconds=0.5)
    assert costs.saved[1] > costs.saved[0] > 0


def test_a_classifier_is_in_the_whole() -> None:
    def slow(x: Tensor, t: Tensor) -> Tensor:
        time.sleep(0.02)
        return x.flatten(1)[:, :3]

    made = Model(lambda x, t, label: x, NoiseSchedule.linear(10), (1, 4, 4), classes=3, classifier=slow)
    guided = layer_times(made, 1, seconds=0.1).whole
    assert 20 < guided < 200
    alone = layer_times(replace(made, guidance_scale=0.0), 1, seconds=0.1).whole
    assert alone < 10


def test_the_whole_of_a_plan_differs_in_its_layers_alone() -> None:
    plan = leaving({0, 2}, set(), {1})
    assert plan.leaving() == Plan.of("ddim", plan.times)
    assert plan.steps[0].skip == {0, 2}


def test_layers_that_do_not_exist_are_refused(ticks: Ticks) -> None:
    with pytest.raises(InputError, match="layer 7 does not exist; slow has layers 0 to 1"):
        plan_times(model(Chain(ticks.pass_, [(1.0,), (1.0,)], rest=1.0)), [leaving({7})], batch_size=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_events_tell_the_time_of_a_gpu() -> None:
    clock = Clock(torch.device("cuda"))
    x = torch.randn(2048, 2048, device="cuda")

    def spent(times: int) -> float:
        start = clock.mark()
        for _ in range(times):
            x @ x
        end = clock.mark()
        clock.wait()
        return clock.between(start, end)

    spent(10)
    assert 4 < spent(1000) / spent(100) < 25


Evaluate = Callable[[str], str]


@pytest.fixture
def evaluate(command: Command, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """What ``evaluate`` prints of plan.json, which leaves out layers of the bundled model, or of ``uniform:2``."""
    monkeypatch.setattr(timing, "plan_times", partial(plan_times, most=LEAST))
    Plan(solver="ddim", steps=(Step(t=900, skip=frozenset({0, 13})), Step(t=400))).save("plan.json")

    def run(line: str) -> str:
        done = command(f"evaluate {line} --model mnist --samples 24 --batch-size 4")
        assert done.status == 0
        return done.out

    return run


def test_evaluate_tells_what_layers_left_out_save(evaluate: Evaluate) -> None:
    cost = json.loads(evaluate("plan.json --json"))["cost"]
    assert list(cost) == ["layers", "macs", "ms", "ms_whole"]
    # `autodiffusion layers mnist`: 15 layers, 19,047,424 MACs, of which layers 0 and 13 have these
    assert (cost["layers"], cost["macs"]) == (28, 2 * 19_047_424 - 1_180_672 - 2_360_320)
    assert 0 < cost["ms"] < 1000
    assert 0 < cost["ms_whole"] < 1000
    shown = " ".join(evaluate("plan.json").split())
    assert "28 of 30 layers (93.3 %), 34,553,856 of 38,094,848 MACs (90.7 %), " in shown
    assert " ms (" in shown


def test_evaluate_measures_time_only_where_it_is_wanted(evaluate: Evaluate) -> None:
    untimed = json.loads(evaluate("plan.json --json --no-time"))["cost"]
    assert (untimed["layers"], untimed["ms"], untimed["ms_whole"]) == (28, None, None)
    assert list(json.loads(evaluate("uniform:2 --json"))) == ["plan", "samples", "seed", "nfe", "scores"]
    assert "layers" not in evaluate("uniform:2")
    whole_network = json.loads(evaluate("uniform:2 --json --time"))["cost"]
    assert (whole_network["layers"], whole_network["macs"]) == (30, 2 * 19_047_424)
    assert whole_network["ms"] == whole_network["ms_whole"] > 0
