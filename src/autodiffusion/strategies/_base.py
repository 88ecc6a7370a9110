"""What every strategy is: ask and tell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._names import check_named, known, resolve, with_options
from autodiffusion._plans.plan import Plan
from autodiffusion._spaces.layered import LayeredSpace
from autodiffusion._spaces.space import SearchSpace

RUNGS = (0.1, 0.2, 0.5, 1.0)
"""Shares of a score's full number of samples at which a race compares; nested, so that more adds to what is there."""
WIDER = (2.0, 4.0)
"""Further rungs, on which a search goes on that has found what its full number of samples can tell apart."""
GIVEN = 4
"""What every strategy is made of besides its options: space, starts, seed, layers."""
ENOUGH = 2.5
"""Standard errors by which a plan must be behind to be out of a race before its turn."""


@dataclass
class Strategy(ABC):
    """Base of all strategies. A subclass is a dataclass whose further fields are its options.

    Its choices depend on ``seed`` and on what it was told, on nothing else: asked and told the same again, it does the
    same again. That is how an interrupted search resumes.

    Attributes:
        space: where plans come from.
        starts: plans to begin with, such as the named grids; members of the space.
        seed: of all its random choices.
        layers: where plans that leave out layers come from, if any may; ``space`` then has the whole-network plans of
            as many steps as were asked for, which may cost more than ``layers`` allows, and starts may be members of
            either. What is found must be a member of ``layers``.
    """

    layered: ClassVar[bool] = False
    """Whether it can leave out layers."""

    space: SearchSpace
    starts: Sequence[Plan]
    seed: int
    layers: LayeredSpace | None = None
    rounds: int = field(default=0, init=False)
    """How often it has been asked."""
    seen: set[Plan] = field(default_factory=set, init=False)
    """Every plan it has asked for; with the same share and anchor none is asked for twice, but beside new ones of
    the next round, where it costs nothing."""
    share: float = field(default=1.0, init=False)
    """Of a score's full number of samples, what the plans just asked for are worth; above 0, at most ``whole``."""
    whole: float = field(default=1.0, init=False)
    """The share that a score in full stands on now: 1, or one of :data:`WIDER`."""
    anchor: Plan | None = field(default=None, init=False)
    """A plan scored in full, from which those of the plans just asked for are measured as differences."""
    most: float = field(default=math.inf, init=False)
    """It ends by itself when it has spent as much as so many plans with all samples."""
    limit: float = field(default=math.inf, init=False)
    """How many plans with all samples can still be afforded, in plans of as many steps as those of ``space``."""

    @property
    @abstractmethod
    def planned(self) -> int:
        """About how many plans it will ask for in all; a progress bar's estimate."""

    @abstractmethod
    def propose(self, rng: np.random.Generator) -> list[Plan]:
        """The plans of the next round, best first where only some can be afforded; empty when the search is over."""

    def ask(self, limit: float = math.inf) -> list[Plan]:
        """Plans to score next, with :attr:`share` and :attr:`anchor` as they are then; empty when the search is over.

        Args:
            limit: the plans cost at most as much as so many with all samples.
        """
        self.limit = limit
        plans = self.propose(np.random.default_rng((self.seed, self.rounds)))
        if math.isfinite(limit):
            spent = list(accumulate(self._evaluations(len(plan.steps)) for plan in plans))
            # what is paid for exactly must not fail by rounding
            room = (1 + 1e-9) * limit / self.share * self._evaluations(self.space.steps)
            plans = plans[: bisect_right(spent, room)]
        self.rounds += 1
        self.seen.update(plans)
        return plans

    def _evaluations(self, steps: int) -> int:
        """Network evaluations of a plan of so many steps; without layers all plans have as many, and count as one."""
        return 1 if self.layers is None else sum(self.layers.evaluations(steps))

    def tell(self, losses: Sequence[tuple[Plan, float]], errors: Mapping[Plan, float] | None = None) -> None:
        """What the plans of the last round scored.

        Args:
            losses: lower is better, infinity for those that failed.
            errors: the standard error of a plan's difference from the best of the round, where it was measured.
        """

    def check(self, least: float, *names: str, most: float = math.inf) -> None:
        """Raises :class:`InputError` unless each of these options is from ``least`` to ``most``."""
        for name in names:
            value = getattr(self, name)
            if not least <= value <= most:
                fault = f"lies outside {least:g} to {most:g}" if most < math.inf else f"must be at least {least:g}"
                raise InputError(f"strategy {type(self).__name__.lower()}: {name} = {value} {fault}")

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


def hopeful(losses: Mapping[Plan, float], errors: Mapping[Plan, float]) -> list[Plan]:
    """The plans that are not :data:`ENOUGH` standard errors behind the best, best first.

    Args:
        losses: lower is better; infinity for those that failed, which are left out.
        errors: the standard error of each plan's difference from the best; a plan without one is not ruled out.
    """
    best = min(losses.values(), default=math.inf)
    good = [plan for plan, loss in losses.items() if loss < math.inf]
    far = {plan for plan in good if losses[plan] - best > ENOUGH * errors.get(plan, math.inf)}
    return sorted((plan for plan in good if plan not in far), key=lambda plan: losses[plan])


def _options(name: str) -> set[str]:
    """The options of one of our own strategies."""
    return {field.name for field in fields(resolve("strategies", name)) if field.init}


def build(
    name: str,
    space: SearchSpace,
    starts: Sequence[Plan],
    seed: int,
    options: Mapping[str, Any],
    layers: LayeredSpace | None = None,
) -> Strategy:
    """The strategy of this name with these options.

    Raises:
        InputError: as :func:`check_strategy`, a value that it refuses, or it cannot leave out ``layers``.
    """
    check_strategy(name, options)
    strategy: Strategy = with_options("strategies", name, options, space, starts, seed, layers)
    if layers is not None and not strategy.layered:
        able = [other for other in known("strategies") if resolve("strategies", other).layered]
        raise InputError(f"strategy {name} does not leave out layers; give one that does: {', '.join(able)}")
    return strategy


def check_strategy(name: str, options: Mapping[str, Any]) -> None:
    """Raises :class:`InputError` for an unknown strategy or option, or an option of another type."""
    own = _options(name) if name in known("strategies") else options  # of a user's strategy nobody has the options
    for option in options:
        if option not in own and (of := [other for other in known("strategies") if option in _options(other)]):
            raise InputError(
                f"strategy {name}: option '{option}' is of strategy {' or '.join(of)}; give --strategy too"
            )
    check_named("strategies", name, options, GIVEN)
