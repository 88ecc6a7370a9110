"""What solvers leave open for a step: the general linear solver, springboards, and how plans hold the numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from rooms import DETERMINISTIC
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._names import known, resolve
from autodiffusion._plans.free import FreeNumber
from autodiffusion._plans.plan import Plan, Step
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.solvers._base import build, solve

SCHEDULE = NoiseSchedule.scaled_linear()
TIMES = [930.0, 700, 480, 300, 120]


def wavy(x: Tensor, t: float) -> Tensor:
    """A network that mixes the entries of a sample and depends on the time."""
    mixed = x @ torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.1, -0.4], [0.2, 0.2, 0.3]], dtype=x.dtype)
    return torch.tanh(x + mixed + 0.4 * math.cos(t / 250))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LINEAR: list[tuple[str, int]] = [
    *((name, 0) for name in DETERMINISTIC if name != "gls"),
    *((name, order) for name in ("dpm_solver", "dpm_solver++", "unipc", "deis", "ipndm") for order in (1, 2, 3)),
]


def test_which_solvers_draw_noise() -> None:
    assert {"lcm", "euler_ancestral"} <= set(known("solvers")) - set(DETERMINISTIC)
    assert {"ddim", "plms", "unipc"} <= set(DETERMINISTIC)


@pytest.mark.parametrize(("plain", "order"), LINEAR)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("end", [None, 0.0])
def test_zero_is_the_plain_solver(plain: str, order: int, clip: bool, end: float | None) -> None:
    x, options = normal(2, 3), {"order": order} if order else {}
    for times in (TIMES, [999.0, 998, 3, 2], [640.0]):
        expected = solve(build(plain, SCHEDULE, options | {"clip": clip}), wavy, x, times, end)
        asked: list[tuple[float, Tensor]] = []

        def network(x: Tensor, t: float, asked: list[tuple[float, Tensor]] = asked) -> Tensor:
            asked.append((t, x))
            return wavy(x, t)

        gls = build("gls", SCHEDULE, {"plain": plain, "order": order, "clip": clip})
        got = solve(gls, network, x, times, end)
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-6
        assert [t for t, _ in asked] == [t for move in gls.moves(times, end) for t in move.ask]


def test_the_offsets_are_those_of_the_equations() -> None:
    """x0, extrapolation and noise written out step by step, with clipping, beside the plan's numbers."""
    params = [{"noise": 2.4}, {"data1": 1.05, "noise": 1.22}, {"data1": 1.12, "noise": 3.0}, {"data1": 0.43}]
    times, z = [930, 700, 480, 300], normal(4, 3)
    x, before = z, None
    for i, (t, stop, given) in enumerate(zip(times, [*times[1:], None], params, strict=True)):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        x0 = ((x - sigma * wavy(x, t)) / alpha).clamp(-1, 1)
        epsilon = (x - alpha * x0) / sigma
        data = x0 if before is None else x0 + given["data1"] * (x0 - before)
        share = given.get("noise", 0.0)
        x = SCHEDULE.alpha(stop) * data + SCHEDULE.sigma(stop) * ((1 - share) * epsilon + share * z)
        before = x0
        assert i < 4
    got = solve(build("gls", SCHEDULE, {"clip": True}), wavy, z, times, params=params)
    assert torch.allclose(got, x, rtol=1e-10, atol=1e-12)


def test_older_predictions_and_scale() -> None:
    times, z = [930, 700, 480], normal(2, 3)
    gls = build("gls", SCHEDULE, {"memory": 2, "scale": True})
    said: list[Tensor] = []

    def network(x: Tensor, t: float) -> Tensor:
        epsilon = wavy(x, t)
        said.append((x - SCHEDULE.sigma(t) * epsilon) / SCHEDULE.alpha(t))
        return epsilon

    plain = solve(gls, network, z, times)
    last = {"data1": 0.5, "data2": -0.25, "scale": 0.1}
    got = solve(gls, wavy, z, times, params=[{}, {}, last])
    change = 0.5 * (said[2] - said[1]) - 0.25 * (said[2] - said[0]) + 0.1 * said[2]
    assert torch.allclose(got, plain + change, rtol=1e-10)


@pytest.mark.parametrize("plain", ["ddim", "heun", "dpm_solver++", "unipc"])
def test_later_steps_go_on_from_where_an_offset_led(plain: str) -> None:
    """With a network that always says the same clean data, the noise stays as it is after the step that changes it."""
    z, said = normal(2, 3), normal(2, 3, seed=1)

    def network(x: Tensor, t: float) -> Tensor:
        return (x - SCHEDULE.alpha(t) * said) / SCHEDULE.sigma(t)

    params: list[dict[str, float]] = [{"noise": 0.7}, *({} for _ in TIMES[1:])]
    got = solve(build("gls", SCHEDULE, {"plain": plain}), network, z, TIMES, 20, params=params)
    epsilon = 0.3 * network(z, TIMES[0]) + 0.7 * z
    assert torch.allclose(got, SCHEDULE.alpha(20) * said + SCHEDULE.sigma(20) * epsilon, rtol=1e-9)


def test_dpm_solver_of_order_2_is_ddim_with_extrapolation() -> None:
    """Lu et al. 2022b, algorithm 2: the data is carried on by half the ratio of the widths in log-SNR."""
    x, times = normal(2, 3), [930.0, 700, 480, 300]
    second = build("dpm_solver++", SCHEDULE, {"order": 2, "lower_order_final": False})
    widths = [SCHEDULE.log_snr(b) - SCHEDULE.log_snr(a) for a, b in zip(times, [*times[1:], 0.0], strict=True)]
    params = [{}] + [{"data1": (1 - math.exp(-width)) * width / (2 * before)} for before, width in pairwise(widths)]
    got = solve(build("gls", SCHEDULE), wavy, x, times, 0, params=params)
    # 1 - exp(-h) is what DDIM gives the data beyond carrying x on; the rest of the extrapolation is that of order 2
    expected = solve(second, wavy, x, times, 0)
    assert torch.allclose(got, expected, rtol=1e-9)


# springboards


def test_pfdiff_is_the_equations() -> None:
    times, z = [930, 700, 480], normal(2, 3)

    def ddim(x: Tensor, epsilon: Tensor, t: float, stop: float | None) -> Tensor:
        x0 = (x - SCHEDULE.sigma(t) * epsilon) / SCHEDULE.alpha(t)
        return SCHEDULE.alpha(stop) * x0 + SCHEDULE.sigma(stop) * epsilon

    said = wavy(z, 930)
    x = ddim(z, said, 930, 700)
    said = wavy(ddim(x, said, 700, 590), 590)
    x = ddim(x, said, 700, 480)
    said = wavy(ddim(x, said, 480, 240), 240)
    x = ddim(x, said, 480, None)
    assert torch.allclose(solve(build("pfdiff", SCHEDULE), wavy, z, times), x, rtol=1e-12)


def test_pfdiff_asked_at_the_start_is_ddim() -> None:
    x = normal(2, 3)
    for clip in (False, True):
        expected = solve(build("ddim", SCHEDULE, {"clip": clip}), wavy, x, TIMES)
        got = solve(build("pfdiff", SCHEDULE, {"ask": 0.0, "clip": clip}), wavy, x, TIMES)
        assert torch.allclose(got, expected, rtol=1e-9)


def test_where_pfdiff_asks() -> None:
    pfdiff = build("pfdiff", SCHEDULE, {"ask": 0.0})
    path = pfdiff.path([936, 934, 932, 444], params=[{}, {"ask": 0.2}, {"ask": 1.0}, {"ask": -0.5}])
    assert [move.ask for move in path] == [(936,), (747,), (0,), (444,)]
    half = build("pfdiff", SCHEDULE)
    assert [move.ask for move in half.moves([900, 700, 400], 100)] == [(900,), (550,), (250,)]


def test_gls_on_pfdiff_has_the_springboards_too() -> None:
    x = normal(2, 3)
    gls, pfdiff = build("gls", SCHEDULE, {"plain": "pfdiff"}), build("pfdiff", SCHEDULE)
    names = [[number.name for number in numbers] for numbers in gls.free(3)]
    assert names == [["noise"], ["ask", "data1", "noise"], ["ask", "data1"]]
    params: list[dict[str, float]] = [{}, {"ask": 0.2}, {"ask": -0.1}]
    assert [m.ask for m in gls.path([900, 600, 300], None, params)] == [(900,), (330,), (180,)]
    expected = solve(pfdiff, wavy, x, [900, 600, 300], params=params)
    assert torch.allclose(solve(gls, wavy, x, [900, 600, 300], params=params), expected, rtol=1e-9)
    params[0] = {"noise": 1.0}
    assert not torch.allclose(solve(gls, wavy, x, [900, 600, 300], params=params), expected, rtol=1e-3)


# each step's own


def test_each_step_has_its_own_eta() -> None:
    x, draws = normal(2, 3), [normal(2, 3, seed=1 + i) for i in range(5)]
    params = [{"eta": 1.0}, {}, {"eta": 0.3}, {}, {}]
    got = solve(build("ddim", SCHEDULE), wavy, x, TIMES, 0, draws.__getitem__, params)
    for i, (t, stop, given) in enumerate(zip(TIMES, [*TIMES[1:], 0.0], params, strict=True)):
        one = build("ddim", SCHEDULE, dict(given))
        x = solve(one, wavy, x, [t], stop, lambda _, i=i: draws[i])
    assert torch.allclose(got, x, rtol=1e-12)


@pytest.mark.parametrize("name", known("solvers"))
def test_saying_what_is_plain_changes_nothing(name: str) -> None:
    solver = build(name, SCHEDULE)
    for end in (None, 0.0):
        free = solver.free(5, end is None)
        assert len(free) == 5
        said = [{number.name: number.plain for number in numbers} for numbers in free]
        assert solver.path(TIMES, end, said) == solver.path(TIMES, end) == solver.moves(TIMES, end)
        assert all(number.low <= number.plain <= number.high for numbers in free for number in numbers)
        assert all(number.low < number.high for numbers in free for number in numbers)


@pytest.mark.parametrize("name", [name for name in known("solvers") if resolve("solvers", name).searched])
@pytest.mark.parametrize("end", [None, 0.0])
def test_every_free_number_matters(name: str, end: float | None) -> None:
    solver, x = build(name, SCHEDULE, {}), normal(2, 3)
    plain = solve(solver, wavy, x, TIMES, end)
    for i, numbers in enumerate(solver.free(5, end is None)):
        for number in numbers:
            params: list[dict[str, float]] = [{} for _ in TIMES]
            params[i] = {number.name: number.high}
            assert float((solve(solver, wavy, x, TIMES, end, params=params) - plain).abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("low", "high", "plain"), [(1, 0, 0.5), (0, 1, 2), (1, 1, 1), (math.nan, 1, 0), (0, math.inf, 0)]
)
def test_impossible_free_numbers(low: float, high: float, plain: float) -> None:
    with pytest.raises(
        InputError, match=r"free number 'carry': .*; give rising finite bounds and a plain value within"
    ):
        FreeNumber("carry", low, high, plain)


# in plans


def test_plans_hold_the_numbers() -> None:
    plan = Plan.of("gls", [900, 400]).tuned([{}, {"noise": 1.5, "data1": -0.25}])
    assert plan.steps[1] == Step(t=400, params={"data1": -0.25, "noise": 1.5})
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert '"params": {\n        "data1": -0.25' in plan.to_json()
    assert plan != Plan.of("gls", [900, 400]) == plan.tuned([{}, {}])


def test_steps_are_told_apart_by_their_numbers() -> None:
    one, other = Step(t=9, params={"data1": 1.0, "noise": 2.0}), Step(t=9, params={"noise": 2.0, "data1": 1.0})
    assert {one, other, Step(t=9), Step(t=9, params={"noise": 2.0})} == {
        one,
        Step(t=9),
        Step(t=9, params={"noise": 2.0}),
    }
    assert len({one, other, Step(t=9)}) == 2


def test_plans_from_before_there_were_numbers_keep_their_hashes() -> None:
    plan = Plan.of("ddim", [900, 400], solver_options={"clip": True})
    assert "params" not in plan.to_json()
    assert plan.digest == "fe2ccf1d64836df731fa59c561c42bce143128c0421e4cb5f9fc3401f5617ee5"


@pytest.mark.parametrize(
    ("name", "options", "params", "message"),
    [
        ("gls", {}, [{}, {"data2": 1.0}], r"steps\[1\].params: 'data2' is unknown .did you mean 'data1'"),
        ("gls", {}, [{"noise": 9.0}, {}], r"steps\[0\].params.noise = 9.0 lies outside -2 to 8"),
        ("gls", {}, [{"noise": math.nan}, {}], r"steps\[0\].params.noise = nan lies outside"),
        ("plms", {}, [{"eta": 0.5}, {}], r"steps\[0\].params: 'eta' is unknown; the solver leaves nothing open"),
        ("pfdiff", {}, [{"ask": 0.5}, {}], r"steps\[0\].params: 'ask' is unknown; the solver leaves nothing open"),
        ("gls", {"plain": "gls"}, [{}, {}], "plain = gls is such a solver itself"),
        ("gls", {"plain": "dmd"}, [{}, {}], "solver 'dmd' is unknown"),
        ("gls", {"plain": "ddim", "order": 2}, [{}, {}], "option 'order' is unknown"),
        ("gls", {"plain": "lcm"}, [{}, {}], "plain = lcm draws noise; give a deterministic solver"),
        ("gls", {"memory": -1}, [{}, {}], "memory = -1 must not be negative"),
        ("gls", {"order": -1}, [{}, {}], "order = -1 must not be negative"),
        ("pfdiff", {"ask": 1.5}, [{}, {}], "ask = 1.5 lies outside 0 to 1"),
    ],
)
def test_bad_numbers(name: str, options: dict[str, Any], params: list[dict[str, float]], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        solve(build(name, SCHEDULE, options), wavy, normal(2, 3), [900, 400], params=params)
    assert "\n" not in str(caught.value)
