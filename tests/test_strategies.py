"""Strategies: a contract for every file in the room, and evolution against Algorithm 1 of the paper's appendix."""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from rooms import SEARCH_TIMES

from autodiffusion._errors import InputError
from autodiffusion._plans.free import FreeNumber
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._spaces.space import SearchSpace
from autodiffusion._study.settings import PRESETS
from autodiffusion.strategies import Strategy
from autodiffusion.strategies._base import WIDER, build, hopeful
from autodiffusion.strategies.evolution import Evolution
from autodiffusion.strategies.ladder import Ladder

SCHEDULE = NoiseSchedule.linear(1000)
SPACE = SearchSpace.of(SCHEDULE, 6, "ddim")
TARGET = np.array([973, 790, 523, 311, 120, 31])
Loss = Callable[[Plan], float]


def distance(plan: Plan) -> float:
    """Separable: the squared distances to a known target, in units of the time range, summed."""
    return float(np.square((np.array(plan.times) - TARGET) / 1000).sum())


def starts(space: SearchSpace = SPACE, schedule: NoiseSchedule = SCHEDULE) -> list[Plan]:
    return [space.named(name, schedule) for name in ("uniform", "karras", "uniform")]


def rounds(strategy: Strategy, loss: Loss, limits: Sequence[int] = ()) -> Iterator[list[Plan]]:
    """Asks and tells until the search is over, with these limits first; at most 1,000 rounds."""
    for number in range(1000):
        plans = strategy.ask(limits[number] if number < len(limits) else 10**6)
        if not plans:
            return
        yield plans
        strategy.tell([(plan, loss(plan)) for plan in plans])
    raise AssertionError("the search does not end")


def run(strategy: Strategy, loss: Loss = distance, limits: Sequence[int] = ()) -> list[list[Plan]]:
    return list(rounds(strategy, loss, limits))


def flat(populations: list[list[Plan]]) -> list[Plan]:
    return list(itertools.chain.from_iterable(populations))


def questions(strategy: Strategy, loss: Loss, limits: Sequence[int] = ()) -> list[tuple[Plan, float, Plan | None]]:
    """All that a search asks for: (plan, share, anchor); checked for what holds of every strategy."""
    found: list[tuple[Plan, float, Plan | None]] = []
    known: set[tuple[Plan, float, Plan | None, float]] = set()
    full: set[Plan] = set()
    whole = 1.0
    for number, plans in enumerate(rounds(strategy, loss, limits)):
        limit = limits[number] if number < len(limits) else 10**6
        if strategy.whole > whole:
            whole, full = strategy.whole, set()
        assert 0 < strategy.share <= strategy.whole == whole
        assert whole in (1, *WIDER)
        assert len(plans) <= limit / strategy.share
        # measured from a plan whose own score stands on as many samples
        assert strategy.anchor is None or strategy.anchor in full
        full |= set(plans) if strategy.share == whole else set()
        asked = [(plan, strategy.share, strategy.anchor) for plan in plans]
        new = [question for question in asked if (*question, whole) not in known]
        assert len(set(asked)) == len(asked)
        assert new  # asked again only beside new ones, for which it is free, or where full scores have more samples
        found += new
        known.update((*question, whole) for question in new)
    if type(strategy) is not Ladder:  # all others score every plan once, with all samples
        assert {(share, anchor) for _, share, anchor in found} <= {(1, None)}
    return found


def planned_like(strategy: Strategy, asked: list[tuple[Plan, float, Plan | None]]) -> bool:
    """Whether it asked for as much as it said before; of a ladder that is an estimate."""
    count = sum(share for _, share, _ in asked)
    return 0.4 < count / strategy.planned < 1.5 if type(strategy) is Ladder else count == strategy.planned


# the contract

every_strategy = pytest.mark.parametrize("name", SEARCH_TIMES)


def test_there_are_strategies() -> None:
    assert {"evolution", "ladder", "random"} <= set(SEARCH_TIMES)


@every_strategy
@pytest.mark.parametrize("options", [{"continuous": True}, {"free_end": True, "gap": 20}, {}])
def test_asks_for_new_members_and_ends(name: str, options: dict[str, Any]) -> None:
    space = SearchSpace.of(SCHEDULE, 6, "ddim", {"clip": True}, **options)
    strategy = build(name, space, starts(space), 0, {})
    found = questions(strategy, lambda plan: plan.times[0])
    asked = [plan for plan, _, _ in found]
    assert asked[0] == starts(space)[0]
    assert starts(space)[1] in asked
    assert all(space.contains(plan) for plan in asked)
    assert planned_like(strategy, found)  # the space is large enough for all of them
    assert strategy.ask(10) == []


@every_strategy
def test_works_without_starts(name: str) -> None:
    strategy = build(name, SPACE, [], 0, {})
    assert planned_like(strategy, questions(strategy, distance))


@every_strategy
def test_respects_the_limit(name: str) -> None:
    limits = (7, 1, 50, 3)
    # what the limit cut away may come again, what was asked for may not
    assert len(questions(build(name, SPACE, starts(), 0, {}), distance, limits)) > sum(limits) / 2
    assert len(run(build(name, SPACE, starts(), 0, {}), limits=limits)) > len(limits)
    assert build(name, SPACE, starts(), 0, {}).ask(0) == []


@every_strategy
def test_the_seed_and_what_it_was_told_decide(name: str) -> None:
    first, again = (run(build(name, SPACE, starts(), 5, {}), limits=(9, 40)) for _ in range(2))
    assert first == again
    other = flat(run(build(name, SPACE, starts(), 6, {}), limits=(9, 40)))
    # small mutations of the same start are in common, hardly anything else
    assert len(set(other).intersection(flat(first))) < 0.1 * len(other)


@every_strategy
def test_replaying_gives_the_same_search(name: str) -> None:
    whole = run(build(name, SPACE, starts(), 5, {}))
    resumed = build(name, SPACE, starts(), 5, {})
    # a strategy of its own, told what the ledger holds of the first half, goes on with the second
    for plans in whole[: len(whole) // 2]:
        assert resumed.ask(10**6) == plans
        resumed.tell([(plan, distance(plan)) for plan in plans])
    assert run(resumed) == whole[len(whole) // 2 :]


@every_strategy
def test_a_tiny_space_ends_the_search(name: str) -> None:
    schedule = NoiseSchedule.linear(5)
    space = SearchSpace.of(schedule, 3, "ddim")
    asked = questions(build(name, space, starts(space, schedule), 0, {}), lambda plan: plan.times[0])
    assert name == "ladder" or len(asked) == math.comb(5, 3)
    assert {plan for plan, _, _ in asked} <= {space.plan(nodes) for nodes in itertools.combinations(range(5), 3)}
    assert min(plan.times[0] for plan, _, _ in asked) == 2
    full = SearchSpace.of(schedule, 5, "ddim")
    assert len(flat(run(build(name, full, starts(full, schedule), 0, {}), lambda plan: 1.0))) == 1


@every_strategy
@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
def test_losses_that_say_nothing(name: str, value: float) -> None:
    strategy = build(name, SPACE, starts(), 0, {})
    asked = questions(strategy, lambda plan: value)
    if name == "ladder":
        # where all fail there is nothing to climb from, and where all are equal the starts are enough to begin with
        assert {starts()[0], starts()[1]} <= {plan for plan, _, _ in asked}
        assert math.isfinite(value) or {share for _, share, _ in asked} == {0.1}
    else:
        assert len(asked) == strategy.planned


@every_strategy
def test_unknown_options(name: str) -> None:
    option, typo = ("children", "childern") if name == "ladder" else ("population", "populaton")
    with pytest.raises(InputError, match=rf"^strategy {name}: option '{typo}' is unknown \(did you mean '{option}'"):
        build(name, SPACE, [], 0, {typo: 3})
    with pytest.raises(InputError, match=rf"^strategy {name}: option {option} = 'many' is not a int"):
        build(name, SPACE, [], 0, {option: "many"})
    with pytest.raises(InputError, match=rf"^strategy {name}.* at least [14]"):
        build(name, SPACE, [], 0, {option: 0})


def test_unknown_strategy() -> None:
    with pytest.raises(InputError, match=r"strategy 'evolutoin' is unknown \(did you mean 'evolution'"):
        build("evolutoin", SPACE, [], 0, {})


@every_strategy
def test_strategies_see_no_torch(name: str) -> None:
    code = f"import sys, autodiffusion.strategies.{name}\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# random search


def test_random_search_draws_from_everywhere() -> None:
    populations = run(build("random", SPACE, [], 0, {"candidates": 300, "population": 100}))
    assert [len(plans) for plans in populations] == [100, 100, 100]
    times = np.array([plan.times for plan in flat(populations)])
    # six of a thousand, drawn evenly: order statistics, at k / 7 of the range
    np.testing.assert_allclose(times.mean(0), 1000 * np.arange(6, 0, -1) / 7, atol=5 * 160 / math.sqrt(300))


def test_random_search_takes_no_more_starts_than_candidates() -> None:
    starts = [SPACE.plan(np.array([900.0, 700.0, 500.0, 300.0, 200.0, float(t)])) for t in range(100, 111)]
    strategy = build("random", SPACE, starts, 0, {"candidates": 5})
    assert strategy.ask() == starts[:5]
    assert strategy.ask() == []


def test_random_search_counts_the_starts() -> None:
    populations = run(build("random", SPACE, starts(), 0, {"candidates": 25, "population": 10}))
    assert [len(plans) for plans in populations] == [10, 10, 5]
    assert populations[0][:2] == starts()[:2]


# evolution, against Algorithm 1


def test_defaults_are_the_papers() -> None:
    strategy = Evolution(SPACE, [], 0)
    assert (strategy.population, strategy.generations) == (50, 10)
    assert (strategy.mutations, strategy.crossovers, strategy.parents) == (25, 15, 10)
    assert (strategy.mutation_probability, strategy.initial_mutation_probability) == (0.25, 0.1)
    assert strategy.mutation_scale == 0  # mutation draws an unused time evenly
    assert PRESETS["paper"]["evolution"] == {}
    assert strategy.planned == 500


class Recorder:
    """Which operator made each plan, with what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: dict[Plan, str] = {}
        self.parents: list[Plan] = []
        self.numbers: set[tuple[float, float]] = set()
        sample, mutate, cross = SearchSpace.sample, SearchSpace.mutate, SearchSpace.cross

        def sampled(space: SearchSpace, rng: np.random.Generator) -> Plan:
            return self.note("random", sample(space, rng))

        def mutated(
            space: SearchSpace, plan: Plan, rng: np.random.Generator, probability: float, scale: float = 0.0
        ) -> Plan:
            self.numbers.add((probability, scale))
            return self.note("mutation", mutate(space, plan, rng, probability, scale), plan)

        def crossed(space: SearchSpace, first: Plan, second: Plan, rng: np.random.Generator) -> Plan:
            return self.note("crossover", cross(space, first, second, rng), first, second)

        monkeypatch.setattr(SearchSpace, "sample", sampled)
        monkeypatch.setattr(SearchSpace, "mutate", mutated)
        monkeypatch.setattr(SearchSpace, "cross", crossed)

    def note(self, operator: str, plan: Plan, *parents: Plan) -> Plan:
        self.made.setdefault(plan, operator)
        self.parents += parents
        return plan

    def forget(self) -> None:
        self.made, self.parents, self.numbers = {}, [], set()

    def counts(self, plans: list[Plan]) -> dict[str, int]:
        operators = ("mutation", "crossover", "random")
        return {operator: sum(self.made.get(plan) == operator for plan in plans) for operator in operators}


def fails_sometimes(plan: Plan) -> float:
    """A third of the plans fail, among them the best of all."""
    return math.inf if plan.times[0] % 3 == 0 or distance(plan) < 0.01 else distance(plan)


def test_generations_are_those_of_algorithm_1(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, strategy = Recorder(monkeypatch), Evolution(SPACE, starts()[:1], 0)
    told: list[tuple[float, Plan]] = []
    populations = []
    for plans in rounds(strategy, fails_sometimes):
        populations.append(plans)
        assert len(plans) == 50
        if len(populations) == 1:
            assert plans[0] == starts()[0]
            assert recorder.counts(plans[1:]) == {"mutation": 25, "crossover": 0, "random": 24}
            assert set(recorder.parents) == {starts()[0]}
            assert recorder.numbers == {(0.1, 0.0)}
        else:
            assert recorder.counts(plans) == {"mutation": 25, "crossover": 15, "random": 10}
            best = sorted(told, key=lambda entry: entry[0])[:10]  # of all generations, failures excluded
            assert set(recorder.parents) == {plan for _, plan in best}
            assert recorder.numbers == {(0.25, 0.0)}
        told += [(loss, plan) for plan in plans if (loss := fails_sometimes(plan)) < math.inf]
        recorder.forget()
    assert len(populations) == 10
    assert len(told) < 500


def test_parents_come_from_all_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first generation is good, all later ones are bad: its best stay the parents to the end
    losses = itertools.chain((float(i) for i in range(50)), itertools.repeat(1e6))
    recorder, strategy = Recorder(monkeypatch), Evolution(SPACE, [], 0)
    first: list[Plan] = []
    for plans in rounds(strategy, lambda plan: next(losses)):
        if first:
            assert set(recorder.parents) == set(first[:10])
        first = first or plans
        recorder.forget()
    assert strategy.best() == first[:10]


def test_where_losses_are_equal_the_earlier_one_is_the_parent() -> None:
    strategy = Evolution(SPACE, [], 0, parents=3)
    plans = strategy.ask(50)
    strategy.tell([(plan, 1.0) for plan in plans])
    strategy.tell([(plan, 1.0) for plan in strategy.ask(50)])
    assert strategy.best() == plans[:3]


def test_without_survivors_the_next_generation_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, strategy = Recorder(monkeypatch), Evolution(SPACE, starts(), 0)
    populations = rounds(strategy, lambda plan: math.inf)
    next(populations)
    recorder.forget()
    assert recorder.counts(next(populations)) == {"mutation": 0, "crossover": 0, "random": 50}
    assert strategy.best() == recorder.parents == []


def test_the_population_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    strategy = Evolution(SPACE, starts(), 0, population=20, mutations=30, crossovers=30, initial_mutations=30)
    populations = rounds(strategy, distance)
    assert recorder.counts(next(populations)[2:]) == {"mutation": 18, "crossover": 0, "random": 0}
    recorder.forget()
    assert recorder.counts(next(populations)) == {"mutation": 20, "crossover": 0, "random": 0}
    crowded = Evolution(SPACE, starts(), 0, population=1, generations=2)
    assert [len(plans) for plans in run(crowded)] == [1, 1]


def test_local_moves_shrink_to_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, strategy = Recorder(monkeypatch), Evolution(SPACE, [], 0, generations=6, mutation_scale=0.08)
    scales = []
    for number, _ in enumerate(rounds(strategy, distance)):
        if number:
            [(probability, scale)] = recorder.numbers
            assert probability == 0.25
            scales.append(scale)
        recorder.forget()
    np.testing.assert_allclose(scales, np.geomspace(0.08, 0.008, 5))
    assert len(run(Evolution(SPACE, [], 0, generations=2, mutation_scale=0.08))) == 2


def test_options_out_of_range() -> None:
    for options, message in [
        ({"generations": 0}, "strategy evolution: generations = 0 must be at least 1"),
        ({"parents": -1}, "strategy evolution: parents = -1 must be at least 1"),
        ({"mutations": -1}, "strategy evolution: mutations = -1 must be at least 0"),
        ({"mutation_probability": 1.5}, "strategy evolution: mutation_probability = 1.5 lies outside 0 to 1"),
        ({"mutation_scale": -0.1}, "strategy evolution: mutation_scale = -0.1 lies outside 0 to 1"),
    ]:
        with pytest.raises(InputError) as caught:
            build("evolution", SPACE, [], 0, options)
        assert str(caught.value) == message
    with pytest.raises(InputError, match="option mutation_scale = nan is not a float"):
        build("evolution", SPACE, [], 0, {"mutation_scale": math.nan})


def best_of_500(name: str, options: dict[str, Any]) -> float:
    """The lowest distance that a search finds, the median over five seeds."""
    found = []
    for seed in range(5):
        asked = flat(run(build(name, SPACE, starts()[:1], seed, options)))
        assert len(asked) == 500
        found.append(min(map(distance, asked)))
    return statistics.median(found)


def test_evolution_beats_random_search() -> None:
    random = best_of_500("random", {"candidates": 500})
    assert best_of_500("evolution", {}) < random / 2
    # local moves, as the default preset has them
    local = {**PRESETS["default"]["evolution"], "population": 50, "generations": 10}
    assert best_of_500("evolution", local) < random / 4


# what is not out of a race yet


def ruled(losses: list[float], errors: dict[int, float]) -> list[int]:
    """What ``hopeful`` keeps of plans that are numbered."""
    plans = [SPACE.plan((0, 1, 2, 3, 4, 5 + i)) for i in range(len(losses))]
    kept = hopeful(dict(zip(plans, losses, strict=True)), {plans[i]: error for i, error in errors.items()})
    return [plans.index(plan) for plan in kept]


@pytest.mark.parametrize(
    ("losses", "errors", "expected"),
    [
        pytest.param([], {}, [], id="nothing"),
        pytest.param([3.0, 1.0, 2.0], {}, [1, 2, 0], id="no errors, none is out"),
        pytest.param([3.0, 1.0, 2.0], {1: 0.0}, [1, 2, 0], id="the error of the best says nothing"),
        pytest.param([3.5, 1.0, 3.6], {0: 1.0, 1: 0.0, 2: 1.0}, [1, 0], id="two and a half errors behind"),
        pytest.param([3.5, 1.0, 3.6], {0: 0.9, 1: 0.0, 2: 1.1}, [1, 2], id="to each its own error"),
        pytest.param([9.0, 1.0, 8.0], {1: 0.0, 2: 1.0}, [1, 0], id="without an error it is not ruled out"),
        pytest.param([2.0, 1.0, 1.0], {0: 0.0, 1: 0.0, 2: 0.0}, [1, 2], id="equals stay in their order"),
        pytest.param([math.inf, 1.0, 2.0], {1: 0.0, 2: 1.0}, [1, 2], id="what failed is left out"),
        pytest.param([math.inf, 1.0], {0: math.inf}, [1], id="what failed is left out, whatever its error"),
        pytest.param([math.inf, math.inf], {}, [], id="all failed"),
        pytest.param([-3.0, -1.0, -2.9], {0: 0.0, 1: 0.5, 2: 0.5}, [0, 2], id="losses below zero"),
    ],
)
def test_hopeful_is_what_is_not_clearly_behind(
    losses: list[float], errors: dict[int, float], expected: list[int]
) -> None:
    assert ruled(losses, errors) == expected


# the ladder


@dataclass
class Round:
    """What a strategy asked for and was told."""

    share: float
    whole: float
    anchor: Plan | None
    losses: dict[Plan, float]
    errors: dict[Plan, float]

    @property
    def full(self) -> bool:
        return self.share == self.whole


class Sampled:
    """The distance plus noise that falls with the share of samples, nested as on one noise, and honest errors.

    Attributes:
        sigma: standard error of one plan's loss with all samples.
        spent: what was asked for, in plans with all samples; what the round before had is free.
        told: the rounds.
    """

    def __init__(self, sigma: float, seed: int = 0) -> None:
        self.sigma, self.seed, self.spent = sigma, seed, 0.0
        self.told: list[Round] = []
        self._held: dict[Plan, float] = {}

    def noise(self, plan: Plan, share: float) -> float:
        rng = np.random.default_rng([self.seed, *map(int, plan.times)])
        steps = np.cumsum(rng.normal(size=40))  # ten parts to all the samples, of which a share takes the first
        parts = max(1, round(10 * share))
        return self.sigma * math.sqrt(10) * float(steps[parts - 1]) / parts

    def search(self, strategy: Strategy, limit: float = math.inf) -> Plan:
        """Searches to the end; gives the best of the plans that were scored with the most samples."""
        limit = min(limit, strategy.most)
        full: dict[Plan, float] = {}
        while plans := strategy.ask(limit - self.spent):
            share = strategy.share
            needs = dict.fromkeys(plans, share) | ({strategy.anchor: strategy.whole} if strategy.anchor else {})
            self.spent += sum(max(0, need - self._held.get(plan, 0)) for plan, need in needs.items())
            self._held = {plan: max(need, self._held.get(plan, 0)) for plan, need in needs.items()}
            losses = {plan: distance(plan) + self.noise(plan, share) for plan in plans}
            best = min(losses, key=lambda plan: losses[plan])
            error = self.sigma * math.sqrt(2 / share)
            errors = {plan: 0.0 if plan == best else error for plan in plans}
            if share == strategy.whole:
                full = losses if self.told and self.told[-1].whole < strategy.whole else full | losses
            self.told.append(Round(share, strategy.whole, strategy.anchor, losses, errors))
            strategy.tell(list(losses.items()), errors)
        return min(full, key=lambda plan: full[plan])


@pytest.mark.parametrize(("sigma", "near"), [(0.0, 2e-3), (0.002, 0.02)])
def test_the_ladder_comes_nearer_than_random_search_of_the_same_cost(sigma: float, near: float) -> None:
    found, random = [], []
    for seed in range(5):
        sampled = Sampled(sigma, seed)
        found.append(distance(sampled.search(build("ladder", SPACE, starts(), seed, {}))))
        count = math.ceil(sampled.spent)
        random.append(
            distance(Sampled(sigma, seed).search(build("random", SPACE, starts(), seed, {"candidates": count})))
        )
    assert statistics.median(found) < near
    assert statistics.median(found) < statistics.median(random) / 3


def test_the_race_drops_what_is_clearly_worse_and_keeps_what_may_be_best() -> None:
    for sigma in (1e-6, 10.0):
        sampled = Sampled(sigma)
        sampled.search(build("ladder", SPACE, starts(), 0, {"explorations": 0}))
        race = list(itertools.takewhile(lambda lap: lap.share < 1, sampled.told))
        # the first look, in four parts, each of which has what came before again
        first = [list(lap.losses) for lap in race[:4]]
        assert [len(field) for field in first] == [len(first[3]) * part // 4 for part in (1, 2, 3, 4)]
        assert all(field == first[3][: len(field)] for field in first)
        assert [lap.share for lap in race] == ([0.1] * 4 if sigma < 1 else [0.1] * 4 + [0.2, 0.5])
        for lap, after in itertools.pairwise(sampled.told[3 : len(race) + 1]):
            losses = lap.losses
            ranked = sorted(losses, key=lambda plan: losses[plan])
            half = ranked[: max(4, len(ranked) // 2)]
            kept = [plan for plan in half if losses[plan] - losses[ranked[0]] <= 2.5 * lap.errors[plan]]
            assert list(after.losses) == kept
            assert len(kept) == (1 if sigma < 1 else len(half))


def test_the_ladder_asks_for_more_samples_where_few_say_nothing() -> None:
    for sigma, glance in [(1e-6, 0.1), (10.0, 0.2)]:
        strategy = Ladder(SPACE, starts(), 0)
        Sampled(sigma).search(strategy)
        assert strategy.glance == glance


def test_what_few_samples_promise_is_not_believed() -> None:
    # with few samples every plan looks better than the anchor, with all of them none is
    strategy = Ladder(SPACE, starts(), 0, explorations=0, family=False)
    first = strategy.ask()
    assert set(first) == set(starts())
    anchors, promised = set(), 0
    plans = first
    while plans:
        if strategy.anchor is not None:
            anchors.add(strategy.anchor)
        small, begun = strategy.share < strategy.whole, strategy.anchor is None
        promised += not small and not begun
        strategy.tell([(plan, distance(plan) if begun else -1.0 - distance(plan) if small else 99.0) for plan in plans])
        plans = strategy.ask()
    assert promised >= 2
    assert anchors == {min(starts(), key=distance)}
    # nor is what fails with all samples
    strategy = Ladder(SPACE, starts(), 0, explorations=0, family=False)
    seen = set()
    while plans := strategy.ask():
        seen.add(strategy.anchor)
        failing = strategy.share == strategy.whole and strategy.anchor is not None
        strategy.tell([(plan, math.inf if failing else distance(plan)) for plan in plans])
    assert seen == {None, min(starts(), key=distance)}


@pytest.mark.parametrize("most", [30, 100, 400])
def test_the_ladder_goes_on_with_more_samples(most: int) -> None:
    sampled = Sampled(0.01)
    strategy = Ladder(SPACE, starts(), 0, most=most)
    sampled.search(strategy)
    assert sampled.spent <= most + 1e-9
    stages = [(whole, list(laps)) for whole, laps in itertools.groupby(sampled.told, lambda lap: lap.whole)]
    # a few plans with all samples are no more than the starts; many are enough for every stage
    assert [whole for whole, _ in stages] == {30: [1], 100: [1, 2], 400: [1, 2, 4]}[most]
    for (_, before), (whole, laps) in itertools.pairwise(stages):
        full: dict[Plan, float] = {}
        for lap in before:
            full |= lap.losses if lap.full else {}
        # the elite is scored with more samples by itself, and then whatever is better than its best
        assert list(laps[0].losses) == sorted(full, key=lambda plan: full[plan])[: strategy.elite]
        assert laps[0].full
        assert laps[0].anchor is None
        assert laps[1].anchor == min(laps[0].losses, key=lambda plan: laps[0].losses[plan])
        assert all(strategy.glance * whole <= lap.share <= whole and lap.anchor for lap in laps[1:])
    assert (most < 400) == (sampled.spent > most - 4)  # otherwise it ends by itself


def test_where_no_score_of_more_samples_is_finite_the_ladder_ends() -> None:
    strategy = Ladder(SPACE, starts(), 0, explorations=0, family=False)
    shares = []
    while plans := strategy.ask():
        shares.append(strategy.share)
        strategy.tell([(plan, distance(plan) if strategy.whole == 1 else math.inf) for plan in plans])
    assert shares[-1] == 2
    assert max(shares[:-1]) == 1


@pytest.mark.parametrize("options", [{"steps": 1}, {"gap": 40}, {"free_end": True}, {"continuous": True}], ids=str)
def test_the_moves_stay_in_the_space(options: dict[str, Any]) -> None:
    space = SearchSpace.of(SCHEDULE, **{"steps": 5, "solver": "ddim", **options})
    # the best plan lies in a corner, where moves end at the border and at each other
    asked = flat(run(Ladder(space, [], 0), lambda plan: -plan.times[0] + 0.01 * sum(plan.times)))
    assert all(space.contains(plan) for plan in asked)
    assert space.positions(min(asked, key=lambda plan: -plan.times[0]))[0] > 0.99 * (len(space.times) - 1)


def test_a_ladder_with_an_elite_of_one_keeps_its_numbers() -> None:
    """It goes on with more samples from the best of both kinds, with numbers and plain."""
    space = SearchSpace.of(SCHEDULE, 3, "gls", free=((FreeNumber("data", -2, 3),),) * 3)
    strategy = Ladder(space, [space.named("uniform", SCHEDULE)], 0, explorations=0, family=False, elite=1)
    every = rounds(strategy, lambda plan: float(np.square(space.values(plan) - 1).sum()))
    plans = next(plans for plans in every if strategy.whole > 1)
    assert [any(plan.params) for plan in plans] == [True, False]
    np.testing.assert_allclose(space.values(plans[0]), 1, atol=0.1)


@pytest.mark.parametrize("limit", range(1, 11))
@pytest.mark.parametrize("family", [True, False])
def test_small_limits_still_score_a_plan_in_full(limit: int, family: bool) -> None:
    sampled = Sampled(0.002)
    sampled.search(build("ladder", SPACE, starts(), 0, {"family": family}), limit)
    assert sampled.spent <= limit + 1e-9
    assert any(lap.share == 1 for lap in sampled.told)


def test_a_ladder_out_of_range() -> None:
    for options, message in [
        ({"explorations": -1}, "strategy ladder: explorations = -1 must be at least 0"),
        ({"children": 3}, "strategy ladder: children = 3 must be at least 4"),
        ({"elite": 0}, "strategy ladder: elite = 0 must be at least 1"),
        ({"scale": 0.0}, "strategy ladder: scale = 0.0 lies outside 0 to 1"),
        ({"step": 1.5}, "strategy ladder: step = 1.5 lies outside 0 to 1"),
        ({"smallest_step": -0.1}, "strategy ladder: smallest_step = -0.1 lies outside 0 to 1"),
    ]:
        with pytest.raises(InputError) as caught:
            build("ladder", SPACE, [], 0, options)
        assert str(caught.value) == message
