"""SearchSpace: which plans a search may try, and the operators that stay among them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autodiffusion._errors import InputError
from autodiffusion._plans.free import FreeNumber, OfSteps, values
from autodiffusion._plans.grids import check_steps, grid, spread
from autodiffusion._plans.plan import Option, Plan
from autodiffusion._plans.schedule import NoiseSchedule

Positions = NDArray[np.int64]
"""A plan's nodes as indices into ``SearchSpace.times``, strictly decreasing."""

Values = NDArray[np.float64]
"""A plan's free numbers, in the order of ``SearchSpace.numbers``."""

CONTINUOUS_NODES = 1001
"""How many times a continuous solver may choose from: uniform, as in the paper's DPM-Solver search."""

DIGITS = 4
"""Decimals of a free number that a search tells apart."""


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """All plans of ``steps`` steps of one solver, at ``times``.

    Every operator returns a member of the space. Random numbers come from the generator that is passed in.

    Attributes:
        times: the allowed times, strictly increasing.
        steps: number of steps of a plan, at least 1.
        solver: its name.
        solver_options: its options, the same for every plan.
        free_end: whether the time at which the solver stops is searched too, as the paper does for DPM-Solver;
            otherwise every plan ends in clean data.
        gap: smallest distance of two neighbouring nodes, counted in ``times``.
        free: the numbers that the solver leaves open for each step, where they are searched too; otherwise all plans
            are plain.
    """

    times: tuple[float, ...]
    steps: int
    solver: str
    solver_options: dict[str, Option] = field(default_factory=dict)
    free_end: bool = False
    gap: int = 1
    free: OfSteps = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps = {self.steps} is out of range; a plan has at least 1 step")
        if self.gap < 1:
            raise InputError(f"gap = {self.gap} is out of range; neighbouring steps are at least 1 apart")
        if (self.nodes - 1) * self.gap >= len(self.times):
            raise InputError(
                f"steps = {self.steps} do not fit: {self.nodes} nodes at least {self.gap} apart need more than "
                f"the {len(self.times)} times there are"
            )
        if self.free and len(self.free) != self.steps:
            raise InputError(f"free: has numbers for {len(self.free)} steps; give them for each of {self.steps}")

    @classmethod
    def of(
        cls,
        schedule: NoiseSchedule,
        steps: int,
        solver: str,
        solver_options: dict[str, Option] | None = None,
        *,
        continuous: bool = False,
        free_end: bool = False,
        gap: int = 1,
        free: OfSteps = (),
    ) -> SearchSpace:
        """The space of a model: its training time steps, or 1,001 real times for a ``continuous`` solver or schedule.

        Raises:
            InputError: ``steps`` outside 1 to T, or steps that do not fit ``gap`` apart.
        """
        check_steps(steps, schedule)
        count = CONTINUOUS_NODES if continuous or schedule.continuous else len(schedule)
        times = tuple(float(t) for t in np.linspace(schedule.first, schedule.last, count))
        return cls(times, steps, solver, dict(solver_options or {}), free_end, gap, free)

    @property
    def nodes(self) -> int:
        """How many times make a plan: its steps, and its end where that is free."""
        return self.steps + self.free_end

    @cached_property
    def numbers(self) -> tuple[tuple[int, FreeNumber], ...]:
        """The free numbers with the places of their steps, first step first."""
        return tuple((i, number) for i, numbers in enumerate(self.free) for number in numbers)

    @cached_property
    def plain(self) -> SearchSpace:
        """The same times, without free numbers."""
        return replace(self, free=())

    @cached_property
    def bounds(self) -> tuple[Values, Values]:
        """The least values of the free numbers and the widths of their ranges, ``[len(numbers)]`` each."""
        low = np.array([number.low for _, number in self.numbers], dtype=np.float64)
        return low, np.array([number.high for _, number in self.numbers], dtype=np.float64) - low

    @cached_property
    def _index(self) -> dict[float, int]:
        return {t: i for i, t in enumerate(self.times)}

    def contains(self, plan: Plan) -> bool:
        """Whether ``plan`` is a member."""
        if (plan.solver, plan.solver_options, len(plan.steps)) != (self.solver, self.solver_options, self.steps):
            return False
        if (plan.end is not None) != self.free_end or any(step.skip for step in plan.steps):
            return False
        nodes = self._nodes_of(plan)
        if any(t not in self._index for t in nodes):
            return False
        try:
            values(self.free or ((),) * self.steps, plan.params)
        except InputError:
            return False
        return bool(np.all(-np.diff(self.positions(plan)) >= self.gap))

    def positions(self, plan: Plan) -> Positions:
        """Where the nodes of a member lie in ``times``, ``[nodes]``, first step first."""
        return np.array([self._index[t] for t in self._nodes_of(plan)], dtype=np.int64)

    def values(self, plan: Plan) -> Values:
        """The free numbers of a plan, ``[len(numbers)]``; plain where it says nothing."""
        return np.array([plan.steps[i].params.get(number.name, number.plain) for i, number in self.numbers])

    def plan(self, positions: ArrayLike, values: ArrayLike | None = None) -> Plan:
        """The member nearest to ``positions`` (any real numbers, ``[nodes]``): repaired where they do not fit.

        Args:
            values: its free numbers, ``[len(numbers)]``, clipped where they lie out of range; all plain by default.
        """
        nodes = [self.times[int(i)] for i in self.repair(positions)]
        end = nodes.pop() if self.free_end else None
        plan = Plan.of(self.solver, nodes, end=end, solver_options=self.solver_options)
        if values is None or not self.numbers:
            return plan
        params: list[dict[str, float]] = [{} for _ in plan.steps]
        for (i, number), value in zip(self.numbers, np.asarray(values, dtype=np.float64), strict=True):
            chosen = min(max(round(float(value), DIGITS), number.low), number.high)
            if round(chosen - number.plain, DIGITS):
                params[i][number.name] = chosen
        return plan.tuned(params)

    def repair(self, positions: ArrayLike) -> Positions:
        """Rounded, ordered, inside the space and at least ``gap`` apart; what already fits is unchanged."""
        ordered = np.sort(np.rint(np.asarray(positions, dtype=np.float64)))[::-1]
        return spread(ordered, len(self.times), self.gap).astype(np.int64)

    def nearest(self, times: Iterable[float]) -> Plan:
        """The member nearest to ``nodes`` real times, first step first."""
        return self.plan([self._nearest_position(t) for t in times])

    def named(self, name: str, schedule: NoiseSchedule) -> Plan:
        """The member nearest to a named grid.

        With a free end the grid has one node more, which is the end; one that leaves its last step to go to clean data,
        such as ``trailing``, ends at the least noise instead.
        """
        times = grid(name, self.nodes, schedule, continuous=True)
        if self.free_end:
            whole = grid(name, self.steps, schedule, continuous=True)
            if whole[-1] > schedule.first + 1:
                times = (*whole, schedule.first)
        return self.nearest(times)

    def sample(self, rng: np.random.Generator) -> Plan:
        """A member drawn evenly."""
        # drawing from a line shortened by the gaps and putting them back makes every member equally likely
        shortened = len(self.times) - (self.nodes - 1) * (self.gap - 1)
        drawn = np.sort(rng.choice(shortened, self.nodes, replace=False))
        return self.plan(drawn + np.arange(self.nodes) * (self.gap - 1))

    def mutate(self, plan: Plan, rng: np.random.Generator, probability: float, scale: float = 0.0) -> Plan:
        """Each node moves with ``probability``.

        With ``scale`` 0 it moves to any unused time, evenly drawn (the paper's mutation); otherwise by a normal step of
        ``scale`` times the whole range, and so does each free number.
        """
        positions, values = self.positions(plan), self.values(plan)
        moved = rng.random(self.nodes) < probability
        if scale > 0:
            steps = rng.normal(0, scale * len(self.times), self.nodes)
            # at least one position, in the drawn direction: rounding to no move would break the probability
            steps = np.sign(steps) * np.maximum(np.abs(steps), 1)
            # a step out of the range is taken the other way, for the same reason
            outside = (positions + steps < 0) | (positions + steps > len(self.times) - 1)
            turned = rng.random(len(values)) < probability
            values = values + turned * rng.normal(0, scale, len(values)) * self.bounds[1]
            return self.plan(np.where(moved, positions + np.where(outside, -steps, steps), positions), values)
        unused = np.setdiff1d(np.arange(len(self.times)), positions)
        drawn = rng.choice(unused, int(moved.sum()), replace=False) if len(unused) >= moved.sum() else positions[moved]
        positions[moved] = drawn
        return self.plan(positions, values)

    def curve(self, first: float, last: float, power: float) -> Plan:
        """Nodes from ``first`` to ``last``, shares of the time range, even in its ``power``-th root.

        Power 1 is evenly spaced, a larger one denser at the end (Karras et al. 2022, equation 5, with time for noise).
        """
        ends = first ** (1 / power), last ** (1 / power)
        return self.plan(np.linspace(*ends, self.nodes) ** power * (len(self.times) - 1))

    def push(self, plan: Plan, weights: ArrayLike, distance: float) -> Plan:
        """Moves each node and each free number by its weight times ``distance``, a share of its range.

        Nodes do not pass each other.

        Args:
            weights: ``[nodes + len(numbers)]``, or of the ``[nodes]`` alone; 1 for all nodes shifts the whole sequence,
                a single 1 moves one.
        """
        positions, top = self.positions(plan), len(self.times) - 1
        weights, turns = np.split(np.asarray(weights, dtype=np.float64), [self.nodes])
        turns = turns if len(turns) else np.zeros(len(self.numbers))
        moved = positions + weights * distance * top
        alone = np.flatnonzero(weights)
        if len(alone) == 1:
            i = int(alone[0])
            low = positions[i + 1] + self.gap if i + 1 < self.nodes else 0
            high = positions[i - 1] - self.gap if i else top
            moved[i] = min(max(moved[i], low), high)
        return self.plan(np.clip(moved, 0, top), self.values(plan) + turns * distance * self.bounds[1])

    def blend(self, first: Plan, second: Plan, share: float) -> Plan:
        """The plan whose nodes and free numbers lie between those of two others, ``share`` of the way to ``second``."""
        positions = (1 - share) * self.positions(first) + share * self.positions(second)
        return self.plan(positions, (1 - share) * self.values(first) + share * self.values(second))

    def cross(self, first: Plan, second: Plan, rng: np.random.Generator) -> Plan:
        """Each node, with its step's free numbers, from either parent with equal probability.

        Equal nodes are moved apart.
        """
        choice = rng.random(self.nodes) < 0.5
        along = choice[[i for i, _ in self.numbers]] if self.numbers else np.zeros(0, dtype=bool)
        values = np.where(along, self.values(first), self.values(second))
        return self.plan(np.where(choice, self.positions(first), self.positions(second)), values)

    def _nodes_of(self, plan: Plan) -> Sequence[float]:
        return plan.times if plan.end is None else (*plan.times, plan.end)

    def _nearest_position(self, t: float) -> int:
        right = bisect_left(self.times, t)
        around = [i for i in (right - 1, right) if 0 <= i < len(self.times)]
        return min(around, key=lambda i: abs(self.times[i] - t))
