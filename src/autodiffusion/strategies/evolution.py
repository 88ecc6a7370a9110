"""Evolutionary search: Algorithm 1 of the paper's appendix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autodiffusion.errors import InputError
from autodiffusion.plan import Plan
from autodiffusion.strategies._base import Strategy


@dataclass
class Evolution(Strategy):
    """Parents are the best so far, over all generations; children come from crossover and mutation, the rest at random.

    The defaults are the paper's for ImageNet 64 (Algorithm 1 and the released configuration). The first population
    holds the starts, mutations of the first start and random plans.

    Attributes:
        population: plans a generation, P of Algorithm 1.
        generations: how many generations are scored, MaxIter.
        parents: how many of the best have children, k of Top-k.
        mutations: children by mutation in a generation, N_m.
        crossovers: children by crossover in a generation, N_c.
        mutation_probability: with which each time step of a mutated plan changes, p.
        initial_mutations: mutations of the first start in the first population.
        initial_mutation_probability: with which each of their time steps changes.
        mutation_scale: standard deviation of a local move as a share of the time range, in the second generation; it
            falls geometrically to a tenth in the last. 0 is the paper's mutation: anywhere, evenly.
    """

    population: int = 50
    generations: int = 10
    parents: int = 10
    mutations: int = 25
    crossovers: int = 15
    mutation_probability: float = 0.25
    initial_mutations: int = 25
    initial_mutation_probability: float = 0.1
    mutation_scale: float = 0.0
    scored: list[tuple[float, Plan]] = field(default_factory=list, init=False)
    """Every finite loss so far with its plan, in the order told."""

    def __post_init__(self) -> None:
        for name in ("population", "generations", "parents"):
            if getattr(self, name) < 1:
                raise InputError(f"strategy evolution: {name} = {getattr(self, name)} must be at least 1")
        for name in ("mutations", "crossovers", "initial_mutations"):
            if getattr(self, name) < 0:
                raise InputError(f"strategy evolution: {name} = {getattr(self, name)} must not be negative")
        for name in ("mutation_probability", "initial_mutation_probability", "mutation_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"strategy evolution: {name} = {getattr(self, name)} lies outside 0 to 1")

    @property
    def planned(self) -> int:
        return self.population * self.generations

    def propose(self, rng: np.random.Generator) -> list[Plan]:
        if self.rounds >= self.generations:
            return []
        return self._first(rng) if self.rounds == 0 else self._next(rng)

    def tell(self, losses: Sequence[tuple[Plan, float]], errors: Mapping[Plan, float] | None = None) -> None:
        self.scored.extend((loss, plan) for plan, loss in losses if np.isfinite(loss))

    def best(self) -> list[Plan]:
        """The parents: the ``parents`` plans of lowest loss, the earlier one first where losses are equal."""
        return [plan for _, plan in sorted(self.scored, key=lambda entry: entry[0])[: self.parents]]

    def _first(self, rng: np.random.Generator) -> list[Plan]:
        plans = list(dict.fromkeys(self.starts))[: self.population]
        if plans:
            first, p = plans[0], self.initial_mutation_probability
            count = min(self.initial_mutations, self.population - len(plans))
            self.new(plans, lambda: self.space.mutate(first, rng, p), count)
        self.new(plans, lambda: self.space.sample(rng), self.population - len(plans))
        return plans

    def _next(self, rng: np.random.Generator) -> list[Plan]:
        parents, plans = self.best(), list[Plan]()
        scale = self._scale()

        def parent() -> Plan:
            return parents[rng.integers(len(parents))]

        if parents:
            p = self.mutation_probability
            self.new(plans, lambda: self.space.mutate(parent(), rng, p, scale), min(self.mutations, self.population))
            count = min(self.crossovers, self.population - len(plans))
            self.new(plans, lambda: self.space.cross(parent(), parent(), rng), count)
        self.new(plans, lambda: self.space.sample(rng), self.population - len(plans))
        return plans

    def _scale(self) -> float:
        """The scale of local moves in this generation."""
        progress = (self.rounds - 1) / max(1, self.generations - 2)
        return float(self.mutation_scale * 0.1**progress)


strategy = Evolution
