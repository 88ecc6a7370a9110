"""Plans that leave out layers: the operators keep to the space and its budget, and change what they say they change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binom, chisquare

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan, Step
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._spaces.costs import Costs
from autodiffusion._spaces.layered import LayeredSpace, once
from autodiffusion._spaces.space import SearchSpace

UNLIKELY = 1e-4


def plms(steps: int) -> tuple[int, ...]:
    """Two evaluations at the first step, as PLMS makes them."""
    return (2, *(1,) * (steps - 1))


def space_of(
    costs: Costs | int, budget: float, steps: tuple[int, int] = (4, 4), times: int = 1000, **options: Any
) -> LayeredSpace:
    schedule, of_times = NoiseSchedule.linear(times), {name: options.pop(name, 0) for name in ("gap", "free_end")}
    made = {
        count: SearchSpace.of(schedule, count, "ddim", free_end=bool(of_times["free_end"]), gap=max(1, of_times["gap"]))
        for count in range(steps[0], steps[1] + 1)
    }
    costs = Costs.layers(costs) if isinstance(costs, int) else costs
    return LayeredSpace(made, *steps, costs, budget, **options)


def plan_of(times: Sequence[float], skips: Sequence[Sequence[int]], end: float | None = None) -> Plan:
    steps = tuple(Step(t=t, skip=frozenset(skip)) for t, skip in zip(times, skips, strict=True))
    return Plan(solver="ddim", steps=steps, end=end)


def skips_of(plan: Plan) -> list[set[int]]:
    return [set(step.skip) for step in plan.steps]


def cost_of(space: LayeredSpace, plan: Plan) -> float:
    """Evaluation by evaluation, layer by layer."""
    total = 0.0
    for step, evaluations in zip(plan.steps, space.evaluations(len(plan.steps)), strict=True):
        for _ in range(evaluations):
            total += space.costs.whole
            for layer, saved in enumerate(space.costs.saved):
                if layer in step.skip:
                    total -= saved
    return total


def check_member(space: LayeredSpace, plan: Plan, name: str = "") -> None:
    """The definition of a member, spelled out."""
    assert space.min_steps <= len(plan.steps) <= space.max_steps, name
    of_times = space.spaces[len(plan.steps)]
    assert (plan.solver, plan.solver_options) == (of_times.solver, of_times.solver_options), name
    assert (plan.end is not None) == of_times.free_end, name
    # times are whole numbers here, their own positions
    nodes = [*plan.times] + [plan.end] * of_times.free_end
    assert all(t in of_times.times for t in nodes), name
    assert all(earlier - later >= of_times.gap for earlier, later in itertools.pairwise(nodes)), name
    count = len(space.costs.saved)
    for step in plan.steps:
        assert step.skip <= set(range(count) if space.free is None else space.free), name
        assert len(step.skip) <= space.share * count + 1e-6, name
    assert cost_of(space, plan) <= space.budget + 1e-9, name
    assert space.contains(plan), name


def assert_share(hits: int, count: int, probability: float) -> None:
    """``hits`` of ``count`` are not unlikely for ``probability``, in either direction."""
    low, high = binom.ppf([UNLIKELY, 1 - UNLIKELY], count, probability)
    assert low <= hits <= high


@st.composite
def spaces(draw: st.DrawFn) -> LayeredSpace:
    """Small spaces, many of them with a budget that binds."""
    times = draw(st.integers(8, 60))
    free_end, gap = draw(st.booleans()), draw(st.integers(1, 3))
    longest = min(7, (times - 1) // gap + 1 - free_end)
    lowest = draw(st.integers(1, longest))
    highest = draw(st.integers(lowest, longest))
    layers = draw(st.integers(1, 8))
    if draw(st.booleans()):
        costs = Costs.layers(layers)
    else:
        saved = draw(st.lists(st.integers(0, 9) | st.floats(0, 3), min_size=layers, max_size=layers))
        rest = draw(st.floats(0.1, 5))
        costs = Costs("macs", math.fsum(saved) + rest, tuple(map(float, saved)))
    evaluations, share = draw(st.sampled_from([once, plms])), draw(st.floats(0, 1))
    free = draw(st.none() | st.sets(st.integers(0, layers - 1)).map(tuple))
    options = {"free": free, "share": share, "evaluations": evaluations, "gap": gap, "free_end": free_end}
    loose = space_of(costs, math.inf, (lowest, highest), times, **options)
    cheapest = costs.cheapest(evaluations(lowest), loose.layers, loose.most)
    dearest = costs.whole * sum(evaluations(highest))
    # at 0 the cheapest plan alone, at 1 every plan fits
    budget = max(cheapest, cheapest + draw(st.sampled_from([0, 0.1, 0.3, 0.6, 1])) * (dearest - cheapest))
    return space_of(costs, budget, (lowest, highest), times, **options)


# every operator returns a member

EXAMPLES, DRAWS = 80, 18
"""Eight operators on so many spaces, so often each: over 11,000 results, 10,000 of them not from ``sample``."""


@settings(max_examples=EXAMPLES, deadline=None)
@given(spaces(), st.integers(0, 2**32), st.floats(0, 1))
def test_operators_stay_in_the_space(space: LayeredSpace, seed: int, probability: float) -> None:
    rng = np.random.default_rng(seed)
    plan, other = space.sample(rng), space.sample(rng)
    check_member(space, plan)
    for _ in range(DRAWS):
        foreign = anything(space, rng)
        made = {
            "sample": space.sample(rng),
            "times": space.mutate_times(plan, rng, probability),
            "times, near": space.mutate_times(plan, rng, probability, 0.05),
            "layers": space.mutate_layers(plan, rng, probability),
            "layers of all": space.mutate_layers(plan, rng, 1.0),
            "steps": space.mutate_steps(plan, rng),
            "cross": space.cross(plan, other, rng),
            "repair": space.repair(foreign, rng),
        }
        for name, result in made.items():
            check_member(space, result, name)
        assert space.repair(made["repair"], rng) is made["repair"]
        assert space.cross(plan, plan, rng) == plan
        plan, other = made["layers"], made["steps"]


def anything(space: LayeredSpace, rng: np.random.Generator) -> Plan:
    """A plan that need not fit at all."""
    steps = rng.integers(1, space.max_steps + 3)
    times = sorted(rng.choice(200, steps + 1, replace=False) / 2, reverse=True)
    skips = [rng.choice(20, rng.integers(0, 12), replace=False) for _ in range(steps)]
    return plan_of(times[:-1], skips, times[-1] if rng.random() < 0.5 else None)


@settings(max_examples=50, deadline=None)
@given(spaces(), st.integers(0, 2**32))
def test_members_of_a_smaller_share_are_members(space: LayeredSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = space.sample(rng)
    most = max(len(step.skip) for step in plan.steps)
    tighter = space.with_share(most / len(space.costs.saved))
    assert tighter.most == most
    check_member(tighter, tighter.repair(plan, rng))
    assert tighter.repair(plan, rng) is plan
    assert tighter.with_share(1.0).contains(plan)


def test_the_generator_decides() -> None:
    space = space_of(22, 60, (3, 6))
    for seed in range(5):
        first, second = ([], [])
        for drawn in (first, second):
            rng = np.random.default_rng(seed)
            plan, other = space.sample(rng), space.sample(rng)
            drawn += [space.cross(plan, other, rng), space.mutate_layers(plan, rng, 0.5), space.mutate_steps(plan, rng)]
        assert first == second


def test_large_networks_are_quick_enough_and_fit() -> None:
    """58 layers of uneven cost, the budget just above the cheapest plan: exchanges are what remains."""
    rng = np.random.default_rng(0)
    costs = Costs("macs", 1e12 + 7, tuple(np.rint(rng.uniform(1e9, 1e10, 58))))
    loose = space_of(costs, math.inf, (10, 10), share=0.4)
    budget = 1.01 * costs.cheapest(once(10), range(58), loose.most)
    space = space_of(costs, budget, (10, 10), share=0.4)
    plan = space.sample(rng)
    for _ in range(20):
        plan = space.mutate_layers(space.cross(plan, space.sample(rng), rng), rng, 0.25)
        check_member(space, plan)


# membership

TABLE_6 = [
    # steps of Table 4 and 5 stand in for those of the two shorter plans, which the table does not name
    (232, (926, 690, 424, 153), {153: [55]}),
    (350, (948, 830, 622, 390, 207, 123), {207: [52]}),
    (580, (971, 856, 744, 676, 647, 572, 441, 305, 137, 85), {676: [30, 10, 39, 4, 15, 46, 49, 54, 8]}),
]
"""N_max, time steps and layers left out: the plans for ADM-G on ImageNet 64x64, 58 layers (appendix, Table 6)."""


@pytest.mark.parametrize(("n_max", "times", "skips"), TABLE_6)
def test_the_papers_plans_are_members(n_max: int, times: Sequence[int], skips: dict[int, list[int]]) -> None:
    space = space_of(58, n_max, (len(times), len(times)))
    plan = plan_of(times, [skips.get(t, []) for t in times])
    left_out = sum(map(len, skips.values()))
    assert space.cost(plan) == 58 * len(times) - left_out <= n_max
    assert space.contains(plan)
    assert not space.with_share((left_out - 0.5) / 58).contains(plan)
    # N_max = 232 is 4 whole networks of 58 layers; a budget of one layer less than the plan's cost refuses it
    assert space.contains(Plan.of("ddim", times))
    assert not space_of(58, space.cost(plan) - 1, (len(times), len(times))).contains(plan)


def members_of(space: LayeredSpace) -> list[Plan]:
    """Every member, from all plans at whole times with any of the network's layers left out."""
    found, count = [], len(space.costs.saved)
    sets = [skip for size in range(count + 1) for skip in itertools.combinations(range(count), size)]
    for steps in range(1, space.max_steps + 2):
        for times in itertools.combinations(reversed(space.spaces[space.min_steps].times), steps):
            for skips in itertools.product(sets, repeat=steps):
                plan = plan_of(times, skips)
                try:
                    check_member(space, plan)
                except AssertionError:
                    assert steps > space.max_steps or not space.contains(plan)
                else:
                    found.append(plan)
    return found


UNEVEN = Costs("macs", 10, (1, 4))

TINY = {
    "layers": (space_of(2, 3, (1, 2), times=3), 3 * 4 + 3 * (16 - 1)),
    "uneven": (space_of(UNEVEN, 20, (1, 2), times=3, evaluations=plms), None),
    "half of the layers": (space_of(UNEVEN, 15, (1, 2), times=3, share=0.5), None),
    "one layer is free": (space_of(3, 5, (1, 2), times=3, free=(1,)), 3 * 2 + 3 * 3),
}


@pytest.mark.parametrize("name", TINY)
def test_every_plan_is_reached_from_every_other(name: str) -> None:
    space, expected = TINY[name]
    members, rng = members_of(space), np.random.default_rng(1)
    assert expected is None or len(members) == expected
    assert len(members) > 10
    index, edges = {plan.digest: i for i, plan in enumerate(members)}, set()
    sampled = {space.sample(rng).digest for _ in range(30 * len(members))}
    assert sampled == set(index)
    for i, plan in enumerate(members):
        for _ in range(10):
            for changed in (
                space.mutate_times(plan, rng, 0.5),
                space.mutate_layers(plan, rng, 0.5),
                space.mutate_steps(plan, rng),
            ):
                edges.add((i, index[changed.digest]))
    graph = csr_array((np.ones(len(edges)), tuple(np.array(sorted(edges)).T)), shape=(len(members),) * 2)
    assert connected_components(graph, connection="strong")[0] == 1


# costs


@settings(max_examples=50, deadline=None)
@given(spaces(), st.integers(0, 2**32))
def test_costs_are_those_of_brute_force(space: LayeredSpace, seed: int) -> None:
    plan = space.sample(np.random.default_rng(seed))
    assert space.cost(plan) == pytest.approx(cost_of(space, plan), rel=1e-12, abs=1e-9)
    least = []
    for size in range(space.most + 1):
        least += [math.fsum(space.costs.saved[i] for i in skip) for skip in itertools.combinations(space.layers, size)]
    for steps in range(1, 5):
        expected = sum(space.evaluations(steps)) * (space.costs.whole - max(least))
        found = space.costs.cheapest(space.evaluations(steps), space.layers, space.most)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_layers_as_the_paper_counts_them() -> None:
    plan = plan_of([926, 690, 424, 153], [[0, 1], [], [], [55]])
    assert Costs.layers(58).of(plan, once(4)) == 4 * 58 - 3
    assert Costs.layers(58).of(plan, plms(4)) == 5 * 58 - 2 * 2 - 1
    with pytest.raises(InputError, match=r"^steps\[3\].skip: layer 55 does not exist; the network has layers 0 to 21$"):
        Costs.layers(22).of(plan, once(4))


# what is drawn

FAR = (900, 700, 500, 300)
FULL = plan_of(FAR, [[0, 1], [3], [], [2, 4, 5]])
"""Costs 4 x 8 - 6 = 26 of 8 layers."""

SPACES = {
    "room": space_of(8, math.inf),
    "no room": space_of(8, 26),
    "share used up": space_of(8, 26, share=3 / 8),
    "uneven": space_of(Costs("macs", 40, (1, 2, 3, 4, 5, 6, 7, 8)), 4 * 40 - 3 - 4 - 14, share=3 / 8),
    "first counts twice": space_of(8, 8 * 5 - 8, evaluations=plms),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("probability", [0.1, 0.25, 1.0])
def test_layers_change_with_the_probability(name: str, probability: float) -> None:
    space, rng, repeats = SPACES[name], np.random.default_rng(2), 400
    assert space.contains(FULL)
    changed = []
    for _ in range(repeats):
        after = space.mutate_layers(FULL, rng, probability)
        assert after.times == FULL.times
        changed.append([a != b for a, b in zip(skips_of(after), skips_of(FULL), strict=True)])
    columns = np.array(changed).T
    for step in columns:
        assert_share(int(step.sum()), repeats, probability)
    for one, other in itertools.combinations(columns, 2):
        assert_share(int((one == other).sum()), repeats, probability**2 + (1 - probability) ** 2)


def kinds(before: Plan, after: Plan, step: int) -> str:
    gone, came = (skips_of(plan)[step] for plan in (after, before))
    assert len(gone - came) <= 1
    assert len(came - gone) <= 1
    return {(1, 0): "add", (0, 1): "drop", (1, 1): "swap", (0, 0): "same"}[len(gone - came), len(came - gone)]


@pytest.mark.parametrize(
    ("name", "step", "possible"),
    [
        ("room", 0, {"add", "drop", "swap"}),
        ("room", 2, {"add"}),
        ("no room", 0, {"add", "swap"}),
        ("share used up", 0, {"add", "swap"}),
        ("share used up", 3, {"swap"}),
    ],
)
def test_kinds_of_change_are_drawn_evenly(name: str, step: int, possible: set[str]) -> None:
    """One step at a time: the others' coins are shown by what did not change."""
    space, rng, counts = SPACES[name], np.random.default_rng(3), dict[str, int]()
    while sum(counts.values()) < 250:
        after = space.mutate_layers(FULL, rng, 0.4)
        found = [kinds(FULL, after, i) for i in range(4)]
        if found[step] != "same" and set(found[:step] + found[step + 1 :]) == {"same"}:
            counts[found[step]] = counts.get(found[step], 0) + 1
    assert set(counts) == possible
    assert len(possible) == 1 or chisquare(list(counts.values())).pvalue > UNLIKELY


def test_layers_are_drawn_evenly() -> None:
    space, rng = space_of(8, math.inf, (1, 1)), np.random.default_rng(4)
    plan, added, dropped, swaps = plan_of([500], [[0, 1, 2]]), [], [], []
    for _ in range(1800):
        after = skips_of(space.mutate_layers(plan, rng, 1.0))[0]
        gone, came = after - {0, 1, 2}, {0, 1, 2} - after
        {(1, 0): added, (0, 1): dropped, (1, 1): swaps}[len(gone), len(came)].append((*gone, *came))
    for drawn, cells in ((added, 5), (dropped, 3), (swaps, 15)):
        counts = np.unique(drawn, axis=0, return_counts=True)[1]
        assert len(counts) == cells
        assert chisquare(counts).pvalue > UNLIKELY


def test_a_step_that_cannot_change_alone_stays() -> None:
    """Both layers that save most are left out everywhere: no change keeps the budget, until it has room for one."""
    costs, rng = Costs("macs", 20, (1, 2, 6, 7)), np.random.default_rng(5)
    plan = plan_of([900, 500], [[2, 3], [2, 3]])
    tight = space_of(costs, 14, (2, 2), share=0.5)
    assert all(tight.mutate_layers(plan, rng, 1.0) == plan for _ in range(20))
    # 4 more is what swapping 6 for 2 costs
    room = space_of(costs, 18, (2, 2), share=0.5)
    seen = {tuple(map(tuple, map(sorted, skips_of(room.mutate_layers(plan, rng, 1.0))))) for _ in range(60)}
    assert seen == {((1, 3), (2, 3)), ((2, 3), (1, 3))}


@pytest.mark.parametrize("scale", [0.0, 0.02])
@pytest.mark.parametrize("probability", [0.1, 0.25, 1.0])
def test_times_change_with_the_probability_and_keep_their_layers(probability: float, scale: float) -> None:
    space, rng, repeats = SPACES["no room"], np.random.default_rng(6), 400
    changed = np.zeros(4, dtype=int)
    before = dict(zip(FAR, skips_of(FULL), strict=True))
    for _ in range(repeats):
        after = space.mutate_times(FULL, rng, probability, scale)
        here = dict(zip(after.times, skips_of(after), strict=True))
        changed += [t not in here for t in FAR]
        assert all(here[t] == before[t] for t in FAR if t in here)
        assert sorted(map(sorted, here.values())) == sorted(map(sorted, before.values()))
        if scale:
            assert list(here.values()) == list(before.values())
    for count in changed:
        assert_share(int(count), repeats, probability)


def test_a_step_more_or_one_less() -> None:
    space, rng, repeats = space_of(8, 34, (3, 6)), np.random.default_rng(7), 1500
    removed, added, inherited = np.zeros(4, dtype=int), np.zeros(5, dtype=int), [0, 0]
    for _ in range(repeats):
        after = space.mutate_steps(FULL, rng)
        assert abs(len(after.steps) - 4) == 1
        if len(after.steps) < 4:
            assert set(after.steps) < set(FULL.steps)
            removed[[t not in after.times for t in FAR].index(True)] += 1
        else:
            place = [t not in FAR for t in after.times].index(True)
            added[place] += 1
            assert [t for t in after.times if t in FAR] == list(FAR)
            new, skips = set(after.steps[place].skip), skips_of(FULL)
            if place == 2:  # between {3} and {}: 26 + 7 layers fit, 26 + 8 fit too
                inherited[new == {3}] += 1
                assert new in ({3}, set())
            assert new in skips[max(0, place - 1) : place + 1]
    assert_share(int(removed.sum()), repeats, 0.5)
    assert chisquare(removed).pvalue > UNLIKELY
    assert chisquare(added).pvalue > UNLIKELY
    assert_share(inherited[0], sum(inherited), 0.5)


@settings(max_examples=50, deadline=None)
@given(spaces(), st.integers(0, 2**32))
def test_the_number_of_steps_changes_wherever_it_can(space: LayeredSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = space.sample(rng)
    steps = len(plan.steps)
    least = {n: space.costs.cheapest(space.evaluations(n), space.layers, space.most) for n in space.spaces}
    possible = {n for n in (steps - 1, steps + 1) if n in least and least[n] <= space.budget}
    found = {len(space.mutate_steps(plan, rng).steps) for _ in range(20)}
    assert found == (possible or {steps})


def test_layers_pay_for_a_step() -> None:
    """Three whole steps of 10 layers use the budget up; a fourth costs 10 that all four leave out."""
    space, rng = space_of(10, 30, (3, 4)), np.random.default_rng(8)
    after = space.mutate_steps(Plan.of("ddim", [900, 500, 100]), rng)
    assert len(after.steps) == 4
    assert sum(map(len, skips_of(after))) == 10


def test_new_steps_keep_the_gap_and_move_no_other_where_there_is_room() -> None:
    space, rng = space_of(4, math.inf, (2, 3), times=30, gap=6), np.random.default_rng(9)
    added = {tuple(sorted({*space.mutate_steps(plan_of([20, 9], [[], []]), rng).times} - {20, 9})) for _ in range(300)}
    longer = {times for times in added if times}
    assert longer == {(t,) for t in (0, 1, 2, 3, 26, 27, 28, 29)}


def test_new_steps_make_room_where_there_is_none() -> None:
    """Steps at 9, 5, 2 of 10 times leave none 3 from all: those with the fourth lie at 9, 6, 3, 0."""
    space = space_of(4, math.inf, (3, 4), times=10, gap=3)
    after = space.mutate_steps(plan_of([9, 5, 2], [[0], [1], [2]]), np.random.default_rng(9))
    assert after.times == (9, 6, 3, 0)
    assert {0} in skips_of(after)
    assert {2} in skips_of(after)


# crossing


def test_crossing_takes_whole_steps_from_either_parent() -> None:
    space, rng, repeats = space_of(8, math.inf), np.random.default_rng(10), 800
    first = plan_of([900, 700, 500, 300], [[0], [1], [2], [3]])
    second = plan_of([880, 680, 480, 280], [[4], [5], [6], [7]])
    taken = []
    for _ in range(repeats):
        child = space.cross(first, second, rng)
        taken.append([step == own for step, own in zip(child.steps, first.steps, strict=True)])
        assert set(child.steps) <= {*first.steps, *second.steps}
    columns = np.array(taken).T
    for step in columns:
        assert_share(int(step.sum()), repeats, 0.5)
    for one, other in itertools.combinations(columns, 2):
        assert_share(int((one == other).sum()), repeats, 0.5)


def test_parents_with_different_numbers_of_steps() -> None:
    space, rng, repeats = space_of(8, math.inf, (3, 5)), np.random.default_rng(11), 800
    long = plan_of([900, 700, 500, 300, 100], [[0], [1], [2], [3], [4]])
    short = plan_of([880, 480, 80], [[5], [6], [7]])
    pairs = [(0, 0), (2, 1), (4, 2)]
    children = [space.cross(*parents, rng) for parents in ((long, short), (short, long)) for _ in range(repeats // 2)]
    assert_share(sum(len(child.steps) == 5 for child in children), repeats, 0.5)
    assert {len(child.steps) for child in children} == {3, 5}
    for i, j in pairs:
        hits = [(long.steps[i] in child.steps, short.steps[j] in child.steps) for child in children]
        assert set(hits) == {(True, False), (False, True)}
        assert_share(sum(from_long for from_long, _ in hits), repeats, 0.5)
    for i in (1, 3):  # unpaired
        assert all((long.steps[i] in child.steps) == (len(child.steps) == 5) for child in children)


def test_crossing_keeps_the_budget_and_repeats_no_time() -> None:
    """Parents of 24 of 32 layers, whole in either half: a child could cost 32, as in the reference code."""
    space, rng = space_of(8, 24, times=20), np.random.default_rng(12)
    first = plan_of([15, 10, 6, 5], [[], [], [0, 1, 2, 3], [0, 1, 2, 3]])
    second = plan_of([10, 6, 5, 4], [[4, 5, 6, 7], [4, 5, 6, 7], [], []])
    over = 0
    for _ in range(300):
        child = space.cross(first, second, rng)
        check_member(space, child)
        over += space.cost(child) == 24 and any(0 < len(skip) < 4 for skip in skips_of(child))
    assert over > 50


def test_crossing_takes_the_end_from_either_parent() -> None:
    space, rng = space_of(2, math.inf, (2, 2), free_end=True), np.random.default_rng(13)
    first, second = plan_of([900, 100], [[0], []], end=10), plan_of([800, 300], [[], [1]], end=200)
    ends: dict[float, list[float | None]] = {100: [], 300: []}
    for _ in range(400):
        child = space.cross(first, second, rng)
        assert set(child.steps) <= {*first.steps, *second.steps}
        ends[child.times[-1]].append(child.end)
    assert set(ends[100]) == {10}
    assert_share(ends[300].count(200), len(ends[300]), 0.5)


# repair


def test_repair_leaves_out_as_few_as_it_must_and_draws_them_evenly() -> None:
    space, rng = space_of(5, 8, (2, 2)), np.random.default_rng(14)
    plan, counts = plan_of([600, 300], [[0], []]), np.zeros((2, 5), dtype=int)
    for _ in range(900):
        after = skips_of(space.repair(plan, rng))
        assert 0 in after[0]
        assert sum(map(len, after)) == 2
        for i, skip in enumerate(after):
            counts[i, sorted(skip - ({0} if i == 0 else set()))] += 1
    assert counts[0, 0] == 0
    assert chisquare(counts.ravel()[1:]).pvalue > UNLIKELY


def test_repair_removes_a_step_only_where_layers_cannot_pay() -> None:
    plan, rng = Plan.of("ddim", [900, 700, 500, 300]), np.random.default_rng(15)
    # 40 of 40 layers; one step may lose 2 of its 10
    enough = space_of(10, 32, (2, 4), share=0.2)
    assert all(len(enough.repair(plan, rng).steps) == 4 for _ in range(20))
    short = space_of(10, 31, (2, 4), share=0.2)
    left = {short.repair(plan, rng).times for _ in range(60)}
    assert left == set(itertools.combinations((900, 700, 500, 300), 3))
    assert all(set(times) < {900, 700, 500, 300} for times in left)


def test_repair_exchanges_layers_where_no_more_may_go() -> None:
    costs, rng = Costs("macs", 30, (1, 2, 3, 9)), np.random.default_rng(16)
    space = space_of(costs, 2 * 30 - 9 - 9, (2, 2), share=0.25)
    assert skips_of(space.repair(plan_of([600, 300], [[0], [1]]), rng)) == [{3}, {3}]
    half = space_of(costs, 2 * 30 - 9 - 1, (2, 2), share=0.25)
    found = [skips_of(half.repair(plan_of([600, 300], [[0], [1]]), rng)) for _ in range(60)]
    assert [{3}, {1}] in found
    assert [{0}, {3}] in found
    assert all(skips in ([{3}, {1}], [{0}, {3}]) for skips in found)


def test_repair_puts_back_what_may_not_go() -> None:
    rng, plan = np.random.default_rng(17), plan_of([600, 300], [[0, 1, 2, 3], [4]])
    assert skips_of(space_of(8, math.inf, (2, 2), free=(1, 3, 5)).repair(plan, rng)) == [{1, 3}, set()]
    halves = [skips_of(space_of(8, math.inf, (2, 2), share=0.25).repair(plan, rng)) for _ in range(100)]
    assert {tuple(sorted(skips[0])) for skips in halves} == set(itertools.combinations(range(4), 2))
    assert all(skips[1] == {4} for skips in halves)


# sampling


def test_samples_have_every_number_of_steps_and_layers_evenly() -> None:
    space, rng = space_of(4, math.inf, (2, 4)), np.random.default_rng(18)
    plans = [space.sample(rng) for _ in range(900)]
    assert chisquare(np.bincount([len(plan.steps) for plan in plans])[2:]).pvalue > UNLIKELY
    skips = [skip for plan in plans for skip in skips_of(plan)]
    assert chisquare(np.bincount([len(skip) for skip in skips], minlength=5)).pvalue > UNLIKELY
    assert chisquare(np.bincount([i for skip in skips for i in skip], minlength=4)).pvalue > UNLIKELY


def test_without_a_share_only_whole_networks_are_drawn() -> None:
    space, rng = space_of(58, 232, (2, 6), share=0.0), np.random.default_rng(19)
    assert space.counts == (2, 3, 4)
    for _ in range(30):
        plan = space.sample(rng)
        assert skips_of(plan) == [set()] * len(plan.steps)
        assert space.mutate_layers(plan, rng, 1.0) == plan


def test_the_share_grows_by_whole_layers() -> None:
    space = space_of(100, 400)
    assert [space.with_share(share).most for share in (0, 0.009, 0.01, 0.29, 0.57, 0.999, 1)] == [
        0,
        0,
        1,
        29,
        57,
        99,
        100,
    ]
    assert space_of(100, 400, free=(3, 5)).most == 2


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": 30, "share": 0.5},
            "budget = 30 layers is below the cheapest plan: 4 steps that keep 11 of 22 layers cost 44",
        ),
        (
            {"budget": 54, "share": 0.5, "evaluations": plms},
            "budget = 54 layers is below the cheapest plan: 4 steps (5 evaluations) that keep 11 of 22 layers cost 55",
        ),
        (
            {"budget": math.nan},
            "budget = nan layers is below the cheapest plan: 4 steps that keep 0 of 22 layers cost 0",
        ),
        ({"free": (3, 22)}, "free: layer 22 does not exist; the network has layers 0 to 21"),
        ({"free": (-1,)}, "free: layer -1 does not exist; the network has layers 0 to 21"),
        ({"steps": (6, 4)}, "min_steps = 6 is above max_steps = 4; it can be at most that"),
        ({"share": 1.5}, "share = 1.5 lies outside 0 to 1"),
        ({"share": math.nan}, "share = nan lies outside 0 to 1"),
    ],
)
def test_impossible_spaces(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(**{"costs": 22, "budget": 88, "steps": (4, 6), **options})
    assert str(caught.value) == message


def test_a_share_too_small_for_the_budget_is_refused() -> None:
    space = space_of(22, 60)
    assert space.with_share(7 / 22).most == 7
    with pytest.raises(
        InputError, match=r"^budget = 60 layers is below the cheapest plan: 4 steps that keep 16 of 22 "
    ):
        space.with_share(6 / 22)


def test_every_number_of_steps_needs_its_times() -> None:
    made = {4: SearchSpace.of(NoiseSchedule.linear(10), 4, "ddim")}
    with pytest.raises(InputError, match=r"^spaces: there is none for 5 steps; give one for each number of steps$"):
        LayeredSpace(made, 4, 5, Costs.layers(2), 20)


@pytest.mark.parametrize(
    ("whole", "saved", "message"),
    [
        (0, (), "whole = 0 macs is not a cost"),
        (math.nan, (), "whole = nan macs is not a cost"),
        (10, (1, -2), r"saved\[1\] = -2 macs is out of range; a layer saves 0 to 10"),
        (10, (math.nan,), r"saved\[0\] = nan macs is out of range"),
        (1e4, (6e3, 5e3), "saved adds up to 11,000 macs; the whole network costs only 10,000"),
    ],
)
def test_impossible_costs(whole: float, saved: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Costs("macs", whole, saved)
