"""Workers in processes of their own, and what happens to them: the same ledger as in one process, and nothing lost."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faulty
import pytest
import ray
import small
import torch
from ray.cluster_utils import Cluster as Machines

from autodiffusion import InputError, Plan, RunError, Settings, search
from autodiffusion._sampling.actor import Recipe
from autodiffusion._sampling.blocks import Done, Sampler, Task
from autodiffusion._sampling.cluster import Cluster
from autodiffusion._sampling.errands import Errand, Here
from autodiffusion._sampling.sampling import Cost
from autodiffusion._study.standing import Standing
from autodiffusion._study.study import LEDGER, PLAN
from autodiffusion._views.progress import Quiet
from autodiffusion.features import Features
from autodiffusion.features._base import load as load_features

RECIPE = Recipe("faulty:model", {"device": "cpu"})
GOOD = [Plan.of("ddim", [90.0, t, 20.0]) for t in (80.0, 60.0, 40.0)]
MACHINE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A Ray cluster of one machine, to which others can be added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(faulty.FOLDER, str(tmp_path_factory.mktemp("faults")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_usage_threshold", "1.0")
        made = Machines(initialize_head=True, head_node_args=MACHINE)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def pair(machines: Machines) -> Iterator[Cluster]:
    """Two workers, replaced when they die."""
    with Cluster(RECIPE, 2, machines.address, timeout=2.0) as workers:
        yield workers


def kill_one() -> None:
    """Whoever is asked next dies."""
    (Path(os.environ[faulty.FOLDER]) / faulty.KILL).touch()


def alone() -> Here:
    return Here(Sampler(faulty.model(), load_features("small:features")))


def tasks(*plans: Plan, blocks: int = 4) -> list[Task]:
    return [Task("a", 0, range(8 * i, 8 * i + 8), plans) for i in range(blocks)]


def in_order(found: Iterator[tuple[int, Done]]) -> list[Done]:
    """What came, by its place; each has come once."""
    done = dict(pair := list(found))
    assert len(done) == len(pair)
    return [done[place] for place in sorted(done)]


def assert_same(found: list[Done], expected: list[Done]) -> None:
    """The same features, reasons and costs."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.cost == other.cost
        for here, there in zip(one.found, other.found, strict=True):
            if isinstance(here, Features) and isinstance(there, Features):
                assert torch.equal(here.vectors, there.vectors)
            else:
                assert here == there


# what happens to a block


def test_workers_give_what_one_process_gives(pair: Cluster) -> None:
    seen: list[int] = []
    found = in_order(pair.each(tasks(*GOOD), seen.append))
    assert_same(found, in_order(alone().each(tasks(*GOOD))))
    assert sum(seen) == sum(done.cost.evaluations for done in found) > 0


def test_an_exception_costs_one_plan_its_score(pair: Cluster) -> None:
    raises = Plan.of("dpm_solver++", [faulty.RAISES, 40.0])
    given = tasks(GOOD[0], raises, GOOD[1])
    found = in_order(pair.each(given))
    assert_same(found, in_order(alone().each(given)))
    assert [done.found[1] for done in found] == ["sampling failed (ValueError: no answer)"] * 4
    assert all(isinstance(done.found[i], Features) for done in found for i in (0, 2))


@pytest.mark.parametrize(
    ("time", "reason"),
    [(faulty.HANGS, "sampling took longer than 2 s"), (faulty.DIES, "sampling ended the worker")],
    ids=["hangs", "dies"],
)
def test_a_plan_that_hangs_or_ends_its_worker_has_no_score(pair: Cluster, time: float, reason: str) -> None:
    plan, made = Plan.of("dpm_solver++", [time, 40.0]), pair._made
    bad, *good = in_order(pair.each([*tasks(plan, blocks=1), *tasks(*GOOD)]))
    assert (bad.found, bad.runs, bad.cost.evaluations) == ([reason], (), 0)
    assert_same(good, in_order(alone().each(tasks(*GOOD))))
    assert pair._made > made  # its worker was replaced


def test_time_for_states_that_are_made_again_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nobody:
        """Ray, while no worker answers."""

        def wait(self, *_: Any, **__: Any) -> tuple[list[Any], list[Any]]:
            return [], []

        def kill(self, actor: Any) -> None:
            pass

    monkeypatch.setattr("autodiffusion._sampling.cluster.package", Nobody)
    one, *others = GOOD
    fresh = Task("a", 0, range(8), (one,), 2**20)
    later = replace(fresh, step=3, before=(one,), since=((others[0],), (others[1],)))
    for task, waited, late in ((fresh, 11, True), (fresh, 9, False), (later, 39, False), (later, 41, True)):
        workers = Cluster(RECIPE, 0, timeout=10.0)
        workers._busy["it"] = (0, None, Errand(0, task), time.monotonic() - waited)
        assert bool(workers._wait()) == late
        assert bool(workers._busy) != late


def test_workers_that_die_one_after_the_other_end_the_search(pair: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autodiffusion._sampling.cluster.DEATHS", 2)
    with pytest.raises(RunError, match=r"workers: 2 died one after the other .*what was scored is kept"):
        list(pair.each(tasks(Plan.of("dpm_solver++", [faulty.DIES, 40.0]), blocks=2)))
    assert_same(in_order(pair.each(tasks(*GOOD))), in_order(alone().each(tasks(*GOOD))))


@dataclass
class Leaving:
    """Ray, while machines go: what each worker answers, or that it is gone."""

    answers: dict[str, Any]
    exceptions: Any = ray.exceptions

    def wait(self, refs: list[str], **_: Any) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref in self.answers], []

    def get(self, ref: str) -> Any:
        if isinstance(self.answers[ref], Exception):
            raise self.answers[ref]
        return self.answers[ref]

    def cluster_resources(self) -> dict[str, float]:
        return {}

    def kill(self, actor: Any) -> None:
        pass


def test_a_machine_of_many_workers_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {f"{i}": ray.exceptions.ActorDiedError() for i in range(1, 13)}
    monkeypatch.setattr(
        "autodiffusion._sampling.cluster.package", lambda: Leaving(gone | {"0": Done([], Cost(), (), 0.0)})
    )
    workers = Cluster(RECIPE, 0)
    workers._made = 13
    errands = [Errand(i, task) for i, task in enumerate(tasks(GOOD[0], blocks=13))]
    errands[0].left = []
    workers._busy = {f"{i}": (i, None, errand, time.monotonic()) for i, errand in enumerate(errands)}
    assert len(workers._wait()) == 13
    assert all(errand.left == [0] and not errand.found for errand in errands[1:])  # to be tried again
    # but not when those die that were made since
    workers._busy = {f"{i}": (i + 20, None, errand, time.monotonic()) for i, errand in enumerate(errands) if i}
    with pytest.raises(RunError, match="workers: 10 died one after the other"):
        workers._wait()


def test_a_plan_is_not_to_blame_for_two_workers_that_go() -> None:
    errand = Errand(0, *tasks(GOOD[0], blocks=1))
    for _ in range(2):
        errand.went("gone")
    assert errand.left == [0]
    errand.went("gone")
    assert errand.found == {0: "gone"}


def test_a_machine_that_comes_and_lacks_the_model_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autodiffusion._sampling.cluster.package", lambda: Leaving({"new": "model 'x': no such file"}))
    workers = Cluster(RECIPE, 0)
    workers._idle, workers._preparing = {0: None}, {"new": (1, None)}
    with pytest.warns(UserWarning, match="a worker cannot start .model 'x': no such file.; the others go on"):
        workers._wait()
    assert list(workers._idle) == [0]
    workers._idle, workers._preparing = {}, {"new": (1, None)}
    with pytest.raises(InputError, match="worker: model 'x': no such file"):
        workers._wait()


def test_a_plan_that_cannot_be_followed_ends_the_search(pair: Cluster) -> None:
    with pytest.raises(InputError, match="t = 400 lies outside the model's time steps"):
        list(pair.each(tasks(GOOD[0], Plan.of("dpm_solver++", [400.0]))))
    # what the call before had begun is not taken for this one's
    assert_same(in_order(pair.each(tasks(*GOOD))), in_order(alone().each(tasks(*GOOD))))


# whole searches


@dataclass
class Disturbing(Quiet):
    """Does something whenever so many rounds are in the ledger."""

    deeds: dict[int, Callable[[], object]]

    def stand(self, standing: Standing) -> None:
        if deed := self.deeds.pop(standing.rounds, None):
            deed()


def settings(images: Path, **given: Any) -> Settings:
    options = {"samples": 48, "confirm_samples": 60, "batch_size": 8, "budget": 12_000, "threads": 1}
    return Settings.of(
        model="faulty:model", steps=3, reference=str(images), features="small:features", **options | given
    )


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / LEDGER).read_bytes(), (folder / PLAN).read_bytes()


@pytest.mark.usefixtures("plain")
def test_one_process_two_workers_and_three_of_which_one_is_killed_find_the_same(
    machines: Machines, pair: Cluster, real_images: Path, tmp_path: Path
) -> None:
    given = settings(real_images)
    search(given, tmp_path / "alone")
    search(given, tmp_path / "two", workers=pair)
    assert files(tmp_path / "two") == files(tmp_path / "alone")
    other, made, pair.count = machines.add_node(**MACHINE | {"num_cpus": 1}), pair._made, 3
    third = set[int]()

    def join() -> None:  # as it does by itself after a while
        pair._looked = -math.inf

    def killed() -> None:
        assert not (Path(os.environ[faulty.FOLDER]) / faulty.KILL).exists()
        third.update(pair._owners.values())
        machines.remove_node(other)

    progress = Disturbing({1: join, 3: lambda: arrived(pair, 3), 4: kill_one, 6: killed})
    try:
        search(given, tmp_path / "three", progress, workers=pair)
    finally:
        pair.count = 2
    assert not progress.deeds
    assert made in third  # the third did its part
    assert pair._made >= made + 3  # two others took the places of those that were lost
    assert files(tmp_path / "three") == files(tmp_path / "alone")


def arrived(pair: Cluster, count: int) -> None:
    """Waits until so many workers are there."""
    until = time.monotonic() + 60
    while len(pair._idle) < count:
        pair._wait()
        assert time.monotonic() < until


# at the end: from then on its workers sample smaller parts, whose features round otherwise


def test_memory_that_runs_out_costs_nothing(pair: Cluster) -> None:
    full = Plan.of("dpm_solver++", [faulty.FULL, 40.0])
    [expected] = in_order(Here(Sampler(small.model(), load_features("small:features"))).each(tasks(full, blocks=1)))
    for workers in (pair, alone()):
        [done] = in_order(workers.each(tasks(full, blocks=1)))
        assert done.cost == expected.cost
        [found], [right] = done.found, expected.found
        assert isinstance(found, Features)
        assert isinstance(right, Features)
        torch.testing.assert_close(found.vectors, right.vectors, rtol=1e-4, atol=1e-5)


# what cannot be started


def test_what_a_worker_cannot_load_is_said(machines: Machines, pair: Cluster) -> None:
    pair.close()
    recipe = Recipe("faulty:nothing", {"device": "cpu"})
    with pytest.raises(InputError, match="worker: model 'faulty:nothing': module faulty has no attribute 'nothing'"):
        Cluster(recipe, 1, machines.address).__enter__()
    assert not ray.is_initialized()
    with pytest.raises(InputError, match=r"Ray cluster '127.0.0.1:1': cannot be reached \("):
        Cluster(RECIPE, 1, "127.0.0.1:1").__enter__()
    with pytest.raises(InputError, match=r"Ray: was imported before .* and would listen to the network"):
        Cluster(RECIPE, 1).__enter__()
    assert not ray.is_initialized()
