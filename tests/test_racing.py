"""Racing: nested numbers of samples, what a round costs and what is known of a difference."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from autodiffusion import Evaluator, Model, Plan
from autodiffusion._references.reference import Reference
from autodiffusion._sampling.sampling import Cost, begin, nfe, walk
from autodiffusion._search.racing import Anchor, Lap, Race, counts
from autodiffusion.features import Features
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics import Metric
from autodiffusion.metrics._build import build
from autodiffusion.strategies._base import RUNGS, WIDER

SEED = 5
PLENTY = 2**30
TWICE = (2.0,)
"""One further rung."""
EXTRACTOR = load_features("small:features")
REFERENCE = Reference.of(EXTRACTOR(small.real(600)), None)

Round: TypeAlias = tuple[list[Plan], int, Anchor | None]
"""What a race is asked: plans, samples, anchor and how many samples that has."""


def ddim(*times: float) -> Plan:
    return Plan.of("ddim", times, solver_options={"clip": True})


A, B, C = ddim(85, 50, 20), ddim(60, 40, 10), ddim(60, 40, 5)
BROKEN = ddim(85, 60, 20)  # for small.broken_model, as A is


def metric(name: str = "fid") -> Metric:
    made = build(name, REFERENCE)
    assert isinstance(made, Metric)
    return made


class Run:
    """A race and what it spends."""

    def __init__(self, samples: int = 40, limit: int = 0, name: str = "fid", **options: Any) -> None:
        model = options.pop("model", None) or small.model()
        self.evaluator = Evaluator(model, EXTRACTOR, options.pop("batch_size", 16))
        self.race = Race(
            self.evaluator, metric(name), samples, options.pop("seed", SEED), limit, options.pop("wider", ())
        )
        assert not options

    def lap(self, plans: list[Plan], samples: int, anchor: Anchor | None = None) -> Lap:
        return self.race.lap(plans, samples, anchor)

    def spent(self, plans: list[Plan], samples: int, anchor: Anchor | None = None) -> tuple[Lap, int]:
        before = self.evaluator.cost.evaluations
        return self.lap(plans, samples, anchor), self.evaluator.cost.evaluations - before


@st.composite
def rounds(draw: st.DrawFn, least: int = 1) -> list[Round]:
    """Rounds of plans of three steps, many of which come again or begin alike."""
    times = st.permutations([10.0, 20.0, 40.0, 60.0, 80.0, 95.0]).map(lambda some: sorted(some[:3])[::-1])
    plans = draw(st.lists(times.map(lambda some: ddim(*some)), min_size=6, max_size=6))
    made = []
    rungs = counts(40, wider=TWICE)
    for _ in range(draw(st.integers(least, 4))):
        samples = draw(st.sampled_from(rungs))
        plan = draw(st.sampled_from([None, *plans]))
        anchor = None if plan is None else (plan, draw(st.sampled_from([n for n in rungs if n >= samples])))
        made.append((draw(st.lists(st.sampled_from(plans), min_size=1, max_size=5)), samples, anchor))
    return made


# how many samples


@pytest.mark.parametrize(
    ("samples", "minimum", "expected"),
    [
        (1000, 2, [100, 200, 500, 1000]),
        (120, 2, [12, 24, 60, 120]),
        (50, 2, [8, 10, 25, 50]),
        (30, 2, [8, 15, 30]),
        (9, 2, [8, 9]),
        (5, 2, [5]),
        (100, 12, [13, 20, 50, 100]),
        (3, 12, [3]),
    ],
)
def test_counts_are_the_rungs(samples: int, minimum: int, expected: list[int]) -> None:
    assert counts(samples, minimum) == expected


@given(st.integers(1, 100_000), st.integers(2, 30))
def test_counts_rise_to_all_samples(samples: int, minimum: int) -> None:
    found = counts(samples, minimum)
    assert found == sorted(set(found))
    assert found[-1] == samples
    assert found[0] >= min(samples, max(8, minimum + 1))
    for share in RUNGS:  # each rung is there, up to the rounding of the share
        exact = math.ceil(Fraction(str(share)) * samples)
        assert any(exact <= count <= exact + 1 for count in found) or exact < found[0]


@pytest.mark.parametrize("samples", [9, 30, 50, 110, 120, 1000])
@pytest.mark.parametrize("wider", [(), WIDER])
def test_a_share_stands_for_the_next_rung(samples: int, wider: tuple[float, ...]) -> None:
    race = Run(samples, wider=wider).race
    assert [race.samples(share) for share in RUNGS] == [
        min(count for count in race.counts if count >= Fraction(str(share)) * samples) for share in RUNGS
    ]
    assert race.samples(0.3) == race.samples(0.5)
    assert race.samples(1e-6) == race.counts[0]
    assert race.samples(0.999) == race.samples(1) == samples
    assert [race.samples(share) for share in wider] == [share * samples for share in wider]
    assert race.counts[-1] == (4 if wider else 1) * samples


@given(st.integers(1, 10_000), st.integers(2, 30))
def test_wider_rungs_come_after_all_the_others(samples: int, minimum: int) -> None:
    assert counts(samples, minimum, WIDER) == [*counts(samples, minimum), 2 * samples, 4 * samples]


def test_metrics_get_more_samples_than_the_fewest_that_they_need() -> None:
    class Greedy(type(metric())):  # type: ignore[misc]
        minimum = 15

    evaluator = Evaluator(small.model(), EXTRACTOR)
    race = Race(evaluator, Greedy(REFERENCE), 60, SEED, 0)
    assert race.counts == [16, 30, 60]
    assert np.isfinite(race.lap([A, B], 16).errors).all()
    fewest = Race(evaluator, Greedy(REFERENCE), 15, SEED, 0).lap([A, B], 15)
    assert np.isfinite([score.value for score in fewest.scores]).all()
    assert np.isnan(fewest.errors).all()


# scores


def test_scores_are_those_of_evaluate() -> None:
    run, plans = Run(limit=PLENTY), [A, B, C, A]
    for samples in (8, 20, 40, 8):
        plain = Evaluator(small.model(), EXTRACTOR).scores(plans, metric(), samples, SEED)
        for found, score in zip(run.lap(plans, samples).scores, plain, strict=True):
            assert found.value == pytest.approx(score.value, rel=1e-4)
            assert (found.samples, found.problem) == (samples, None)


def test_scores_of_wider_rungs_are_those_of_so_many_samples() -> None:
    """At once or rung by rung, they are what an evaluation of as many samples gives, as if there were no rungs."""
    plans = [A, B, C]
    at_once, climbing = Run(wider=WIDER), Run(wider=WIDER, limit=PLENTY)
    for samples in (40, 80, 160):
        plain = Evaluator(small.model(), EXTRACTOR).scores(plans, metric(), samples, SEED)
        for run in (at_once, climbing) if samples == 160 else (climbing,):
            lap = run.lap(plans, samples)
            assert [score.value for score in lap.scores] == pytest.approx([score.value for score in plain], rel=1e-4)
            assert {(score.samples, score.problem) for score in lap.scores} == {(samples, None)}
            assert min(lap.errors) == 0 < max(lap.errors)
    # B and C have their first two steps in common
    assert climbing.evaluator.cost.evaluations == at_once.evaluator.cost.evaluations == (3 + 3 + 1) * 160


@pytest.mark.parametrize("held", [40, 80])
@pytest.mark.parametrize("name", ["fid", "kid", "inception_score"])
def test_scores_with_an_anchor_are_differences_from_it(name: str, held: int) -> None:
    run, plain = Run(limit=PLENTY, name=name, wider=TWICE), Evaluator(small.model(), EXTRACTOR)
    [base] = plain.features([C], held, SEED)
    assert isinstance(base, Features)
    for samples in (8, 20, 40, held):
        lap = run.lap([A, B, C], samples, (C, held))
        for found, features in zip(lap.scores, plain.features([A, B, C], samples, SEED), strict=True):
            assert isinstance(features, Features)
            judge = metric(name)
            expected = judge.value(base) + judge.value(features) - judge.value(base.take(range(samples)))
            assert found.value == pytest.approx(expected, rel=1e-3)
            assert found.samples == samples
        # of the anchor itself nothing is estimated
        assert lap.scores[2].value == pytest.approx(metric(name).value(base), rel=1e-4)


def test_an_anchor_that_is_broken_is_no_anchor() -> None:
    run = Run(model=small.broken_model())
    found = run.lap([B, C], 20, (BROKEN, 40))
    assert found == Run().lap([B, C], 20)


@pytest.mark.parametrize(("name", "sign"), [("fid", 1), ("inception_score", -1)])
def test_plans_that_break_are_worst_and_have_no_error(name: str, sign: int) -> None:
    lap = Run(name=name, model=small.broken_model()).lap([A, B, BROKEN, C], 20, (B, 40))
    assert [lap.scores[i].value for i in (0, 2)] == [sign * math.inf] * 2
    assert np.isnan(lap.errors).tolist() == [True, False, True, False]
    assert min(lap.errors[1], lap.errors[3]) == 0 < max(lap.errors[1], lap.errors[3])
    nothing = Run(name=name, model=small.broken_model()).lap([A, BROKEN], 20)
    assert np.isnan(nothing.errors).all()
    assert all(score.problem == "8 of samples 0 to 7 are not finite" for score in nothing.scores)


# errors


@pytest.mark.parametrize("name", ["fid", "kid", "inception_score"])
def test_the_best_has_no_error_and_the_others_have(name: str) -> None:
    run, judge = Run(100, name=name), metric(name)
    lap = run.lap([A, B, C, ddim(99)], 100)
    values = [score.value for score in lap.scores]
    best = values.index(max(values) if judge.better == "higher" else min(values))
    assert best != 3  # a single step is not the best by any metric
    assert [error == 0 for error in lap.errors] == [i == best for i in range(4)]
    # four steps near the data are better than one far from it, and by more than chance
    assert abs(values[3] - values[best]) > 3 * lap.errors[3]


@pytest.mark.parametrize("name", ["fid", "kid", "inception_score"])
def test_errors_are_how_far_differences_move_from_noise_to_noise(name: str) -> None:
    values, errors = [], []
    for seed in range(50):
        lap = Run(60, name=name, seed=seed, batch_size=64).lap([A, C], 60)
        values.append([score.value for score in lap.scores])
        errors.append(max(lap.errors))
    first, second = np.array(values).T
    assert 0.8 < np.mean(errors) / np.std(first - second, ddof=1) < 1.25
    # and that is less than on noise of their own
    assert np.mean(errors) < 0.9 * np.std(first - np.roll(second, 1), ddof=1)


# what a round costs


@settings(max_examples=12, deadline=None)
@given(rounds(), st.sampled_from([0, 2000, PLENTY]))
def test_a_round_costs_at_most_its_price(asked: list[Round], limit: int) -> None:
    run = Run(limit=limit, wider=TWICE)
    for plans, samples, anchor in asked:
        price = run.race.price(plans, samples, anchor, lambda plan: 3)
        _, spent = run.spent(plans, samples, anchor)
        assert spent <= price
    assert run.race.price(plans, samples, anchor, lambda plan: 3) == 0
    assert run.spent(plans, samples, anchor)[1] == 0


def test_prices_are_exact_where_nothing_begins_alike() -> None:
    run, other = Run(wider=WIDER), ddim(95, 30, 2)
    for plans, samples, anchor, fresh in [
        ([A, B], 8, None, 8 + 8),
        ([A, B, A], 20, None, 12 + 12),
        ([A], 8, None, 0),
        ([A, other], 20, (B, 40), 20 + 40),  # B was forgotten
        ([A, B], 40, (B, 40), 20),
        ([A, B], 80, None, 40 + 40),  # a wider rung adds to what is there
        ([other], 40, (A, 80), 40),
        ([B], 8, (A, 160), 8 + 80),
    ]:
        assert run.race.price(plans, samples, anchor, lambda plan: 3) == 3 * fresh
        assert run.spent(plans, samples, anchor)[1] == 3 * fresh


@pytest.mark.parametrize("solver", ["plms", "dpm_solver"])
def test_prices_count_every_evaluation_of_a_solver(solver: str) -> None:
    run, plan = Run(), Plan.of(solver, [80.0, 50.0, 20.0])
    assert run.race.price([plan], 20, None, lambda plan: nfe(plan, run.evaluator.model)) == run.spent([plan], 20)[1]


def test_an_anchor_of_a_round_with_all_samples_is_paid_for() -> None:
    run = Run()
    run.lap([A], 40, (B, 40))
    price = run.race.price([C], 8, (B, 40), lambda plan: 3)
    assert run.spent([C], 8, (B, 40))[1] <= price


def test_states_that_are_kept_save_work_and_change_nothing() -> None:
    asked: list[Round] = [([B], 20, None), ([C], 20, None), ([ddim(60, 40, 2), A], 40, (C, 40))]
    without, with_states = Run(), Run(limit=PLENTY)
    for number, one in enumerate(asked):
        (first, dear), (second, cheap) = without.spent(*one), with_states.spent(*one)
        assert first == second
        assert cheap < dear or number == 0
    cost = with_states.evaluator.cost
    assert cost.evaluations + cost.saved == without.evaluator.cost.evaluations + without.evaluator.cost.saved


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++", "unipc", "gls"])
def test_what_states_share_is_counted_once(solver: str) -> None:
    """All of it stays where the limit is what the different tensors take, and not where it is a byte less."""
    plans = [Plan.of(solver, times) for times in ([90, 70, 50, 30, 10], [90, 70, 50, 30, 5], [90, 70, 50, 20, 5])]

    def walked(limit: int) -> tuple[int, int]:
        """How many points stay, and the bytes of their different tensors."""
        begun = begin(small.model(), range(4), SEED, limit)
        list(walk(small.model(), plans, range(4), SEED, Cost(), begun=begun))
        tensors = {id(tensor): tensor for point in begun._points.values() for tensor in point.tensors}
        return len(begun._points), sum(tensor.nbytes for tensor in tensors.values())

    points, taken = walked(PLENTY)
    assert points == 8  # the noise and four moves, one other move of the second plan and two of the third
    assert walked(taken)[0] == points > walked(taken - 1)[0]


def test_ticks_are_the_evaluations() -> None:
    run, ticks = Run(limit=PLENTY), []
    run.race.lap([A, B], 8, None, ticks.append)
    run.race.lap([B, C], 20, (A, 40), ticks.append)
    assert sum(ticks) == run.evaluator.cost.evaluations


# rounds that are known from before


def interrupted(asked: list[Round], **options: Any) -> tuple[tuple[Lap, int], tuple[Lap, int]]:
    """The last round's result and cost: undisturbed, and with all before it skipped."""
    whole, resumed = Run(**options), Run(**options)
    for one in asked[:-1]:
        whole.lap(*one)
        resumed.race.skip(*one)
    assert resumed.evaluator.cost.evaluations == 0
    assert resumed.race.price(*asked[-1], lambda plan: 3) == whole.race.price(*asked[-1], lambda plan: 3)
    return whole.spent(*asked[-1]), resumed.spent(*asked[-1])


@settings(max_examples=12, deadline=None)
@given(rounds(2))
def test_after_skipped_rounds_a_race_goes_on_as_if_it_had_run(asked: list[Round]) -> None:
    whole, resumed = interrupted(asked, wider=TWICE)
    assert whole[1] == resumed[1]
    assert whole[0].scores == resumed[0].scores
    np.testing.assert_array_equal(whole[0].errors, resumed[0].errors)


@settings(max_examples=12, deadline=None)
@given(rounds(2), st.sampled_from([2000, PLENTY]))
def test_scores_after_skipped_rounds_are_the_same_whatever_is_kept(asked: list[Round], limit: int) -> None:
    whole, resumed = interrupted(asked, limit=limit, wider=TWICE)
    assert whole[0].scores == resumed[0].scores


@pytest.mark.parametrize("limit", [0, PLENTY])
def test_a_race_that_is_resumed_at_any_round_spends_the_same(limit: int) -> None:
    """Halving and then candidates around an anchor, as a search asks."""
    plans = [ddim(85 - k, 50, 20 - k) for k in range(6)]
    asked: list[Round] = [
        (plans, 8, None),
        (plans[:3], 20, None),
        (plans[:2], 40, None),
        ([ddim(85, 50, 9), ddim(85, 40, 20)], 8, (plans[0], 40)),
        ([ddim(85, 50, 9)], 40, (plans[0], 40)),
    ]
    for first, last in itertools.combinations(range(len(asked) + 1), 2):
        whole, resumed = interrupted(asked[first:last], limit=limit)
        assert whole == resumed


@pytest.mark.parametrize(
    ("asked", "limit", "model"),
    [
        pytest.param(
            [([A, B], 40, None), ([A], 40, None), ([C], 40, None)], PLENTY, None, id="last said in the beginning"
        ),
        pytest.param(
            [([B], 40, None), ([C], 8, None), ([ddim(60, 40, 2)], 40, None)], PLENTY, None, id="ways in later blocks"
        ),
        pytest.param(
            [([A, B], 40, None), ([B], 40, None), ([A], 40, None)], 0, small.broken_model(), id="problems of the gone"
        ),
        pytest.param([([A], 40, (B, 40)), ([C], 8, (B, 40))], 0, None, id="anchor of a round with all samples"),
    ],
)
def test_what_is_paid_after_skipped_rounds_depends_on_the_round_before_alone(
    asked: list[Round], limit: int, model: Model | None
) -> None:
    whole, resumed = interrupted(asked, limit=limit, model=model)
    assert whole[1] == resumed[1]


def test_a_race_is_interrupted_once() -> None:
    """What was skipped is computed at the next lap, and not again at the one after."""
    run, ticks = Run(), []
    run.race.skip([A, B], 20, None)
    run.race.lap([A], 20, None, ticks.append)
    assert sum(ticks) == 3 * 2 * 20
    assert run.evaluator.cost.evaluations == 0
    run.race.lap([A], 20, None, ticks.append)
    assert sum(ticks) == 3 * 2 * 20
