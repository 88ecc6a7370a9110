"""The search with layers, on losses in closed form: within the budget, near the best there is, better than chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._spaces.costs import Costs
from autodiffusion._spaces.layered import LayeredSpace
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.strategies._base import WIDER, build
from autodiffusion.strategies.prune import Prune

SCHEDULE = NoiseSchedule.linear(1000)
HARM = np.array([0.02, 0.5, 0.07, 0.3, 0.9])
"""What leaving out each layer costs at the first times; at the last it is the other way round."""
MACS = (3.0, 2.0, 1.0, 2.0, 1.0)
Loss = Callable[[Plan], float]


def room(steps: int, budget: float, least: int, most: int) -> LayeredSpace:
    spaces = {k: SearchSpace.of(SCHEDULE, k, "ddim") for k in range(1, max(steps, most) + 1)}
    return LayeredSpace(spaces, least, most, Costs("macs", 10.0, MACS), budget)


def searching(layers: LayeredSpace, steps: int, seed: int = 0, **options: object) -> Prune:
    space = layers.spaces[steps]
    strategy = build("prune", space, [space.named("uniform", SCHEDULE)], seed, options, layers)
    assert isinstance(strategy, Prune)
    return strategy


def toy(plan: Plan) -> float:
    """Time steps matter little, more steps help, and early layers' harm is turned round for late steps."""
    ideal = np.linspace(900, 100, len(plan.steps))
    loss = 3 / len(plan.steps) + float(np.square((np.array(plan.times) - ideal) / 1000).sum())
    for step, ramp in zip(plan.steps, np.linspace(0, 1, len(plan.steps)), strict=True):
        loss += sum(float((1 - ramp) * HARM[i] + ramp * HARM[::-1][i]) for i in step.skip) / len(plan.steps)
    return loss


def rounds(strategy: Prune, loss: Loss = toy, limit: float = math.inf) -> Iterator[list[Plan]]:
    """Asks and tells until the search ends or has spent ``limit``, as the loop does, with exact losses."""
    spent, whole, full = 0.0, 1.0, set[Plan]()
    for _ in range(3000):
        plans = strategy.ask(min(limit, strategy.most) - spent)
        if not plans:
            return
        if strategy.whole > whole:
            whole, full = strategy.whole, set()
        assert 0 < strategy.share <= strategy.whole == whole
        assert whole in (1, *WIDER)
        # measured from a plan whose own score stands on as many samples
        assert strategy.anchor is None or strategy.anchor in full
        full |= set(plans) if strategy.share == whole else set()
        spent += strategy.share * len(plans)
        yield plans
        strategy.tell([(plan, loss(plan)) for plan in plans])
    raise AssertionError("the search does not end")


def scored(strategy: Prune, loss: Loss = toy) -> list[Plan]:
    """Searches to the end; the plans within the budget that were scored in full."""
    full = [plan for plans in rounds(strategy, loss) if strategy.share == strategy.whole for plan in plans]
    return [plan for plan in full if strategy.room.contains(plan)]


def best(layers: LayeredSpace, steps: int) -> float:
    """The least loss of a plan of so many ideal steps within the budget, over all layer sets."""
    sets = [set(c) for n in range(len(MACS) + 1) for c in itertools.combinations(range(len(MACS)), n)]
    base = Plan.of("ddim", [float(round(t)) for t in np.linspace(900, 100, steps)])

    def harm(i: int, skip: set[int]) -> float:  # toy adds up what each step's layers harm
        new = base.steps[i].model_copy(update={"skip": frozenset(skip)})
        return toy(base.model_copy(update={"steps": (*base.steps[:i], new, *base.steps[i + 1 :])})) - toy(base)

    options = [[(10 - sum(MACS[layer] for layer in one), harm(i, one)) for one in sets] for i in range(steps)]
    within = (chosen for chosen in itertools.product(*options) if sum(cost for cost, _ in chosen) <= layers.budget)
    return toy(base) + min(sum(harm for _, harm in chosen) for chosen in within)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_nearly_the_best_there_is(seed: int) -> None:
    layers = room(3, 21.0, 2, 3)
    strategy = searching(layers, 3, seed, most=120)
    found = min(map(toy, scored(strategy)))
    optimum = min(best(layers, 2), best(layers, 3))
    assert optimum == best(layers, 3)  # layers left out pay for the third step
    assert found <= optimum + 0.02
    # as many random members, all of them scored in full, do not come near
    rng = np.random.default_rng(seed)
    assert found < min(toy(layers.sample(rng)) for _ in range(len(strategy.seen))) - 0.02


def test_every_plan_is_a_member_or_of_the_whole_network_or_a_probe() -> None:
    layers = room(4, 26.0, 2, 6)
    strategy = searching(layers, 4)
    probing: list[tuple[float, list[Plan]]] = []
    lengths = set()
    for plans in rounds(strategy):
        outside = [plan for plan in plans if not layers.contains(plan)]
        lengths |= {len(plan.steps) for plan in plans if layers.contains(plan) and strategy.share == 1}
        whole = [plan for plan in outside if not any(step.skip for step in plan.steps)]
        assert all(len(plan.steps) in (2, 4) for plan in whole)
        if len(whole) < len(outside):
            probing.append((strategy.share, plans))
            assert strategy.anchor is not None
            assert {plan.times for plan in plans} == {strategy.anchor.times}
    (_, probes), *closer = probing
    # each layer at each step of one whole plan, and with more samples again and again the half that harms least
    assert probes == [probe for probe in probes if sum(len(step.skip) for step in probe.steps) == 1]
    pairs = [(i, layer) for probe in probes for i, step in enumerate(probe.steps) for layer in step.skip]
    assert sorted(pairs) == sorted(itertools.product(range(4), range(5)))
    for _, again in closer:
        assert again == sorted(probes, key=toy)[: len(again)]
    shares = [share for share, _ in probing]
    assert [len(plans) for _, plans in probing] == [20, 10, 5, 2][: len(probing)]
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert {2, 3, 4} <= lengths  # as many whole steps as fit, and more steps that layers pay for


def test_harm_is_measured_where_it_is() -> None:
    layers = room(4, 30.0, 3, 4)
    strategy = searching(layers, 4)
    next(plans for plans in rounds(strategy) if strategy.harm.size)
    ramp = np.linspace(0, 1, 4)[:, None]
    np.testing.assert_allclose(strategy.harm, ((1 - ramp) * HARM + ramp * HARM[::-1]) / 4, atol=1e-9)
    few = searching(layers, 4, probes=10)  # two groups of steps
    next(plans for plans in rounds(few) if few.harm.size)
    assert len(np.unique(few.harm, axis=0)) == 2


def test_a_failing_probe_is_the_last_to_go() -> None:
    layers = room(3, 24.0, 3, 3)

    def fragile(plan: Plan) -> float:
        return math.inf if any(0 in step.skip for step in plan.steps) else toy(plan)

    strategy = searching(layers, 3, most=120)
    found = min(scored(strategy, fragile), key=toy)
    assert not any(0 in step.skip for step in found.steps)


def test_the_same_seed_and_the_same_answers_ask_the_same() -> None:
    layers = room(3, 21.0, 2, 3)
    first, second = (list(rounds(searching(layers, 3, seed=5, most=60))) for _ in range(2))
    assert first == second
    assert first != list(rounds(searching(layers, 3, seed=6, most=60)))


@pytest.mark.parametrize("limit", [0, 1, 3, 8, 20])
def test_a_small_budget_is_kept(limit: int) -> None:
    layers = room(3, 21.0, 2, 3)
    strategy = searching(layers, 3)
    spent = 0.0
    for plans in rounds(strategy, limit=limit):
        spent += strategy.share * len(plans)
    assert spent <= limit


def test_it_needs_layers() -> None:
    space = SearchSpace.of(SCHEDULE, 3, "ddim")
    with pytest.raises(InputError, match=r"strategy prune: .*--layers"):
        build("prune", space, [], 0, {})


@pytest.mark.parametrize(("name", "value"), [("first", 1.0), ("probes", -1), ("variants", -1), ("most", 0)])
def test_options_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"strategy .*: {name} = "):
        searching(room(3, 21.0, 2, 3), 3, **{name: value})


@pytest.mark.parametrize(("name", "value"), [("family", False), ("smallest_step", 0.2), ("children", 30)])
def test_options_reach_the_search_of_the_whole_networks_times(name: str, value: float) -> None:
    layers = room(3, 21.0, 2, 3)

    def whole(**options: float) -> list[Plan]:
        plans = [plan for asked in rounds(searching(layers, 3, most=120, **options)) for plan in asked]
        first = next(i for i, plan in enumerate(plans) if any(step.skip for step in plan.steps))
        return plans[:first]

    assert whole(**{name: value}) != whole()


@pytest.mark.parametrize(("budget", "expected"), [(30.0, {3}), (21.0, {2, 3})])
def test_times_are_searched_for_the_steps_asked_for_and_as_many_as_are_paid_for(
    budget: float, expected: set[int]
) -> None:
    asked = [plan for plans in rounds(searching(room(3, budget, 2, 3), 3, most=120)) for plan in plans]
    first = next(i for i, plan in enumerate(asked) if any(step.skip for step in plan.steps))
    assert {len(plan.steps) for plan in asked[:first]} == expected
