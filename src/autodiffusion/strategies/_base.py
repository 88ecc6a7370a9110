"""What every strategy is: ask and tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autodiffusion.names import with_options
from autodiffusion.plan import Plan
from autodiffusion.space import SearchSpace


@dataclass
class Strategy(ABC):
    """Base of all strategies. A subclass is a dataclass whose further fields are its options.

    Its choices depend on ``seed`` and on what it was told, on nothing else: asked and told the same again, it does the
    same again. That is how an interrupted search resumes.

    Attributes:
        space: where plans come from.
        starts: plans to begin with, such as the named grids; members of the space.
        seed: of all its random choices.
    """

    space: SearchSpace
    starts: Sequence[Plan]
    seed: int
    rounds: int = field(default=0, init=False)
    """How often it has been asked."""
    seen: set[Plan] = field(default_factory=set, init=False)
    """Every plan it has asked for; none is asked for twice."""

    @property
    @abstractmethod
    def planned(self) -> int:
        """About how many plans it will ask for in all; a progress bar's estimate."""

    @abstractmethod
    def propose(self, rng: np.random.Generator) -> list[Plan]:
        """The plans of the next round, best first where only some can be afforded; empty when the search is over."""

    def ask(self, limit: int) -> list[Plan]:
        """At most ``limit`` plans to score next, none of them asked for before; empty when the search is over."""
        plans = self.propose(np.random.default_rng((self.seed, self.rounds)))[:limit]
        self.rounds += 1
        self.seen.update(plans)
        return plans

    def tell(self, losses: Sequence[tuple[Plan, float]]) -> None:
        """What the plans of the last round scored: lower is better, infinity for those that failed."""

    def new(self, plans: list[Plan], draw: Callable[[], Plan], count: int) -> None:
        """Appends up to ``count`` plans from ``draw()`` that are neither seen nor in ``plans`` yet.

        Gives up after 100 draws a plan in a row, so that a space with few members ends the search, not hangs it.
        """
        known, wanted, failures = self.seen.union(plans), len(plans) + count, 0
        while len(plans) < wanted and failures < 100:
            plan = draw()
            if plan in known:
                failures += 1
            else:
                plans.append(plan)
                known.add(plan)
                failures = 0


def build(name: str, space: SearchSpace, starts: Sequence[Plan], seed: int, options: Mapping[str, Any]) -> Strategy:
    """The strategy of this name with these options.

    Raises:
        InputError: an unknown strategy or option, or a value that it refuses.
    """
    strategy: Strategy = with_options("strategies", name, options, space, starts, seed)
    return strategy
