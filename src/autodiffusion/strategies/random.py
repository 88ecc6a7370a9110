"""Random search: the opponent that every other strategy has to beat (appendix, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autodiffusion._plans.plan import Plan
from autodiffusion.strategies._base import Strategy


@dataclass
class Random(Strategy):
    """The starts, then plans drawn evenly from the space.

    Attributes:
        candidates: how many plans are tried in all.
        population: how many of them at once.
    """

    candidates: int = 500
    population: int = 50

    def __post_init__(self) -> None:
        self.check(1, "candidates", "population")

    @property
    def planned(self) -> int:
        return self.candidates

    def propose(self, rng: np.random.Generator) -> list[Plan]:
        plans: list[Plan] = []
        if self.rounds == 0:
            plans.extend(list(dict.fromkeys(self.starts))[: self.candidates])
        count = min(self.population, self.candidates - len(self.seen)) - len(plans)
        self.new(plans, lambda: self.space.sample(rng), count)
        return plans


strategy = Random
