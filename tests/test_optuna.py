"""The Optuna strategy: how plans become numbers, every sampler's contract, and what it does with odd answers."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy.stats import beta, kstest

from autodiffusion._errors import InputError
from autodiffusion._plans.free import FreeNumber
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.strategies import Strategy
from autodiffusion.strategies._base import build
from autodiffusion.strategies.optuna import Optuna, decode, encode, usable

SCHEDULE = NoiseSchedule.linear(1000)
SPACE = SearchSpace.of(SCHEDULE, 4, "ddim")
TARGET = np.array([965, 717, 552, 243])
STARTS = [SPACE.named(name, SCHEDULE) for name in ("uniform", "karras")]
TINY = SearchSpace.of(NoiseSchedule.linear(5), 3, "ddim")
FEW = {"candidates": 14, "population": 3}


def distance(plan: Plan) -> float:
    """The squared distances to a known target, in units of the time range, summed."""
    return float(np.square((np.array(plan.times) - TARGET) / 1000).sum())


def made(name: str = "optuna", space: SearchSpace = SPACE, seed: int = 0, **options: Any) -> Optuna:
    strategy = build(name, space, STARTS if space is SPACE else [], seed, options)
    assert isinstance(strategy, Optuna)
    return strategy


def run(strategy: Strategy, loss: Callable[[Plan], float] = distance, limits: list[int] | None = None) -> list[Plan]:
    """Every plan asked for, with these limits in the first rounds."""
    asked: list[Plan] = []
    for limit in itertools.chain(limits or [], itertools.repeat(1000)):
        plans = strategy.ask(limit)
        if not plans:
            return asked
        asked += plans
        strategy.tell([(plan, loss(plan)) for plan in plans])
    raise AssertionError


# plans as numbers


@pytest.mark.parametrize(
    ("times", "steps", "options"),
    [(5, 3, {}), (9, 3, {"gap": 2}), (8, 2, {"free_end": True}), (7, 1, {}), (5, 5, {}), (9, 3, {"gap": 4})],
)
def test_every_plan_has_its_numbers(times: int, steps: int, options: dict[str, Any]) -> None:
    space = SearchSpace.of(NoiseSchedule.linear(times), steps, "ddim", **options)
    falling = (nodes[::-1] for nodes in itertools.combinations(range(times), space.nodes))
    members = [space.plan(nodes) for nodes in falling if np.all(-np.diff(nodes) >= space.gap)]
    assert len(members) == math.comb(times - (space.nodes - 1) * (space.gap - 1), space.nodes)  # counted otherwise
    for plan in members:
        numbers = encode(plan, space)
        assert numbers.shape == (space.nodes,)
        assert np.all((numbers > 0) & (numbers <= 1))
        assert decode(numbers, space) == plan


@pytest.mark.parametrize("options", [{}, {"continuous": True, "gap": 30}, {"free_end": True}])
def test_plans_of_large_spaces_come_back(options: dict[str, Any]) -> None:
    space, rng = SearchSpace.of(SCHEDULE, 10, "ddim", **options), np.random.default_rng(0)
    plans = [space.sample(rng) for _ in range(200)] + [space.named(name, SCHEDULE) for name in ("beta", "linspace")]
    assert [decode(encode(plan, space), space) for plan in plans] == plans
    for corner in (np.zeros(space.nodes), np.ones(space.nodes)):
        assert space.contains(decode(corner, space))


def test_free_numbers_are_among_them() -> None:
    free = ((), (FreeNumber("data", -2, 3),), (FreeNumber("data", -2, 3), FreeNumber("noise", -1, 7, 0.5)))
    space, rng = SearchSpace.of(SCHEDULE, 3, "ddim", free=free), np.random.default_rng(0)
    for plan in [space.mutate(space.sample(rng), rng, 0.6, 0.3) for _ in range(100)]:
        numbers = encode(plan, space)
        assert numbers.shape == (6,)
        assert decode(numbers, space) == plan
    np.testing.assert_allclose(encode(space.plan([900, 500, 100], [3, 0.5, 1]), space)[3:], [1, 0.5, 0.25])
    target = np.array([1.0, 0.5, 3.0])

    def off(plan: Plan) -> float:
        return float(np.square((space.values(plan) - target) / (5, 5, 8)).sum())

    asked = run(build("optuna:CmaEsSampler", space, [], 1, {"candidates": 80}), off)
    assert all(space.contains(plan) for plan in asked)
    assert min(map(off, asked)) < 0.1 * min(map(off, asked[:10]))


@pytest.mark.parametrize("gap", [1, 50])
def test_even_numbers_are_evenly_drawn_plans(gap: int) -> None:
    space, rng = SearchSpace.of(SCHEDULE, 4, "ddim", gap=gap), np.random.default_rng(1)
    drawn = [decode(rng.random(4), space) for _ in range(2000)]
    times = np.array([plan.times for plan in drawn]) - np.arange(4)[::-1] * gap
    for node, of_node in enumerate(times.T):
        # the k-th smallest of n even draws is distributed as Beta(k, n + 1 - k)
        expected = beta(4 - node, node + 1)
        assert kstest((of_node + 0.5) / (1000 - 3 * gap), expected.cdf).pvalue > 1e-4


# every sampler

every_sampler = pytest.mark.parametrize("name", list(usable()))


def test_there_are_samplers() -> None:
    assert {"TPESampler", "GPSampler", "CmaEsSampler", "NSGAIISampler", "QMCSampler", "RandomSampler"} <= set(usable())
    assert not set(usable()) & {"GridSampler", "PartialFixedSampler", "BruteForceSampler", "BaseSampler"}


@every_sampler
def test_a_sampler_asks_for_new_members_and_learns(name: str) -> None:
    strategy = made(f"optuna:{name}", **FEW)
    assert type(strategy.study.sampler).__name__ == strategy.sampler == name
    asked = run(strategy)
    assert len(asked) == len(set(asked)) == strategy.planned == 14
    assert asked[:2] == STARTS
    assert all(SPACE.contains(plan) for plan in asked)
    told = {trial.value for trial in strategy.study.trials}
    assert told == {distance(plan) for plan in asked}


@every_sampler
def test_a_sampler_repeats_itself_and_resumes(name: str) -> None:
    whole = run(made(f"optuna:{name}", **FEW), limits=[2, 1])
    resumed = made(f"optuna:{name}", **FEW)
    for limit, plans in ((2, whole[:2]), (1, whole[2:3]), (1000, whole[3:6]), (1000, whole[6:9])):
        assert resumed.ask(limit) == plans
        resumed.tell([(plan, distance(plan)) for plan in plans])
    assert run(resumed) == whole[9:]
    # a seed beyond 32 bits as well
    other = run(made(f"optuna:{name}", seed=2**62, **FEW), limits=[2, 1])
    assert len(set(other[2:]) & set(whole)) <= 1


@every_sampler
def test_a_sampler_ends_in_a_tiny_space(name: str) -> None:
    assert len(set(run(made(f"optuna:{name}", TINY), lambda plan: plan.times[0]))) == math.comb(5, 3)


def test_another_process_makes_the_same_choices() -> None:
    names = ["TPESampler", "CmaEsSampler", "NSGAIISampler"]
    code = (
        f"import test_optuna as t\nfor name in {names}:\n"
        "    print([plan.times for plan in t.run(t.made('optuna:' + name, candidates=40))])"
    )
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = [run(made(f"optuna:{name}", candidates=40)) for name in names]
    assert done.stdout.splitlines() == [str([plan.times for plan in plans]) for plans in here]


def best_of_60(name: str, seeds: int, **options: Any) -> float:
    """The lowest distance that 60 candidates reach, without starts; the median over the seeds."""
    strategies = (build(name, SPACE, [], seed, {"candidates": 60, **options}) for seed in range(seeds))
    return statistics.median(min(map(distance, run(strategy))) for strategy in strategies)


def test_models_of_the_loss_beat_random_search() -> None:
    random = best_of_60("random", 5)
    assert best_of_60("optuna:TPESampler", 5) < random / 2
    assert best_of_60("optuna:CmaEsSampler", 5) < random / 2
    assert best_of_60("optuna:RandomSampler", 5) > random / 4  # plain luck, unlike the others


@pytest.mark.slow
def test_a_gaussian_process_beats_random_search() -> None:
    assert best_of_60("optuna:GPSampler", 5) < best_of_60("random", 5) / 2


# names and options


def test_the_name_after_the_colon_is_the_sampler() -> None:
    assert made().sampler == "TPESampler"
    named, told = made("optuna:RandomSampler", **FEW), made(sampler="RandomSampler", **FEW)
    assert run(named) == run(told)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("optuna:GPSample", {}, "strategy optuna: sampler 'GPSample' is unknown (did you mean 'GPSampler'? known: "),
        ("optuna", {"sampler": "GridSampler"}, "strategy optuna: sampler 'GridSampler' is unknown ("),
        ("optuna", {"sampler": "load_study"}, "strategy optuna: sampler 'load_study' is unknown (known: "),
        (
            "optuna:GPSampler",
            {"sampler": "TPESampler"},
            "strategy optuna:GPSampler: option sampler = 'TPESampler' is given a second time; leave it out",
        ),
        ("optuna:GPSampler", {"candidate": 3}, "strategy optuna:GPSampler: option 'candidate' is unknown (did you"),
        ("optuna:GPSampler", {"candidates": 0}, "strategy optuna: candidates = 0 must be at least 1"),
        ("optuna:", {}, "strategy 'optuna:': is not package.module:attribute"),
        # a colon stays what it was for names that say nothing of their own about it
        ("random:Random", {}, "strategy 'random:Random': is not a class derived from autodiffusion.strategies.S"),
        ("evolution:fast", {}, "strategy 'evolution:fast': importing evolution failed ("),
    ],
)
def test_names_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(name, SPACE, [], 0, options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("package", "name"), [("optuna", "optuna"), ("cmaes", "optuna:CmaEsSampler")])
def test_a_missing_package(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"^strategy optuna: .*; install .* pip install 'autodiffusion\[optuna\]'$"):
        build(name, SPACE, [], 0, {})
    if package == "cmaes":
        made()


def test_optuna_is_imported_where_it_is_used() -> None:
    code = (
        "import sys, autodiffusion\nfrom autodiffusion._names import known, resolve\n"
        "print([resolve('strategies', name).__name__ for name in known('strategies')], 'optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'Optuna'" in done.stdout
    assert done.stdout.split()[-1] == "False"


@pytest.mark.filterwarnings("error")
def test_optuna_is_quiet_and_its_settings_stay(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        for name in ("QMCSampler", "NSGAIIISampler", "CmaEsSampler"):  # two that warn, one that logs
            run(made(f"optuna:{name}", **FEW), lambda plan: math.inf if plan.times[0] > 900 else 1.0)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


# what it is told


def test_starts_are_trials_with_their_own_numbers() -> None:
    strategy = made()
    assert strategy.ask(1) == STARTS[:1]
    strategy.tell([(STARTS[0], 3.0)])
    assert strategy.ask(5)[0] == STARTS[1]  # cut off by the limit, it comes again
    first = strategy.study.trials[0]
    assert (first.state, first.value) == (TrialState.COMPLETE, 3.0)
    np.testing.assert_array_equal(list(first.params.values()), encode(STARTS[0], SPACE))


def test_what_was_asked_for_before_is_told_again() -> None:
    strategy = made(space=TINY, population=2)
    asked = run(strategy, lambda plan: sum(plan.times))
    assert len(asked) == 10
    trials = strategy.study.trials
    assert len(trials) > 20  # most of them came more than once
    for trial in trials:
        assert trial.value == sum(decode(np.array([*trial.params.values()]), TINY).times)


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_failures_are_failed_trials(loss: float) -> None:
    strategy = made(**FEW)
    asked = run(strategy, lambda plan: loss if plan.times[0] % 2 else distance(plan))
    states = [trial.state for trial in strategy.study.trials]
    odd = sum(plan.times[0] % 2 == 1 for plan in asked)
    assert 0 < odd < 14
    assert states.count(TrialState.FAIL) == odd
    assert states.count(TrialState.COMPLETE) == 14 - odd


def test_what_the_limit_cut_away_is_given_up() -> None:
    strategy = made(population=6)
    kept = strategy.ask(4)
    strategy.tell([(plan, distance(plan)) for plan in kept])
    strategy.ask(6)
    states = [trial.state for trial in strategy.study.trials]
    assert states == [TrialState.COMPLETE] * 4 + [TrialState.FAIL] * 2 + [TrialState.RUNNING] * 6


def test_strangers_are_ignored() -> None:
    strategy, other = made(**FEW), made(**FEW)
    cut = other.ask(1000)[-1]
    assert strategy.ask(2) == STARTS
    strategy.tell([(SPACE.plan([9, 6, 4, 1]), 0.0), (cut, 0.0), (STARTS[0], 1.0), (STARTS[0], 2.0)])
    assert [trial.value for trial in strategy.study.trials] == [1.0, None, None]
    asked = run(strategy)
    assert len(set(asked)) == len(asked) == 12
