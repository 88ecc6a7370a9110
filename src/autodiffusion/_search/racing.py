"""Racing: a strategy's candidates on one noise, with as many samples as their comparison is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from autodiffusion._evaluation.evaluate import Evaluator, Score, score_of
from autodiffusion._evaluation.pool import Pool
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import Floats
from autodiffusion._sampling.sampling import Cost, Tick
from autodiffusion.features import Features
from autodiffusion.metrics import Metric
from autodiffusion.strategies._base import RUNGS

LEAST = 8
"""Samples below which no score says anything."""

Anchor: TypeAlias = tuple[Plan, int]
"""A plan from which others are measured as differences, and the number of samples that its own value stands on."""


@dataclass(frozen=True)
class Lap:
    """What one round of a race gives.

    Attributes:
        scores: of the plans, in their order. Where there is an anchor, the values are estimates for its number of
            samples: its value, and the plan's difference from it on the samples that the plan has. Of a first look
            they are estimates for ever more samples.
        errors: for each plan the standard error of the difference from the best, measured over the samples of the two
            on the same noise; 0 for the best, not a number where there is none.
    """

    scores: list[Score]
    errors: list[float]


class Race:
    """Scores plans by one metric on one noise, at growing numbers of samples.

    What two neighbouring rounds have in common is kept: features of plans that come again, and the states on their way.
    Everything else is forgotten, so that what a round costs follows from it and the one before.
    """

    def __init__(
        self, evaluator: Evaluator, metric: Metric, samples: int, seed: int, limit: int, wider: Sequence[float] = ()
    ) -> None:
        """A race of up to ``samples`` samples.

        Args:
            limit: bytes that states of solvers may take from one round to the next.
            wider: further rungs above 1, as shares of ``samples``.
        """
        self.metric, self.counts = metric, counts(samples, metric.minimum, wider)
        self._full = samples
        self.held: dict[Plan, int] = {}
        self._evaluator = evaluator
        self._pool = Pool(evaluator, seed, self.counts, limit)
        self._restored = True

    def samples(self, share: float) -> int:
        """The number of samples that stands for ``share`` of all: the next rung."""
        wanted = share * self._full * (1 - 1e-9)
        return next(count for count in self.counts if count >= wanted)

    def price(self, plans: Sequence[Plan], samples: int, anchor: Anchor | None, nfe: Callable[[Plan], int]) -> int:
        """Network evaluations that a round costs at most, should nothing but what is held be shared.

        Args:
            nfe: of a plan, its network evaluations for one sample.
        """
        needs = self._needs(plans, samples, anchor)
        return sum(nfe(plan) * max(0, need - self.held.get(plan, 0)) for plan, need in needs.items())

    def skip(self, plans: Sequence[Plan], samples: int, anchor: Anchor | None) -> None:
        """Takes note of a round whose result is known from before, without computing anything."""
        self._hold(self._needs(plans, samples, anchor))
        self._restored = False

    def lap(
        self,
        plans: Sequence[Plan],
        samples: int,
        anchor: Anchor | None = None,
        tick: Tick | None = None,
        first_look: bool = False,
    ) -> Lap:
        """Scores ``plans`` with ``samples`` samples each; as differences from ``anchor`` where that is given.

        Args:
            first_look: the plans lie far apart, so that a bias which differs from one to the next outweighs noise:
                values are extrapolated (:meth:`autodiffusion.metrics.Metric.extrapolated`).
        """
        self._restore(tick)
        self._hold(self._needs(plans, samples, anchor))
        self._pool.keep(self.held)
        shift = self._shift(anchor, samples, tick) if anchor is not None else 0.0
        found = self._pool.grow(plans, samples, tick)
        first_look = first_look and samples > self.metric.minimum
        moves = [self._moves(part, first_look) for part in found]
        values = [
            part if isinstance(part, str) else float(np.mean(move)) if first_look else self.metric.value(part) + shift
            for part, move in zip(found, moves, strict=True)
        ]
        scores = [score_of(self.metric, value, samples) for value in values]
        return Lap(scores, self._errors(moves, scores))

    def _shift(self, anchor: Anchor, samples: int, tick: Tick | None) -> float:
        """What the anchor's value gains from its first ``samples`` samples to all that it has."""
        plan, held = anchor
        [features] = self._pool.grow([plan], held, tick)
        if isinstance(features, str) or samples == held:
            return 0.0
        return self.metric.value(features) - self.metric.value(features.take(range(samples)))

    def _moves(self, features: Features | str, first_look: bool) -> Floats:
        """The pseudo-values of a plan's score, ``[G]``; ``[0]`` where it has none or too few samples."""
        if isinstance(features, str) or len(features) <= self.metric.minimum:  # of so few none can be left out
            return np.zeros(0)
        return self.metric.extrapolated(features) if first_look else self.metric.pseudovalues(features)

    def _errors(self, moves: Sequence[Floats], scores: Sequence[Score]) -> list[float]:
        sign = -1.0 if self.metric.better == "higher" else 1.0
        good = [i for i, (score, move) in enumerate(zip(scores, moves, strict=True)) if not score.problem and len(move)]
        errors = [math.nan] * len(scores)
        best = min(good, key=lambda i: sign * scores[i].value, default=0)
        for i in good:
            errors[i] = float(np.std(moves[i] - moves[best], ddof=1) / math.sqrt(len(moves[i])))
        return errors

    def _needs(self, plans: Sequence[Plan], samples: int, anchor: Anchor | None) -> dict[Plan, int]:
        """How many samples of which plan a round stands on."""
        needs = dict.fromkeys(plans, samples)
        if anchor is not None:
            needs[anchor[0]] = anchor[1]
        return needs

    def _hold(self, needs: Mapping[Plan, int]) -> None:
        self.held = {plan: max(need, self.held.get(plan, 0)) for plan, need in needs.items()}

    def _restore(self, tick: Tick | None) -> None:
        """Computes again what an interrupted search held; that was paid for before and is not counted again."""
        if self._restored:
            return
        spent = self._evaluator.cost
        self._evaluator.cost = Cost()
        for count in sorted(set(self.held.values())):
            self._pool.grow([plan for plan, held in self.held.items() if held == count], count, tick)
        self._pool.keep(self.held)
        self._evaluator.cost, self._restored = spent, True


def counts(samples: int, minimum: int = 2, wider: Sequence[float] = ()) -> list[int]:
    """The numbers of samples at which a race of ``samples`` compares, rising; a metric's ``minimum`` needs one more."""
    least = min(samples, max(LEAST, minimum + 1))
    return sorted({max(least, math.ceil(share * samples)) for share in (*RUNGS, *wider)} - {0})
