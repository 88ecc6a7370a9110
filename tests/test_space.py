"""The search space: its operators never leave it, and they draw what they say they draw."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from autodiffusion._errors import InputError
from autodiffusion._plans.free import FreeNumber
from autodiffusion._plans.grids import fitting, grid
from autodiffusion._plans.plan import Plan, Step
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._spaces.space import SearchSpace

UNLIKELY = 1e-4


def space_of(times: int, steps: int, **options: Any) -> SearchSpace:
    return SearchSpace.of(NoiseSchedule.linear(times), steps, "ddim", {"clip": True}, **options)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    times = draw(st.integers(2, 120))
    continuous, free_end = draw(st.booleans()), draw(st.booleans())
    steps = draw(st.integers(1, min(12, times - free_end)))
    count = 1001 if continuous else times
    widest = count if steps + free_end == 1 else (count - 1) // (steps + free_end - 1)
    gap = draw(st.integers(1, min(widest, 40)))
    number = st.builds(
        FreeNumber, st.just(""), low=st.floats(-3, -0.1), high=st.floats(0.1, 9), plain=st.sampled_from([0.0, 0.05])
    )
    names = st.lists(number, max_size=3).map(
        lambda numbers: tuple(replace(number, name=f"number{i}") for i, number in enumerate(numbers))
    )
    free = draw(st.just(()) | st.lists(names, min_size=steps, max_size=steps).map(tuple))
    return space_of(times, steps, continuous=continuous, free_end=free_end, gap=gap, free=free)


def nodes_of(plan: Plan) -> list[float]:
    return [step.t for step in plan.steps] + ([] if plan.end is None else [plan.end])


def is_member(space: SearchSpace, plan: Plan) -> bool:
    """The definition of a member, spelled out node by node."""
    if plan.solver != space.solver or dict(plan.solver_options) != dict(space.solver_options):
        return False
    if len(plan.steps) != space.steps or (plan.end is None) == space.free_end:
        return False
    if any(step.skip for step in plan.steps):
        return False
    for i, step in enumerate(plan.steps):
        allowed = {number.name: number for number in space.free[i]} if space.free else {}
        if any(name not in allowed for name in step.params):
            return False
        if any(not allowed[name].low <= value <= allowed[name].high for name, value in step.params.items()):
            return False
    places = []
    for t in nodes_of(plan):
        here = [i for i, allowed in enumerate(space.times) if allowed == t]
        if len(here) != 1:
            return False
        places.append(here[0])
    return all(before - after >= space.gap for before, after in itertools.pairwise(places))


# every operator returns a member

DRAWS = 8
"""Of each operator on each space: 15 operators on 120 spaces are applied 14,000 times in all."""


@settings(max_examples=120, deadline=None)
@given(spaces(), st.integers(0, 2**32), st.floats(0, 1), st.floats(0.001, 1), st.data())
def test_operators_stay_in_the_space(
    space: SearchSpace, seed: int, probability: float, scale: float, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    schedule = NoiseSchedule.linear(round(space.times[-1]) + 1)
    named = list(fitting(lambda name: grid(name, space.nodes, schedule)))
    positions = st.lists(st.floats(allow_nan=False), min_size=space.nodes, max_size=space.nodes)
    given_positions, given_times = data.draw(positions), data.draw(positions)
    plan, other = space.sample(rng), space.sample(rng)
    for _ in range(DRAWS):
        drawn = np.asarray(rng.normal(scale=2 * len(space.times), size=space.nodes))
        made = {
            "sample": space.sample(rng),
            "replace": space.mutate(plan, rng, probability),
            "replace all": space.mutate(plan, rng, 1.0),
            "move": space.mutate(plan, rng, probability, scale),
            "move all": space.mutate(plan, rng, 1.0, scale),
            "cross": space.cross(plan, other, rng),
            "plan": space.plan(drawn),
            "nearest": space.nearest(drawn),
            "named": space.named(named[rng.integers(len(named))], schedule),
            "curve": space.curve(*rng.random(2), power=rng.uniform(0.2, 8)),
            "push": space.push(plan, rng.normal(size=space.nodes), rng.normal()),
            "push one": space.push(plan, np.eye(space.nodes)[rng.integers(space.nodes)], rng.normal()),
            "turn": space.push(plan, rng.normal(size=space.nodes + len(space.numbers)), rng.normal()),
            "blend": space.blend(plan, other, rng.random()),
            "values": space.plan(drawn, rng.normal(scale=5, size=len(space.numbers))),
        }
        for name, result in made.items():
            assert is_member(space, result), name
            assert space.contains(result), name
        plan, other = made["move"], made["replace"]
    for result in (space.plan(given_positions), space.nearest(given_times)):
        assert is_member(space, result)
        assert space.contains(result)


@settings(max_examples=300)
@given(spaces(), st.data())
def test_repair_leaves_members_alone(space: SearchSpace, data: st.DataObject) -> None:
    numbers = st.floats(allow_nan=False) | st.floats(-5, len(space.times) + 5)
    repaired = space.repair(data.draw(st.lists(numbers, min_size=space.nodes, max_size=space.nodes)))
    assert repaired.min() >= 0
    assert repaired.max() < len(space.times)
    assert np.all(-np.diff(repaired) >= space.gap)
    np.testing.assert_array_equal(space.repair(repaired), repaired)
    np.testing.assert_array_equal(space.repair(data.draw(st.permutations(list(repaired)))), repaired)
    member = space.plan(repaired)
    np.testing.assert_array_equal(space.positions(member), repaired)
    assert space.nearest(nodes_of(member)) == member


def test_repair_moves_as_little_as_it_must() -> None:
    space = space_of(100, 4, gap=10)
    assert space.repair([50, 50, 50, 50]).tolist() == [50, 40, 30, 20]
    assert space.repair([200, 99.4, 3.6, -7]).tolist() == [99, 89, 10, 0]
    assert space.repair([3, 80.4, 20, 60]).tolist() == [80, 60, 20, 3]


def test_nearest_is_nearest() -> None:
    space = space_of(1000, 4, continuous=True, free_end=True)
    times = [910.3, 500.0, 201.7, 55.5, 0.2]
    found = nodes_of(space.nearest(times))
    assert found == [min(space.times, key=lambda t: abs(t - wanted)) for wanted in times]


def test_named_grids_are_the_grids() -> None:
    schedule = NoiseSchedule.cosine(1000)
    assert SearchSpace.of(schedule, 4, "ddim").named("uniform", schedule).times == (750, 500, 250, 0)
    ended = SearchSpace.of(schedule, 3, "dpm_solver", continuous=True, free_end=True).named("linspace", schedule)
    assert ended.times == pytest.approx((999, 666, 333), abs=0.5)
    assert ended.end == 0


# contains


@pytest.mark.parametrize("name", ["trailing", "ays_sd", "ays_sdxl"])
def test_a_grid_that_goes_to_clean_data_from_its_last_step_ends_there(name: str) -> None:
    schedule = NoiseSchedule.linear(1000)
    space = SearchSpace.of(schedule, 4, "dpm_solver++", continuous=True, free_end=True)
    plan = space.named(name, schedule)
    assert plan.times == pytest.approx(grid(name, 4, schedule, continuous=True), abs=1)
    assert plan.end == 0


@pytest.mark.parametrize("gap", [1, 2, 3])
@pytest.mark.parametrize("free_end", [False, True])
def test_contains_its_members_and_no_others(gap: int, free_end: bool) -> None:
    space = space_of(8, 2, gap=gap, free_end=free_end)
    tried = found = 0
    for count, ended in itertools.product((1, 2, 3), (False, True)):
        for nodes in itertools.combinations(sorted({*space.times, 2.5, 9.0}, reverse=True), count + ended):
            plan = Plan.of("ddim", nodes[:count], end=nodes[-1] if ended else None, solver_options={"clip": True})
            assert space.contains(plan) == is_member(space, plan)
            tried, found = tried + 1, found + is_member(space, plan)
    nodes = 2 + free_end
    assert found == math.comb(8 - (nodes - 1) * (gap - 1), nodes)
    assert tried > found


@pytest.mark.parametrize(
    "plan",
    [
        Plan.of("plms", [5, 2], solver_options={"clip": True}),
        Plan.of("ddim", [5, 2]),
        Plan.of("ddim", [5, 2], solver_options={"clip": False}),
        Plan.of("ddim", [5, 2], solver_options={"clip": True, "eta": 0.0}),
        Plan.of("ddim", [5], solver_options={"clip": True}),
        Plan.of("ddim", [5, 2, 1], solver_options={"clip": True}),
        Plan.of("ddim", [5, 2], end=1, solver_options={"clip": True}),
        Plan.of("ddim", [8, 2], solver_options={"clip": True}),
        Plan.of("ddim", [5.5, 2], solver_options={"clip": True}),
        Plan(solver="ddim", solver_options={"clip": True}, steps=(Step(t=5, skip=frozenset({1})), Step(t=2))),
    ],
)
def test_strangers_are_not_members(plan: Plan) -> None:
    space = space_of(8, 2)
    assert space.contains(Plan.of("ddim", [5, 2], solver_options={"clip": True}, origin={"model": "mnist"}))
    assert not space.contains(plan)


# what is drawn


@pytest.mark.parametrize(("gap", "free_end"), [(1, False), (2, False), (2, True)])
def test_sampling_is_even(gap: int, free_end: bool) -> None:
    space, rng = space_of(9, 3, gap=gap, free_end=free_end), np.random.default_rng(1)
    members = math.comb(9 - (space.nodes - 1) * (gap - 1), space.nodes)
    counts: dict[Plan, int] = {}
    for _ in range(60 * members):
        plan = space.sample(rng)
        counts[plan] = counts.get(plan, 0) + 1
    assert len(counts) == members
    assert chisquare(list(counts.values())).pvalue > UNLIKELY


def assert_share(hits: int, count: int, probability: float) -> None:
    """``hits`` of ``count`` are not unlikely for ``probability``, in either direction."""
    low, high = binom.ppf([UNLIKELY, 1 - UNLIKELY], count, probability)
    assert low <= hits <= high


FAR = (900, 700, 500, 300, 100)


@pytest.mark.parametrize("scale", [0.0, 0.0003, 0.02])
@pytest.mark.parametrize("probability", [0.1, 0.25, 1.0])
def test_nodes_change_with_the_probability(probability: float, scale: float) -> None:
    space, rng = space_of(1000, 5), np.random.default_rng(2)
    plan, repeats = space.plan(FAR), 800
    changed = sum(len({*FAR} - {*space.mutate(plan, rng, probability, scale).times}) for _ in range(repeats))
    assert_share(changed, repeats * len(FAR), probability)


def test_no_node_is_privileged() -> None:
    space, rng = space_of(1000, 5), np.random.default_rng(3)
    plan, repeats = space.plan(FAR), 2000
    for scale in (0.0, 0.02):
        kept = [{*space.mutate(plan, rng, 0.4, scale).times} for _ in range(repeats)]
        for node in FAR:
            assert_share(sum(node not in times for times in kept), repeats, 0.4)


def test_replaced_nodes_are_drawn_evenly_from_the_unused() -> None:
    space, rng = space_of(12, 2), np.random.default_rng(4)
    plan = space.plan([9, 3])
    drawn = [t for _ in range(2000) for t in space.mutate(plan, rng, 1.0).times]
    counts = np.bincount(np.array(drawn, dtype=int), minlength=12)
    assert counts[[9, 3]].sum() == 0
    assert chisquare(np.delete(counts, [9, 3])).pvalue > UNLIKELY


def test_local_moves_are_local() -> None:
    space, rng = space_of(1000, 5), np.random.default_rng(5)
    plan, scale = space.plan(FAR), 0.02
    moves = [np.subtract(space.mutate(plan, rng, 1.0, scale).times, FAR) for _ in range(1000)]
    # a normal step of 20, whose part between -1 and 1 is moved out to there
    assert np.std(moves) == pytest.approx(scale * 1000, rel=0.05)
    assert abs(np.mean(moves)) < 5 * scale * 1000 / math.sqrt(np.size(moves))
    assert np.abs(moves).min() == 1


@pytest.mark.parametrize("free_end", [False, True])
def test_crossing_takes_each_node_from_either_parent(free_end: bool) -> None:
    space, rng = space_of(1000, 5, free_end=free_end), np.random.default_rng(6)
    first = np.array([950, 800, 600, 400, 250, 50][: space.nodes])
    second = first - 40
    parents, repeats = (space.plan(first), space.plan(second)), 1500
    taken = np.array([np.array(nodes_of(space.cross(*parents, rng))) == first for _ in range(repeats)])
    others = np.array([np.array(nodes_of(space.cross(*parents, rng))) == second for _ in range(repeats)])
    for choice in (taken, others):
        for node in choice.T:
            assert_share(int(node.sum()), repeats, 0.5)
        for one, other in itertools.combinations(choice.T, 2):  # one choice says nothing about another
            assert_share(int((one == other).sum()), repeats, 0.5)
    # and nothing is from elsewhere
    for _ in range(50):
        child = np.array(nodes_of(space.cross(*parents, rng)))
        assert np.all((child == first) | (child == second))


def test_crossing_a_plan_with_itself_changes_nothing() -> None:
    space, rng = space_of(50, 4, gap=3), np.random.default_rng(7)
    for _ in range(20):
        plan = space.sample(rng)
        assert space.cross(plan, plan, rng) == plan


def test_the_generator_decides() -> None:
    space, other = space_of(1000, 4), space_of(1000, 4)
    for seed in range(5):
        first, second = np.random.default_rng(seed), np.random.default_rng(seed)
        assert space.sample(first) == other.sample(second)
        assert space.mutate(space.plan(FAR[:4]), first, 0.5) == other.mutate(other.plan(FAR[:4]), second, 0.5)
    assert len({space.sample(np.random.default_rng(seed)) for seed in range(20)}) == 20


def test_full_space_has_one_member() -> None:
    space, rng = space_of(5, 5), np.random.default_rng(8)
    whole = space.sample(rng)
    assert whole.times == (4, 3, 2, 1, 0)
    assert space.mutate(whole, rng, 1.0) == whole == space.mutate(whole, rng, 1.0, 0.5)


# curves, pushes and blends


@pytest.mark.parametrize("free_end", [False, True])
def test_a_curve_of_power_one_is_even(free_end: bool) -> None:
    space = space_of(1001, 4, free_end=free_end)
    found = nodes_of(space.curve(0.9, 0.1, 1))
    assert found == np.rint(np.linspace(900, 100, space.nodes)).tolist()


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize(("first", "last"), [(0.98, 0.01), (1.0, 0.0), (0.55, 0.22)])
def test_a_curve_ends_where_it_should_and_is_denser_at_the_end_with_power(
    first: float, last: float, power: float
) -> None:
    found = nodes_of(space_of(10_001, 6).curve(first, last, power))
    assert (found[0], found[-1]) == (round(first * 10_000), round(last * 10_000))
    bends = np.diff(-np.diff(found))
    assert np.all(np.sign(np.where(np.abs(bends) < 2, 0, bends)) == np.sign(1 - power))


def test_a_curve_is_that_of_karras() -> None:
    """Karras et al. 2022, equation 5, node by node."""
    found = nodes_of(space_of(1001, 5).curve(0.95, 0.05, 7))
    roots = [0.95 ** (1 / 7) + i / 4 * (0.05 ** (1 / 7) - 0.95 ** (1 / 7)) for i in range(5)]
    assert found == [round(1000 * root**7) for root in roots]


def test_pushing_all_nodes_shifts_the_sequence() -> None:
    space = space_of(1001, 3, free_end=True)
    plan = space.plan([800, 500, 200, 150])
    assert nodes_of(space.push(plan, np.ones(4), 0.0304)) == [830, 530, 230, 180]
    assert nodes_of(space.push(plan, np.ones(4), -0.0996)) == [700, 400, 100, 50]
    # what would leave the range stays at its end, the gap kept
    assert nodes_of(space.push(plan, np.ones(4), -0.3)) == [500, 200, 1, 0]
    assert nodes_of(space.push(plan, [1, 0.5, 0, 0], 0.1)) == [900, 550, 200, 150]


@given(spaces(), st.integers(0, 2**32), st.floats(-2, 2), st.data())
def test_a_node_that_is_pushed_alone_stays_between_its_neighbours(
    space: SearchSpace, seed: int, distance: float, data: st.DataObject
) -> None:
    plan, node = space.sample(np.random.default_rng(seed)), data.draw(st.integers(0, space.nodes - 1))
    before, top = space.positions(plan), len(space.times) - 1
    after = space.positions(space.push(plan, np.eye(space.nodes)[node], distance))
    np.testing.assert_array_equal(np.delete(after, node), np.delete(before, node))
    free = [i for i in range(top + 1) if all(abs(i - other) >= space.gap for other in np.delete(before, node))]
    above = before[node - 1] if node else top + 1
    below = before[node + 1] if node + 1 < space.nodes else -1
    reached = [i for i in free if below < i < above]
    wanted = before[node] + distance * top
    assert after[node] in reached
    assert abs(after[node] - wanted) <= min(abs(i - wanted) for i in reached) + 1e-6


@given(spaces(), st.integers(0, 2**32), st.data())
def test_no_distance_and_no_weight_change_nothing(space: SearchSpace, seed: int, data: st.DataObject) -> None:
    plan = space.sample(np.random.default_rng(seed))
    weights = data.draw(st.lists(st.floats(-1, 1), min_size=space.nodes, max_size=space.nodes))
    assert space.push(plan, weights, 0.0) == plan
    assert space.push(plan, np.zeros(space.nodes), 0.3) == plan


@given(spaces(), st.integers(0, 2**32), st.floats(0, 1))
def test_a_blend_lies_between_its_parents(space: SearchSpace, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng), space.sample(rng)
    assert space.blend(first, second, 0.0) == first
    assert space.blend(first, second, 1.0) == second
    assert space.blend(first, first, share) == first
    a, b, child = (space.positions(plan) for plan in (first, second, space.blend(first, second, share)))
    assert np.all((child >= np.minimum(a, b)) & (child <= np.maximum(a, b)))
    assert np.abs(child - (a + share * (b - a))).max() <= 1


# impossible spaces


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0 is out of range"),
        ({"steps": -2}, "steps = -2 is out of range"),
        ({"steps": 11}, "steps = 11 is out of range"),
        ({"steps": 2, "gap": 0}, "gap = 0 is out of range"),
        ({"steps": 2, "gap": 10}, "steps = 2 do not fit"),
        ({"steps": 4, "gap": 4}, "steps = 4 do not fit"),
        ({"steps": 3, "gap": 4, "free_end": True}, "steps = 3 do not fit"),
        ({"steps": 10, "free_end": True}, "steps = 10 do not fit"),
        ({"steps": 3, "gap": 501, "continuous": True}, "steps = 3 do not fit"),
    ],
)
def test_impossible_spaces(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(10, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 10},
        {"steps": 2, "gap": 9},
        {"steps": 4, "gap": 3},
        {"steps": 1, "gap": 99},
        {"steps": 9, "free_end": True},
    ],
)
def test_barely_possible_spaces(options: dict[str, Any]) -> None:
    space = space_of(10, **options)
    assert is_member(space, space.sample(np.random.default_rng(0)))


def test_unknown_grid() -> None:
    with pytest.raises(InputError, match=r"grid 'unifrm' is unknown \(did you mean 'uniform'"):
        space_of(10, 3).named("unifrm", NoiseSchedule.linear(10))


# free numbers

FREE = tuple((FreeNumber("data", -2, 3), FreeNumber("noise", -1, 5, 0.5))[: i + 1] for i in range(2))


def test_values_are_those_of_the_plan() -> None:
    space = space_of(1000, 2, free=FREE)
    assert [(i, number.name) for i, number in space.numbers] == [(0, "data"), (1, "data"), (1, "noise")]
    plan = space.plan([800, 300], [0.25, 0, 7])
    assert plan.params == ({"data": 0.25}, {"noise": 5.0})  # what is plain is not said, what lies outside is clipped
    np.testing.assert_array_equal(space.values(plan), [0.25, 0, 5])
    np.testing.assert_array_equal(space.values(space.plan([800, 300])), [0, 0, 0.5])
    assert space.plan([800, 300], [0, 0, 0.5]) == space.plan([800, 300])
    assert space.plain.contains(space.plan([800, 300]))
    assert not space.plain.contains(plan)


def test_a_space_tells_apart_four_decimals() -> None:
    space = space_of(1000, 2, free=FREE)
    assert space.plan([800, 300], [0.12344, 1 / 3, 0.5]).params == ({"data": 0.1234}, {"data": 0.3333})


def test_what_is_plain_stays_so_whatever_its_decimals() -> None:
    space = space_of(1000, 2, free=((FreeNumber("eta", 0, 1, 1 / 3),),) * 2)
    plain = space.plan([800, 300])
    assert space.plan([800, 300], space.values(plain)) == plain
    assert space.plan([800, 300], [0.3334, 0.3332]).params == ({"eta": 0.3334}, {"eta": 0.3332})


def test_pushing_moves_free_numbers_by_their_ranges() -> None:
    space = space_of(1001, 2, free=FREE)
    plan = space.plan([800, 300], [0.5, 1, 2])
    turned = space.push(plan, [0, 0, 1, -0.5, 0], 0.1)
    assert turned.times == plan.times
    np.testing.assert_allclose(space.values(turned), [1.0, 0.75, 2])
    both = space.push(plan, [1, 1, 0, 0, 1], 0.1)
    assert both.times == (900, 400)
    np.testing.assert_allclose(space.values(both), [0.5, 1, 2.6])
    np.testing.assert_allclose(space.values(space.push(plan, [1, 0], 0.1)), [0.5, 1, 2])


def test_free_numbers_blend_and_come_along_with_their_steps() -> None:
    space, rng = space_of(1001, 2, free=FREE), np.random.default_rng(9)
    first, second = space.plan([800, 300], [0, 1, 2]), space.plan([900, 400], [2, -1, 4])
    np.testing.assert_allclose(space.values(space.blend(first, second, 0.25)), [0.5, 0.5, 2.5])
    parents = {step.t: step.params for plan in (first, second) for step in plan.steps}
    children = [space.cross(first, second, rng) for _ in range(40)]
    assert all(step.params == parents[step.t] for child in children for step in child.steps)
    assert len(set(children)) == 4


def test_local_moves_turn_free_numbers_with_the_probability() -> None:
    space, rng, repeats = space_of(1000, 2, free=FREE), np.random.default_rng(10), 800
    plan = space.plan([800, 300], [0.5, 0.5, 2])
    moves = np.array([space.values(space.mutate(plan, rng, 0.3, 0.02)) - space.values(plan) for _ in range(repeats)])
    assert_share(int((moves != 0).sum()), moves.size, 0.3)
    for move, width in zip(moves.T, (5, 5, 6), strict=True):
        assert np.std(move[move != 0]) == pytest.approx(0.02 * width, rel=0.15)


def test_free_numbers_are_for_each_step() -> None:
    with pytest.raises(InputError, match="has numbers for 2 steps; give them for each of 3"):
        space_of(1000, 3, free=FREE)
