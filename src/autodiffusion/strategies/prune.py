"""The default search with layers: what each layer is worth at each time, then few candidates with more samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.resample import resample
from autodiffusion._spaces.layered import LayeredSpace
from autodiffusion.strategies.ladder import Asking, Ladder, Weights

POWERS = (1.0, 0.5)
"""Of harm: whether harms add up, or their roots."""

OF_TIMES = ("family", "children", "elite", "scale", "step", "smallest_step")
"""Options that the search of the whole network's times has as well."""

Harm: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""By how much the loss grows when a layer is left out at a step, ``[steps, layers that may go]``."""


@dataclass
class Prune(Ladder):
    """Searches the times of the whole network, measures what each layer is worth at each, and leaves out the cheapest.

    1. The ladder searches times for the whole network: for ``steps`` steps, and for as many as the budget pays for.
    2. Each layer is left out of the best plan at one step at a time (at a few neighbouring steps where that would take
       more than ``probes`` plans), in paired differences: its harm.
    3. For each number of steps that the budget allows, plans leave out the layers of least harm per cost saved until
       they fit, with the measured harm and with disturbed ones; together with the whole plans they race.
    4. Exploring from the best: some layers come back and others go, times move, steps come and go, plans cross.
    5. Refining: the ladder's moves of times, and exchanges of layers, in turn.

    The budget is counted in the cost of whole plans, whatever layers a candidate leaves out.

    Attributes:
        probes: plans that measure harm, at most; at least one for each layer that may go.
        variants: disturbed plans for each number of steps and each of :data:`POWERS`.
        first: share of the search's plans that the whole network's times may take.
        exchanges: rounds of exchanging layers each time that it refines.
    """

    layered: ClassVar[bool] = True

    explorations: int = 6
    most: float = 200.0
    probes: int = 120
    variants: int = 3
    first: float = 0.5
    exchanges: int = 4
    harm: Harm = field(default_factory=lambda: np.zeros((0, 0)), init=False)
    """Of the plan that was probed; of steps at other times that of the nearest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            raise InputError("strategy prune: searches which layers to leave out; give --layers, or another strategy")
        self.check(0, "probes", "variants", "exchanges")
        if not 0 < self.first < 1:
            raise InputError(f"strategy prune: first = {self.first} must be above 0 and below 1")

    @property
    def planned(self) -> int:
        return round(0.8 * self.most)

    @property
    def room(self) -> LayeredSpace:
        """Where plans come from."""
        assert self.layers is not None
        return self.layers

    def _climb(self) -> Asking:
        self._affordable = self.limit
        paid = [steps for steps in self.room.counts if self._fits(steps)][-1:]
        counts = list(dict.fromkeys([self.space.steps, *paid]))
        for steps in counts:
            yield from self._whole(steps, self.first / len(counts))
        bases = {len(plan.steps): plan for plan in sorted(self.full, key=lambda plan: -self.full[plan])}
        if self.space.steps not in bases:
            return
        yield from self._probe(bases[self.space.steps])
        yield from self._race(self._pruned(bases))
        if not self._best():
            return
        yield from self._explore()
        yield from self._finish()

    def _fits(self, steps: int) -> bool:
        return self.room.costs.total([()] * steps, self.room.evaluations(steps)) <= self.room.budget

    def _whole(self, steps: int, share: float) -> Asking:
        """Searches the times of so many whole steps for a share of what can be afforded."""
        starts = [plan for plan in self.starts if len(plan.steps) == steps and not any(s.skip for s in plan.steps)]
        shared = {name: getattr(self, name) for name in OF_TIMES}
        ladder = Ladder(self.room.spaces.get(steps, self.space), starts, self.seed, **shared)
        enough = self.limit - share * self._affordable
        while self.limit > enough and (plans := ladder.ask(self.limit - max(enough, 0))):
            if ladder.whole > self.whole:  # wider scores are for what is found, not for what it begins with
                break
            self.share, self.anchor = ladder.share, ladder.anchor
            losses, errors = yield plans
            ladder.tell(list(losses.items()), errors)
        self.glance = max(self.glance, ladder.glance)

    def _probe(self, plan: Plan) -> Asking:
        """Leaves out each layer at each group of steps and notes the harm."""
        steps, layers = len(plan.steps), self.room.layers
        groups = np.array_split(np.arange(steps), max(1, min(steps, self.probes // len(layers))))
        probes = {
            _further(plan, {(int(i), layer) for i in group}): (group, column)
            for group in groups
            for column, layer in enumerate(layers)
        }
        asked, share, found = list(probes), self.glance, dict[Plan, float]()
        while asked:  # those of least harm will go first, and are told apart with more samples
            ranked = yield from self._score(asked, share, plan)
            found |= {probe: loss for loss, probe in ranked}
            asked = [probe for _, probe in ranked[: len(ranked) // 2]] if share < 1 else []
            share = min(1.0, 2.5 * share)
        # a probe that failed, or could not be paid for, harms more than any that did not
        worst = max(found.values(), default=self.full[plan]) + 1
        self.harm = np.zeros((steps, len(layers)))
        for probe, (group, column) in probes.items():
            self.harm[group, column] = (found.get(probe, worst) - self.full[plan]) / len(group)
        self._probed = np.array(plan.times)

    def _pruned(self, bases: dict[int, Plan]) -> list[Plan]:
        """The first plans within the budget: whole ones, and for each number of steps pruned ones."""
        plans = [plan for plan in [*bases.values(), *self.starts] if self.room.contains(plan)]
        for steps in self.room.counts:
            base = self._at(bases.get(steps) or resample(bases[self.space.steps], steps, self.space.times[0]))
            plans += [self._fill(self._thin(base, power, 0.0)) for power in POWERS]
            plans += [self._fill(self._thin(base, power, 0.7)) for power in POWERS for _ in range(self.variants)]
            plans.append(self.room.repair(base, self._rng))
        return list(dict.fromkeys(plans))

    def _at(self, plan: Plan) -> Plan:
        """The plan at the nearest times that the space has."""
        nodes = plan.times if plan.end is None else (*plan.times, plan.end)
        return _like(self.room.spaces[len(plan.steps)].nearest(nodes), plan)

    def _harm(self, plan: Plan) -> Harm:
        """For a plan's steps, from the probed step nearest in time."""
        nearest = np.abs(np.subtract.outer(np.array(plan.times), self._probed)).argmin(1)
        return np.asarray(self.harm[nearest])

    def _thin(self, plan: Plan, power: float, noise: float) -> Plan:
        """Leaves out further layers, those of least harm for what they save first, until the plan is a member.

        Args:
            power: of the harm. With 1 harms add up; with 1/2 their roots do, as those of a squared distance such as
                the FID do when all layers push the samples the same way.
            noise: standard deviation of what is added to the logarithm of each harm.
        """
        room, rng = self.room, self._rng
        skips = [step.skip for step in plan.steps]
        least = 0.01 * float(np.median(np.abs(self.harm))) + 1e-12  # below it harm is noise
        harm = np.maximum(self._harm(plan), least) ** power
        harm = harm * np.exp(noise * rng.normal(0, 1, harm.shape))
        saved = np.array([room.costs.saved[layer] for layer in room.layers])
        counts = room.evaluations(len(skips))
        with np.errstate(divide="ignore"):
            worth = np.where(saved > 0, harm / (saved * np.array(counts)[:, None]), np.inf)
        for place in np.argsort(worth, axis=None, kind="stable"):
            if room.costs.total(skips, counts) <= room.budget:
                break
            i, column = divmod(int(place), len(room.layers))
            if len(skips[i]) < room.most:
                skips[i] |= {room.layers[column]}
        return room.repair(plan.leaving(skips), rng)

    def _fill(self, plan: Plan) -> Plan:
        """Lets those layers come back that the budget pays for, the most harmful first."""
        room, skips, harm = self.room, [step.skip for step in plan.steps], self._harm(plan)
        for place in np.argsort(-harm, axis=None, kind="stable"):
            i, column = divmod(int(place), len(room.layers))
            fuller = [*skips[:i], skips[i] - {room.layers[column]}, *skips[i + 1 :]]
            if harm[i, column] > 0 and room.costs.total(fuller, room.evaluations(len(skips))) <= room.budget:
                skips = fuller
        return plan.leaving(skips)

    def _best(self) -> list[Plan]:
        """The elite among members that leave out layers, and last the best whole plan, whose times are searched."""
        members = sorted((plan for plan in self.full if self.room.contains(plan)), key=lambda plan: self.full[plan])
        whole = [plan for plan in members if not any(step.skip for step in plan.steps)]
        pruned = [plan for plan in members if plan not in whole]
        return pruned[: max(1, self.elite - 1)] + whole[:1] if pruned else members[: self.elite]

    def _child(self, scale: float) -> Plan:
        rng, elite, room = self._rng, self._best(), self.room
        parent = elite[min(int(rng.exponential(1.2)), len(elite) - 1)]
        kind = rng.random()
        if kind < 0.15 and len(room.counts) > 1:
            return room.mutate_steps(parent, rng)
        if kind < 0.3 and len(elite) > 1:
            return room.cross(parent, elite[rng.integers(len(elite))], rng)
        child = self._exchanged(parent, int(rng.integers(1, 4))) if kind < 0.8 else parent
        return child if kind < 0.6 and child != parent else room.mutate_times(child, rng, 0.5, scale)

    def _exchanged(self, plan: Plan, count: int) -> Plan:
        """Up to ``count`` of the layers left out come back at random, and others go in their place."""
        gone = [(i, layer) for i, step in enumerate(plan.steps) for layer in sorted(step.skip)]
        back = [gone[i] for i in self._rng.permutation(len(gone))[:count]]
        skips = [step.skip - {layer for j, layer in back if j == i} for i, step in enumerate(plan.steps)]
        return self._fill(self._thin(plan.leaving(skips), float(self._rng.choice(POWERS)), 1.0))

    def _refine(self, what: str = "times", step: float | None = None) -> Asking:
        yield from super()._refine(what, step)
        yield from self._exchange()

    def _exchange(self) -> Asking:
        """Exchanges layers of the best plan until that does not help any more."""
        share = self.glance * self.whole
        for _ in range(self.exchanges):
            anchor, plans = self._best()[0], list[Plan]()
            self.new(plans, lambda: self._exchanged(anchor, int(self._rng.integers(1, 3))), self.children)  # noqa: B023
            ranked = (yield from self._score(plans, share, anchor)) if plans else []
            if promising := [plan for loss, plan in ranked[:2] if loss < self.full[anchor]]:
                yield from self._score(promising, self.whole, anchor)
            if self._best()[0] == anchor:
                share = min(self.whole, 2 * share)

    def _push(self, plan: Plan, weights: Weights, distance: float) -> Plan:
        return _like(self.room.spaces[len(plan.steps)].push(plan.leaving(), weights, distance), plan)


def _like(plan: Plan, other: Plan) -> Plan:
    """The plan with the layers left out that ``other`` leaves out at the same places."""
    return plan.leaving([step.skip for step in other.steps])


def _further(plan: Plan, pairs: set[tuple[int, int]]) -> Plan:
    """The plan without these further (step, layer)."""
    return plan.leaving([step.skip | {layer for j, layer in pairs if j == i} for i, step in enumerate(plan.steps)])


strategy = Prune
