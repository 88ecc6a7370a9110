"""Evolutionary search: Algorithm 1 of the paper's appendix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from autodiffusion._plans.plan import Plan
from autodiffusion._spaces.layered import LayeredSpace
from autodiffusion.strategies._base import Strategy

GROWTH = 5
"""Generations of the second stage in which the layers that a step may lose grow to their final number."""


@dataclass
class Evolution(Strategy):
    """Parents are the best so far, over all generations; children come from crossover and mutation, the rest at random.

    The defaults are the paper's for ImageNet 64 (Algorithm 1 and the released configuration). The first population
    holds the starts, mutations of the first start and random plans.

    With layers there are two stages, as in the released code. In the first, generations search the times of the whole
    network, until the best plan stays the same for a generation. In the second, times, layers and the number of
    steps change together, and the largest share of its layers that a step may lose grows by a fifth of
    ``layer_share`` each generation, from what plans of ``space``'s number of steps lose on average to be within the
    budget. Parents that exceed the budget come after all that do not, and have children once they are repaired.

    Attributes:
        population: plans a generation, P of Algorithm 1.
        generations: how many generations are scored, MaxIter.
        parents: how many of the best have children, k of Top-k.
        mutations: children by mutation in a generation, N_m.
        crossovers: children by crossover in a generation, N_c.
        mutation_probability: with which each time step of a mutated plan changes, p; with layers also the layers of
            each step, and the number of steps.
        initial_mutations: mutations of the first start in the first population.
        initial_mutation_probability: with which each of their time steps changes.
        mutation_scale: standard deviation of a local move as a share of the time range, in the second generation; it
            falls geometrically to a tenth in the last. 0 is the paper's mutation: anywhere, evenly.
        stage: generations of the first stage, at most.
        layer_share: by which the largest share of layers that a step may lose grows in the end.
    """

    layered: ClassVar[bool] = True

    population: int = 50
    generations: int = 10
    parents: int = 10
    mutations: int = 25
    crossovers: int = 15
    mutation_probability: float = 0.25
    initial_mutations: int = 25
    initial_mutation_probability: float = 0.1
    mutation_scale: float = 0.0
    stage: int = 5
    layer_share: float = 0.1
    scored: list[tuple[float, Plan]] = field(default_factory=list, init=False)
    """Every finite loss so far with its plan, in the order told."""
    second: int | None = field(default=None, init=False)
    """The generation with which the second stage began."""

    def __post_init__(self) -> None:
        self.check(1, "population", "generations", "parents", "stage")
        self.check(0, "mutations", "crossovers", "initial_mutations")
        self.check(0, "mutation_probability", "initial_mutation_probability", "mutation_scale", "layer_share", most=1)

    @property
    def planned(self) -> int:
        return self.population * self.generations

    def propose(self, rng: np.random.Generator) -> list[Plan]:
        if self.rounds >= self.generations:
            return []
        return self._first(rng) if self.rounds == 0 else self._next(rng)

    def tell(self, losses: Sequence[tuple[Plan, float]], errors: Mapping[Plan, float] | None = None) -> None:
        before = self.best()[:1]
        self.scored.extend((loss, plan) for plan, loss in losses if np.isfinite(loss))
        settled = self.rounds >= self.stage or (self.rounds > 1 and self.best()[:1] == before)
        if self.layers is not None and self.second is None and settled:
            self.second = self.rounds

    def best(self) -> list[Plan]:
        """The parents: the ``parents`` plans of lowest loss, the earlier one first where losses are equal."""
        ranked = [plan for _, plan in sorted(self.scored, key=lambda entry: entry[0])]
        if self.layers is not None and self.second is None:
            ranked = [plan for plan in ranked if self.space.contains(plan)]
        elif self.layers is not None:
            space = self.layers
            ranked.sort(key=lambda plan: not space.contains(plan))  # keeps the order of losses on either side
        return ranked[: self.parents]

    def _first(self, rng: np.random.Generator) -> list[Plan]:
        plans = list(dict.fromkeys(self.starts))[: self.population]
        if whole := [plan for plan in plans if self.space.contains(plan)]:
            first, p = whole[0], self.initial_mutation_probability
            count = min(self.initial_mutations, self.population - len(plans))
            self.new(plans, lambda: self.space.mutate(first, rng, p), count)
        self.new(plans, lambda: self.space.sample(rng), self.population - len(plans))
        return plans

    def _next(self, rng: np.random.Generator) -> list[Plan]:
        parents, plans = self.best(), list[Plan]()
        room, scale, p = self._room(), self._scale(), self.mutation_probability

        def parent() -> Plan:
            plan = parents[rng.integers(len(parents))]
            return plan if room is None else room.repair(plan, rng)

        def mutant() -> Plan:
            if room is None:
                return self.space.mutate(parent(), rng, p, scale)
            plan = room.mutate_layers(room.mutate_times(parent(), rng, p, scale), rng, p)
            return room.mutate_steps(plan, rng) if rng.random() < p else plan

        space = room or self.space
        if parents:
            self.new(plans, mutant, min(self.mutations, self.population))
            count = min(self.crossovers, self.population - len(plans))
            self.new(plans, lambda: space.cross(parent(), parent(), rng), count)
        self.new(plans, lambda: space.sample(rng), self.population - len(plans))
        return plans

    def _room(self) -> LayeredSpace | None:
        """The space of this generation, once layers are left out."""
        if self.layers is None or self.second is None:
            return None
        grown = min(1.0, (self.rounds - self.second + 1) / GROWTH)
        share = share_needed(self.layers, self.space.steps) + grown * self.layer_share
        return self.layers.with_share(min(self.layers.share, share))

    def _scale(self) -> float:
        """The scale of local moves in this generation."""
        progress = (self.rounds - 1) / max(1, self.generations - 2)
        return float(self.mutation_scale * 0.1**progress)


def share_needed(layers: LayeredSpace, steps: int) -> float:
    """The share of its layers that each of ``steps`` steps loses on average in plans within the budget, in [0, 1].

    Where so many steps do not fit into the budget, it is that of the most that do.
    """
    steps = max((count for count in layers.counts if count <= steps), default=layers.counts[0])
    evaluations, costs = layers.evaluations(steps), layers.costs
    over = costs.total([()] * steps, evaluations) - layers.budget
    saved = math.fsum(costs.saved[layer] for layer in layers.layers) / max(1, len(layers.layers))
    if over <= 0 or saved == 0:
        return 0.0
    return min(1.0, math.ceil(over / (sum(evaluations) * saved) - 1e-9) / len(costs.saved))


strategy = Evolution
