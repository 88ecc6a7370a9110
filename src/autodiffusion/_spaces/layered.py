"""LayeredSpace: plans that leave out layers, under a budget on what is kept, and the operators that stay among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TypeVar

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan, Step
from autodiffusion._spaces.costs import Costs, check_layers, number
from autodiffusion._spaces.space import SearchSpace

Skip = frozenset[int]
"""The layers that a step leaves out."""

Item = TypeVar("Item")


def once(steps: int) -> tuple[int, ...]:
    """One network evaluation a step."""
    return (1,) * steps


@dataclass(frozen=True, eq=False)
class LayeredSpace:
    """Plans of ``min_steps`` to ``max_steps`` steps that leave out layers and cost at most ``budget``.

    After the paper's appendix, section 5.2. Every operator takes members and returns one; :meth:`repair` takes any
    plan. Random numbers come from the generator that is passed in.

    Attributes:
        spaces: the times of plans of each number of steps; they share their times, solver and ``free_end``.
        min_steps: fewest steps of a plan.
        max_steps: most steps of a plan.
        costs: what the network costs with and without each layer.
        budget: the greatest cost of a plan, in the unit of ``costs``.
        free: numbers of the layers that may go; ``None`` is all.
        evaluations: of a number of steps, the network evaluations of each: (2, 1, 1, 1) for PLMS with 4.
        share: the largest share of the network's layers that one step may lose, in [0, 1].

    Raises:
        InputError: a budget below the cheapest possible plan, a free layer that does not exist, steps without a space,
            ``min_steps`` above ``max_steps``, or a share out of range.
    """

    spaces: Mapping[int, SearchSpace]
    min_steps: int
    max_steps: int
    costs: Costs
    budget: float
    free: tuple[int, ...] | None = None
    evaluations: Callable[[int], Sequence[int]] = once
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.min_steps > self.max_steps:
            raise InputError(
                f"min_steps = {self.min_steps} is above max_steps = {self.max_steps}; it can be at most that"
            )
        for steps in range(self.min_steps, self.max_steps + 1):
            if steps not in self.spaces:
                raise InputError(f"spaces: there is none for {steps} steps; give one for each number of steps")
        if not 0 <= self.share <= 1:
            raise InputError(f"share = {self.share} lies outside 0 to 1")
        check_layers(self.layers, len(self.costs.saved), "free:")
        if not self.counts:
            costs = {steps: self._cheapest(steps) for steps in range(self.min_steps, self.max_steps + 1)}
            steps = min(costs, key=lambda steps: costs[steps])
            asked, count = sum(self.evaluations(steps)), len(self.costs.saved)
            raise InputError(
                f"budget = {number(self.budget)} {self.costs.unit} is below the cheapest plan: {steps} steps"
                f"{'' if asked == steps else f' ({asked} evaluations)'} that keep {count - self.most} of {count} "
                f"layers cost {number(costs[steps])}"
            )

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that may go, in rising order."""
        return tuple(range(len(self.costs.saved))) if self.free is None else tuple(sorted(set(self.free)))

    @cached_property
    def most(self) -> int:
        """How many layers one step may lose."""
        # 0.29 * 100 is a little less than 29
        return min(len(self.layers), math.floor(self.share * len(self.costs.saved) + 1e-9))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The numbers of steps that the budget allows, in rising order."""
        within = range(self.min_steps, self.max_steps + 1)
        return tuple(steps for steps in within if self._cheapest(steps) <= self.budget)

    def with_share(self, share: float) -> LayeredSpace:
        """The space where one step may lose another ``share`` of the layers.

        Raises:
            InputError: so small a share that no plan is within the budget.
        """
        return replace(self, share=share)

    def cost(self, plan: Plan) -> float:
        """What a plan costs, in the unit of ``costs``."""
        return self.costs.of(plan, self.evaluations(len(plan.steps)))

    def contains(self, plan: Plan) -> bool:
        """Whether ``plan`` is a member."""
        skips = [step.skip for step in plan.steps]
        if len(skips) not in self.counts or not self.spaces[len(skips)].contains(plan.leaving()):
            return False
        if any(len(skip) > self.most or not skip.issubset(self.layers) for skip in skips):
            return False
        return self._affordable(skips)

    def sample(self, rng: np.random.Generator) -> Plan:
        """A random member: the number of steps is drawn evenly, their times as in :meth:`SearchSpace.sample`.

        Each step leaves out 0 to :attr:`most` layers, the number drawn evenly and then the layers; further ones where
        the budget asks for it.
        """
        plan = self.spaces[int(rng.choice(self.counts))].sample(rng)
        sizes = rng.integers(0, self.most + 1, len(plan.steps))
        skips = [frozenset(int(i) for i in rng.choice(self.layers, size, replace=False)) for size in sizes]
        return self._fit(plan.leaving(skips).steps, plan.end, rng)

    def mutate_times(self, plan: Plan, rng: np.random.Generator, probability: float, scale: float = 0.0) -> Plan:
        """Each time moves with ``probability``, as in :meth:`SearchSpace.mutate`.

        A time that stays keeps its layers; those that move take theirs along, in order. Layers change only where the
        plan costs too much otherwise, as it may with a solver whose steps differ in their evaluations.
        """
        moved = self.spaces[len(plan.steps)].mutate(plan.leaving(), rng, probability, scale)
        stays = {step.t: step for step in plan.steps}
        moving = iter([step for step in plan.steps if step.t not in moved.times])
        steps = [stays[t] if t in stays else next(moving).model_copy(update={"t": t}) for t in moved.times]
        return self._fit(steps, moved.end, rng)

    def mutate_layers(self, plan: Plan, rng: np.random.Generator, probability: float) -> Plan:
        """Each step changes by one layer with ``probability``: one more goes, one comes back, or two swap places.

        Which of these three is drawn evenly from those that the share and the budget allow, and so are the layers.

        The probability is exact, and independent of the other steps, for every step that may lose a further layer or
        can swap two without costing more. A step that can do neither already leaves out the layers that save the most,
        as many as may go: it changes with ``probability`` if the budget has room when its turn comes, and else not.
        """
        skips = [step.skip for step in plan.steps]
        for i in rng.permutation(np.flatnonzero(rng.random(len(skips)) < probability)):
            skips[i] = self._changed(skips, int(i), rng)
        return plan.leaving(skips)

    def mutate_steps(self, plan: Plan, rng: np.random.Generator) -> Plan:
        """One step more or one less, evenly where both are possible; unchanged only where neither is.

        The new step lies between two steps or before the first or after the last, evenly, at a time drawn evenly from
        there, with the layers of one of its neighbours. Further layers go where the budget asks for it.
        """
        steps = list(plan.steps)
        possible = [count for count in (len(steps) - 1, len(steps) + 1) if count in self.counts]
        if not possible:
            return plan
        if rng.choice(possible) < len(steps):
            steps.pop(rng.integers(len(steps)))
        else:
            self._insert(steps, plan.end, rng)
        return self._fit(steps, plan.end, rng)

    def cross(self, first: Plan, second: Plan, rng: np.random.Generator) -> Plan:
        """Whole steps, time and layers together, from either parent; equal times are moved apart.

        The child has as many steps as one of the parents, drawn evenly. Each step of the shorter parent is paired with
        one of the longer, in order and spread over its length, and each pair gives either with equal probability. The
        longer child has the unpaired steps too. Further layers go where the budget asks for it.
        """
        short, long = sorted((first, second), key=lambda parent: len(parent.steps))
        pairs = np.rint(np.linspace(0, len(long.steps) - 1, len(short.steps))).astype(int)
        steps, places = list(long.steps), list(pairs)
        if rng.random() < 0.5:
            steps, places = [long.steps[i] for i in pairs], list(range(len(pairs)))
        for place, step in zip(places, short.steps, strict=True):
            if rng.random() < 0.5:
                steps[place] = step
        # the end of the parent that the last step is from lies below it, if the other's does not
        last = min(step.t for step in steps)
        ends = [parent.end for parent in (first, second) if parent.end is not None and parent.end < last]
        return self._fit(steps, ends[rng.integers(len(ends))] if ends else None, rng)

    def repair(self, plan: Plan, rng: np.random.Generator) -> Plan:
        """A member close to any plan; what fits is unchanged.

        Steps are removed at random where no choice of layers brings the plan within the budget, or there are too many;
        where there are too few, steps are added as in :meth:`mutate_steps`. Times become those of
        :meth:`SearchSpace.nearest`. Layers that may not go come back. Then, until the plan is within the budget,
        further layers go, drawn evenly from all steps that may still lose some; and where none may, the layers left out
        are exchanged, in random order, for those that save the most.
        """
        return plan if self.contains(plan) else self._fit(plan.steps, plan.end, rng)

    def _cheapest(self, steps: int) -> float:
        return self.costs.cheapest(self.evaluations(steps), self.layers, self.most)

    def _affordable(self, skips: Sequence[Skip]) -> bool:
        return self.costs.total(skips, self.evaluations(len(skips))) <= self.budget

    def _fit(self, steps: Sequence[Step], end: float | None, rng: np.random.Generator) -> Plan:
        """The member with these steps, as :meth:`repair` says."""
        steps = sorted(steps, key=lambda step: -step.t)
        end = (end or 0.0) if self.spaces[self.min_steps].free_end else None
        while len(steps) not in self.counts:
            if len(steps) > self.counts[0]:
                steps.pop(rng.integers(len(steps)))
            else:
                self._insert(steps, end, rng)
        space = self.spaces[len(steps)]
        placed = space.nearest([step.t for step in steps] + ([] if end is None else [end]))
        skips = self._afford([step.skip for step in steps], rng)
        return placed.model_copy(
            update={
                "steps": tuple(
                    step.model_copy(update={"t": t, "skip": skip})
                    for step, t, skip in zip(steps, placed.times, skips, strict=True)
                )
            }
        )

    def _afford(self, skips: Sequence[Skip], rng: np.random.Generator) -> list[Skip]:
        """What to leave out at each step, within the share and the budget, from a number of steps in ``counts``."""
        within = [_shuffled(sorted(skip.intersection(self.layers)), rng)[: self.most] for skip in skips]
        skips, saved = [frozenset(skip) for skip in within], self.costs.saved
        if self._affordable(skips):
            return skips
        # going once through a shuffled list draws evenly each time from what is still possible
        for i, layer in _shuffled(list(product(range(len(skips)), self.layers)), rng):
            if len(skips[i]) < self.most and layer not in skips[i] and saved[layer] > 0:
                skips[i] |= {layer}
                if self._affordable(skips):
                    return skips
        # after the last exchange every step leaves out the layers that save the most, which counts says is affordable
        for i, layer in _shuffled([(i, layer) for i, skip in enumerate(skips) for layer in sorted(skip)], rng):
            best = max(set(self.layers) - skips[i], key=lambda other: saved[other], default=layer)
            if saved[best] > saved[layer]:
                skips[i] = skips[i] - {layer} | {best}
                if self._affordable(skips):
                    break
        return skips

    def _changed(self, skips: Sequence[Skip], i: int, rng: np.random.Generator) -> Skip:
        """The layers to leave out at step ``i`` after one change; the same where none is possible."""
        gone, kept = sorted(skips[i]), [layer for layer in self.layers if layer not in skips[i]]
        added = [skips[i] | {layer} for layer in kept] if len(gone) < self.most else []
        dropped = [skips[i] - {layer} for layer in gone]
        swapped = [skips[i] - {back} | {layer} for back, layer in product(gone, kept)]
        # the first that fits in a shuffled list is drawn evenly from those that fit
        for kind in _shuffled([added, dropped, swapped], rng):
            for skip in _shuffled(kind, rng):
                if self._affordable([*skips[:i], skip, *skips[i + 1 :]]):
                    return skip
        return skips[i]

    def _insert(self, steps: list[Step], end: float | None, rng: np.random.Generator) -> None:
        """Adds a step to ``steps`` (decreasing in time), as :meth:`mutate_steps` says."""
        space = self.spaces[max(len(steps) + 1, self.min_steps)]
        nodes = np.searchsorted(space.times, [step.t for step in steps])
        lowest = 0 if end is None else int(np.searchsorted(space.times, end)) + space.gap
        every = np.arange(min(lowest, len(space.times) - 1), len(space.times))
        far = every[np.all(np.abs(every[:, None] - nodes) >= space.gap, axis=1)]
        # where there is no room, the neighbours make way when the member nearest to all times is taken
        positions = far if len(far) else every
        places = np.sum(nodes > positions[:, None], axis=1)
        place = int(rng.choice(np.unique(places)))
        t = space.times[rng.choice(positions[places == place])]
        neighbours = steps[max(0, place - 1) : place + 1]
        steps.insert(place, neighbours[rng.integers(len(neighbours))].model_copy(update={"t": t}))


def _shuffled(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    return [items[i] for i in rng.permutation(len(items))]
