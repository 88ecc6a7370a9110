"""The default search: many starts at a glance, then few candidates with more and more samples."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan
from autodiffusion.strategies._base import RUNGS, WIDER, Strategy, hopeful

FIRST, LAST, POWERS = (0.98, 0.93, 0.85, 0.72, 0.55), (0.01, 0.1, 0.22), (0.7, 1.0, 1.5)
"""The family of starts: shares of the time range where the first and the last node lie, and the power of the curve."""
PARTS = 4
"""In so many parts the starts get their first look, so that a good one is known early."""
LAST_LOOK = 0.2
"""Refining ends when nothing is better with this share of a full score's samples."""
FOR_NUMBERS = 0.6
"""Of what can be afforded, what is left for free numbers, where there are any."""
FEW = 3
"""Plans with all samples; where no more can be afforded than so many, there is nothing to race for."""

Losses: TypeAlias = dict[Plan, float]
Weights: TypeAlias = NDArray[np.float64]
Asking: TypeAlias = Generator[list[Plan], tuple[Losses, Mapping[Plan, float]], None]
"""Yields the plans to score and is sent their losses and errors."""


@dataclass
class Ladder(Strategy):
    """Races starts, explores from the best of them, and refines the best step by step.

    Every comparison begins with few samples. Where most of a field lies within the measured standard error of its best,
    so few samples cannot tell, and first looks take twice as many from then on. From the second part on,
    candidates are scored as differences from the best plan known, the anchor, whose value stands on all samples; what
    looks better so is scored with all samples before it is believed.

    1. Starts: the given ones and a family of curves, in a race over :data:`RUNGS` (successive halving).
    2. Exploring: children of the ``elite`` best by mutation of falling scale, crossover and blending; the best quarter
       gets more samples, the best two all if they promise to join the elite.
    3. Refining: a pattern search (Hooke and Jeeves 1961) over single nodes and over the whole sequence (shift, stretch
       from either end, bend), each move with a step of its own that grows by success and shrinks by failure. Free
       numbers come next, all of a name and single ones, and then times and numbers together. Where nothing is better
       any more, the best are scored with twice the samples, and it goes on from there.

    Attributes:
        explorations: rounds of exploring.
        children: candidates in each of them.
        elite: how many of the best have children.
        scale: standard deviation of the first mutations as a share of the time range; the last ones' is a quarter.
        step: first step of refining as a share of the time range.
        smallest_step: at which refining ends; at least one time step.
        family: whether to try the family of curves, not only the given starts.
        number_step: first step of refining free numbers, as a share of their range.
        most: what the search spends at most, as plans with all samples. The default is a fiftieth of what 500 plans of
            5,000 samples cost, the paper's search.
    """

    explorations: int = 4
    children: int = 12
    elite: int = 4
    scale: float = 0.15
    step: float = 0.03
    smallest_step: float = 0.008
    number_step: float = 0.12
    family: bool = True
    most: float = 100.0
    full: Losses = field(default_factory=dict, init=False)
    """The losses of plans scored with all samples."""
    glance: float = field(default=RUNGS[0], init=False)
    """Share of samples that a candidate's first score stands on, as the spread so far demands."""

    def __post_init__(self) -> None:
        self.check(0, "explorations")
        self.check(1, "elite", "most")
        self.check(4, "children")
        for name in ("scale", "step", "smallest_step", "number_step"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"strategy ladder: {name} = {getattr(self, name)} lies outside 0 to 1")
        self._rng = np.random.default_rng(self.seed)
        self._asking = self._climb()
        self._told: tuple[Losses, Mapping[Plan, float]] | None = None
        self._errors: Mapping[Plan, float] = {}
        self._affordable = math.inf

    @property
    def planned(self) -> int:
        starts = len(set(self.starts)) + (len(FIRST) * len(LAST) * len(POWERS) if self.family else 0)
        exploring = self.explorations * (self.children * (RUNGS[0] + RUNGS[1] / 4) + 2)
        refining = 10 * (2 * (self.space.nodes + 4) * RUNGS[1] + 1)
        turning = 2.5 * 2 * len(self.space.numbers) + 60 * bool(self.space.numbers)
        times = starts * (RUNGS[0] + RUNGS[1] / 3) + 2 * self.elite + exploring + 2 * refining
        return round(min(self.most, times + turning))

    def propose(self, rng: np.random.Generator) -> list[Plan]:
        try:
            return next(self._asking) if self._told is None else self._asking.send(self._told)
        except StopIteration:
            return []

    def tell(self, losses: Sequence[tuple[Plan, float]], errors: Mapping[Plan, float] | None = None) -> None:
        self._told = dict(losses), errors or {}
        if self.share == self.whole:
            self.full |= {plan: loss for plan, loss in losses if math.isfinite(loss)}

    def _climb(self) -> Asking:
        self._affordable = self.limit
        yield from self._race(self._beginnings())
        if self.full:
            yield from self._explore()
            yield from self._finish()

    def _finish(self) -> Asking:
        """Refines; then again with a full score of more samples, so that what is found does not fit its one noise."""
        yield from self._refine()
        if self.space.numbers and self._best():
            yield from self._refine("numbers", self.number_step)
            yield from self._refine("all")
        if len(self.seen) == 1:  # the space has no other plan to compare with
            return
        for self.whole in WIDER:
            best, self.full = self._best(), {}
            yield from self._score(best, self.whole)
            if not self._best():
                return
            yield from self._refine("all")

    def _score(
        self, plans: Sequence[Plan], share: float, anchor: Plan | None = None
    ) -> Generator[list[Plan], tuple[Losses, Mapping[Plan, float]], list[tuple[float, Plan]]]:
        """Asks for the plans' losses, and gives them sorted, best first; those that failed are left out."""
        self.share, self.anchor = share, anchor
        losses, self._errors = yield list(plans)
        ranked = [(losses[plan], plan) for plan in plans if math.isfinite(losses.get(plan, math.inf))]
        return sorted(ranked, key=lambda entry: entry[0])

    def _blurred(self, ranked: list[tuple[float, Plan]]) -> bool:
        """Whether the losses just told spread less than their errors."""
        losses, errors = [loss for loss, _ in ranked], list(self._errors.values())
        return len(losses) > 2 and bool(errors) and float(np.median(errors)) > float(np.std(losses))

    def _beginnings(self) -> list[Plan]:
        """The given starts and the family, as many as can have a first look for a quarter of what can be afforded."""
        plans = list(dict.fromkeys(self.starts))
        if self.family:
            curves = [self.space.curve(*shape) for shape in product(FIRST, LAST, POWERS)]
            new = [plan for plan in dict.fromkeys(curves) if plan not in plans]
            room = 0.25 * self.limit / RUNGS[0] - len(plans)
            if room < len(new):
                new = [new[i] for i in sorted(self._rng.permutation(len(new))[: max(0, int(room))])]
            plans += [plan for part in range(PARTS) for plan in new[part::PARTS]]
        return plans or [self.space.sample(self._rng)]

    def _race(self, field: list[Plan]) -> Asking:
        fewest = int(min(self.elite, max(1, self._affordable // 6)))
        for share in RUNGS if self._affordable > FEW else (1.0,):
            if share < 1 and len(field) <= fewest:
                continue
            if share == RUNGS[0] and len(field) > 2 * PARTS:  # what has been looked at is free when asked for again
                for part in range(1, PARTS):
                    yield from self._score(field[: len(field) * part // PARTS], share)
            ranked = yield from self._score(field, share)
            if not ranked:
                return
            field = hopeful({plan: loss for loss, plan in ranked}, self._errors)[: max(fewest, len(ranked) // 2)]
            if share == RUNGS[0] and self._blurred(ranked):
                self.glance = RUNGS[1]

    def _explore(self) -> Asking:
        for number in range(self.explorations):
            if self.limit < (0.75 if self.space.numbers else 0.35) * self._affordable:
                return
            scale = self.scale * 0.25 ** (number / max(1, self.explorations - 1))
            plans: list[Plan] = []
            self.new(plans, lambda scale=scale: self._child(scale), self.children)  # type: ignore[misc]
            if not plans:
                return
            best = self._best()[0]
            ranked = yield from self._score(plans, self.glance, best)
            if self._blurred(ranked):
                self.glance = RUNGS[1]
            more = [plan for _, plan in ranked[: max(2, len(ranked) // 4)]]
            if more:
                ranked = yield from self._score(more, min(0.5, 2 * self.glance), best)
            worst = max(self.full[plan] for plan in self._best())
            if promising := [plan for loss, plan in ranked[:2] if loss < worst]:
                yield from self._score(promising, self.whole, best)

    def _best(self) -> list[Plan]:
        """The elite: of the plans scored with all samples those of lowest loss.

        Where numbers are free, the best plain plan is always among them: should the others have fitted their noise,
        more samples show it, and the search goes on from there.
        """
        ranked = sorted(self.full, key=lambda plan: self.full[plan])
        tuned = [plan for plan in ranked if any(plan.params)]
        if not tuned:
            return ranked[: self.elite]
        plain = [plan for plan in ranked if not any(plan.params)]
        return sorted(tuned[: max(1, self.elite - 1)] + plain[:1], key=lambda plan: self.full[plan])

    def _child(self, scale: float) -> Plan:
        rng, elite, space = self._rng, self._best(), self.space.plain
        parent = elite[min(int(rng.exponential(1.2)), len(elite) - 1)]
        if len(elite) == 1 or rng.random() > 0.35:
            return space.mutate(parent, rng, 0.5, scale)
        other = elite[rng.integers(len(elite))]
        crossed = space.cross(parent, other, rng)
        child = crossed if rng.random() < 0.5 else space.blend(parent, other, rng.random())
        return child if rng.random() < 0.5 else space.mutate(child, rng, 0.4, scale / 2)

    def _refine(self, what: str = "times", step: float | None = None) -> Asking:
        """Moves the best plan until nothing is better with :data:`LAST_LOOK` of the samples.

        Args:
            what: ``times``, ``numbers`` or ``all``.
            step: the first, as a share of the range.
        """
        anchor, share, step = self._best()[0], self.glance * self.whole, step or self.step
        moves = (self._moves(anchor) if what != "numbers" else []) + (self._turns() if what != "times" else [])
        least = max(self.smallest_step, 1 / (len(self.space.times) - 1))
        steps = [step] * len(moves)
        tried: set[Plan] = set()
        reserved = FOR_NUMBERS * self._affordable if what == "times" and self.space.numbers else 0.0
        while self.limit > reserved:
            best, best_loss = anchor, self.full[anchor]
            for i, weights in enumerate(moves):
                if steps[i] < least:
                    continue
                pushed = [self._push(best, weights, sign * steps[i]) for sign in (1, -1)]
                plans = [plan for plan in dict.fromkeys(pushed) if plan != best and plan not in tried]
                tried.update(plans)
                ranked = (yield from self._score(plans, share, anchor)) if plans else []
                better = bool(ranked) and ranked[0][0] < best_loss
                if better:
                    best_loss, best = ranked[0]
                steps[i] *= 1.3 if better else 0.5
            if best != anchor:
                expected = self.full[anchor] - best_loss
                ranked = yield from self._score([best], self.whole, anchor)
                gained = self.full[anchor] - ranked[0][0] if ranked else -math.inf
                if gained > 0:
                    anchor, tried = best, {best}
                if gained < expected / 4 and share < self.whole:  # what few samples promise does not hold
                    share, tried = min(self.whole, 2 * share), {anchor}
            if max(steps) < least:
                if share >= LAST_LOOK * self.whole:
                    return
                share, steps, tried = 2 * share, [step] * len(moves), {anchor}

    def _push(self, plan: Plan, weights: Weights, distance: float) -> Plan:
        return self.space.push(plan, weights, distance)

    def _moves(self, plan: Plan) -> list[Weights]:
        """Weights of the nodes in each move: the whole sequence first, then single nodes, the last first."""
        nodes = len(plan.steps) + (plan.end is not None)
        falling = np.linspace(1, 0, nodes) if nodes > 1 else np.ones(1)
        whole = [np.ones(nodes), falling, 4 * falling * (1 - falling), 1 - falling]
        single = np.eye(nodes)[::-1]
        return [*(whole if nodes > 1 else []), *single]

    def _turns(self) -> list[Weights]:
        """Weights in each move of free numbers: all of a name first, then single ones, the last first."""
        names = [number.name for _, number in self.space.numbers]
        groups = [np.array([float(name == other) for other in names]) for name in dict.fromkeys(names)]
        single = np.eye(len(names))[::-1]
        return [np.append(np.zeros(self.space.nodes), weights) for weights in [*groups, *single]]


strategy = Ladder
