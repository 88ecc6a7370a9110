"""Tasks on blocks of noise: workers that take over, and memory that runs out, change neither features nor costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import small
import torch
from torch import Tensor, nn

from autodiffusion import Evaluator, Plan, RunError
from autodiffusion._evaluation.pool import Pool
from autodiffusion._sampling.blocks import Done, Sampler, Task
from autodiffusion._sampling.errands import Here
from autodiffusion._sampling.sampling import Tick
from autodiffusion.features import Extractor, Features
from autodiffusion.features._base import load as load_features

COUNTS = (8, 20, 50)


def sampler() -> Sampler:
    return Sampler(small.model(), load_features("small:features"))


@dataclass
class Relay:
    """Workers who take tasks in any order, and at random from each other, as if others died or were too slow."""

    seed: int
    change: float
    samplers: list[Sampler] = field(default_factory=lambda: [sampler() for _ in range(3)])
    owners: dict[tuple[str, int], int] = field(default_factory=dict)
    changes: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def each(self, tasks: Sequence[Task], tick: Tick | None = None) -> Iterator[tuple[int, Done]]:
        for place in self._rng.permutation(len(tasks)).tolist():
            task = tasks[place]
            key = (task.noise, task.block.start)
            owner = self.owners.get(key, 0)
            if self._rng.random() < self.change:
                owner, self.changes = int(self._rng.integers(3)), self.changes + 1
                if self._rng.random() < 0.3:
                    self.samplers[owner] = sampler()  # one that died and came back
            self.owners[key] = owner
            yield place, self.samplers[owner].run(task, tick)

    def forget(self, noise: str) -> None:
        pass


def population(seed: int, solver: str) -> list[Plan]:
    """Plans many of which begin alike."""
    rng = np.random.default_rng(seed)
    return [
        Plan.of(solver, sorted({float(t) for t in rng.choice([95, 90, 80, 60, 40, 20, 10], 4)}, reverse=True))
        for _ in range(14)
    ]


def lived(evaluator: Evaluator, seed: int, solver: str) -> list[tuple[int, int, list[Tensor]]]:
    """What a pool gives and spends, round after round, for plans that come and go."""
    rng, plans = np.random.default_rng(seed), population(seed, solver)
    pool, rounds, held = Pool(evaluator, 5, COUNTS, 2**30), [], dict[Plan, int]()
    for _ in range(8):
        some = [plans[i] for i in rng.choice(len(plans), int(rng.integers(1, 6)), replace=False)]
        count = int(rng.choice(COUNTS))
        needs = dict.fromkeys(some, count)
        if rng.random() < 0.6:  # as a race does
            held = {plan: max(count, held.get(plan, 0)) for plan in needs}
            pool.keep(held)
        else:
            held |= {plan: max(count, held.get(plan, 0)) for plan in needs}
        found = pool.grow(some, count)
        assert all(isinstance(features, Features) for features in found)
        vectors = [features.vectors for features in found if isinstance(features, Features)]
        rounds.append((evaluator.cost.evaluations, evaluator.cost.saved, vectors))
    return rounds


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++", "plms"])
@pytest.mark.parametrize("seed", range(2))
def test_workers_who_take_over_change_nothing(solver: str, seed: int) -> None:
    model, features = small.model(), load_features("small:features")
    alone = lived(Evaluator(model, features, 7), seed, solver)
    relay = Relay(seed, 0.5)
    for here, there in zip(alone, lived(Evaluator(model, features, 7, elsewhere=relay), seed, solver), strict=True):
        assert here[:2] == there[:2]
        assert all(torch.equal(one, other) for one, other in zip(here[2], there[2], strict=True))
    assert relay.changes > 5
    assert alone[-1][1] > 0  # something was shared


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++"])
@pytest.mark.parametrize("fits", [5, 2, 1])
def test_where_memory_runs_out_the_parts_become_smaller(solver: str, fits: int) -> None:
    model, features = small.model(), load_features("small:features")
    most: list[int] = []

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if len(x) > fits and len(most) > 40:  # at first there is enough: states are lost in the middle
            raise torch.OutOfMemoryError("CUDA out of memory")
        most.append(len(x))
        return model.network(x, t, label)

    enough = lived(Evaluator(model, features, 7), 1, solver)
    scarce = lived(Evaluator(replace(model, network=network), features, 7), 1, solver)
    for here, there in zip(enough, scarce, strict=True):
        assert here[:2] == there[:2]
        for one, other in zip(here[2], there[2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert max(most[41:]) <= fits < max(most)


def test_memory_that_is_too_small_for_one_sample_is_an_error() -> None:
    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    broken = Sampler(replace(small.model(), network=network), load_features("small:features"))
    with pytest.raises(torch.OutOfMemoryError):
        broken.run(Task("a", 0, range(8), (Plan.of("ddim", [50.0]),)))
    assert broken.most == 1


def bytes_of(worker: Sampler) -> int:
    """What the different tensors of all states take that are kept between tasks."""
    points = [point for kept in worker._kept.values() for _, begun in kept.parts for point in begun._points.values()]
    return sum({tensor.data_ptr(): tensor.nbytes for point in points for tensor in point.tensors}.values())


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++", "plms"])
def test_states_take_no_more_than_the_limit_and_the_noise(solver: str) -> None:
    plans, samples = population(0, solver), 8
    noise, kept = samples * small.model().noise([0], 0).nbytes, list[int]()
    for limit in (1, 6 * noise, 2**30):
        worker, late = sampler(), sampler()
        late.most = 3
        first = Task("a", 0, range(samples), tuple(plans[:5]), limit)
        second = Task("a", 0, range(samples), tuple(plans[5:]), limit, 1, since=(first.plans,))
        done = []
        for one, task in ((worker, first), (worker, second), (late, second)):
            done.append(one.run(task))
            assert bytes_of(one) <= max(limit, noise)
        assert done[1].cost == done[2].cost  # also of one that has less memory, and made them again
        kept.append(bytes_of(worker))
    assert noise == kept[0] < kept[1] < kept[2]


def test_states_make_room_before_batches_become_smaller() -> None:
    """On a device of fixed size, which the states of all blocks together do not fit into."""
    plans = [Plan.of("ddim", [90.0, 50.0, t]) for t in (40.0, 30.0, 20.0, 10.0)]
    worker, seen = sampler(), list[int]()
    whole = worker.model.network

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        seen.append(bytes_of(worker))
        if len(x) * 1000 + bytes_of(worker) > 12_000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(x, t, label)

    def lived(one: Sampler) -> list[Done]:
        """Two rounds on many blocks, whose states the second goes on from."""
        tasks = [Task("a", 0, range(8 * i, 8 * i + 8), tuple(plans[:2]), 2**20) for i in range(5)]
        again = [replace(task, plans=tuple(plans[2:]), step=1, since=(task.plans,)) for task in tasks]
        return [one.run(task) for task in (*tasks, *again)]

    worker.model.network = network
    for found, expected in zip(lived(worker), lived(sampler()), strict=True):
        assert found.cost == expected.cost
    assert worker.most is None  # 8 samples fit
    assert max(seen) > 4000  # not without running out of memory


def test_a_device_that_has_failed_is_no_plans_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    broken = Sampler(replace(small.model(), network=network), load_features("small:features"))
    task = Task("a", 0, range(8), (Plan.of("ddim", [50.0]),))
    [(_, done)] = Here(broken).each([task])  # the device still computes
    assert done.found == ["sampling failed (RuntimeError: CUDA error: an illegal memory access was encountered)"]
    monkeypatch.setattr(Sampler, "sound", lambda self: False)
    with pytest.raises(
        RunError, match=r"device 'cpu': failed \(RuntimeError: CUDA error: .*\); what was scored is kept"
    ):
        list(Here(broken).each([task]))


def test_a_device_that_fails_in_the_feature_network_is_not_unusable_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered\nmore")

    broken = Sampler(small.model(), Extractor(Failing()))
    task = Task("a", 0, range(8), (Plan.of("ddim", [50.0]),))
    [(_, done)] = Here(broken).each([task])  # the device still computes
    assert "CUDA error: device-side assert triggered" in str(done.found[0])
    monkeypatch.setattr(Sampler, "sound", lambda self: False)
    with pytest.raises(RunError, match=r"device 'cpu': failed \(.*CUDA error: .*\); what was scored is kept"):
        list(Here(broken).each([task]))


def test_states_of_another_step_are_not_gone_on_from() -> None:
    first, second = Plan.of("ddim", [90.0, 50.0, 20.0]), Plan.of("ddim", [90.0, 50.0, 10.0])
    worker = sampler()
    worker.run(Task("a", 0, range(4), (first,), 2**20))
    asked: list[float] = []
    whole = worker.model.network

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        asked.append(float(t[0]))
        return whole(x, t, label)

    worker.model.network = network
    task = Task("a", 0, range(4), (second,), 2**20, step=1, since=((first,),))
    late = replace(task, step=7, before=(first,), since=((first,), (first,)))
    for given, times in ((task, [10.0]), (late, [90.0, 50.0, 20.0, 10.0])):
        asked.clear()
        done = worker.run(given)
        assert asked == times
        assert done.cost.evaluations == 4
        assert done.cost.saved == 2 * 4
