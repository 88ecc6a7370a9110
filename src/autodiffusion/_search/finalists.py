"""Finalists: which candidates are compared again on fresh noise, and which of them is the best there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autodiffusion._evaluation.evaluate import Evaluator, derive_seed
from autodiffusion._plans.free import OfSteps
from autodiffusion._plans.plan import Plan
from autodiffusion._search.racing import Race
from autodiffusion._study.settings import Settings
from autodiffusion._views.progress import Quiet
from autodiffusion.metrics import Metric
from autodiffusion.metrics.kl import KL
from autodiffusion.strategies._base import hopeful

APART = 0.05
"""By how much of the time range the finalists differ, at least, in one of their nodes."""
TURNED = 0.25
"""Or by how much in one of their free numbers."""


def choice(ranked: Sequence[Plan], count: int, last: float, free: OfSteps) -> list[Plan]:
    """The first ``count`` plans that differ: neighbours of the best have its luck with the search's noise.

    Two differ in their number of steps, in a node by :data:`APART` of the time range 0 to ``last``, in a free number by
    :data:`TURNED`, in that one alone is plain, or in a tenth of the layers left out.

    Args:
        free: the numbers that are searched; a step that does not say one has its plain value.
    """

    def differ(one: Plan, other: Plan) -> bool:
        if len(one.steps) != len(other.steps) or any(one.params) != any(other.params):
            return True
        nodes = np.array([(*plan.times, plan.end or 0.0) for plan in (one, other)])
        pairs = [{(i, layer) for i, step in enumerate(plan.steps) for layer in step.skip} for plan in (one, other)]
        layers = len(pairs[0] ^ pairs[1]) > 0.1 * max(map(len, pairs))
        turned = any(
            abs(params.get(number.name, number.plain) - others.get(number.name, number.plain)) >= TURNED
            for params, others, numbers in zip(one.params, other.params, free, strict=False)
            for number in numbers
        )
        return layers or turned or bool(np.abs(np.diff(nodes, axis=0)).max() >= APART * last)

    chosen: list[Plan] = []
    for plan in ranked:
        if len(chosen) == count:
            break
        if all(differ(plan, other) for other in chosen):
            chosen.append(plan)
    return chosen


def choose(
    finalists: Sequence[Plan], metric: Metric | KL, settings: Settings, evaluator: Evaluator, progress: Quiet
) -> Plan:
    """The best of the finalists, in a race on noise that neither the search nor the final table uses."""
    finalists = list(finalists)
    seed, samples = derive_seed(settings.seed, "finalists"), settings.confirm_samples
    sign = -1.0 if metric.better == "higher" else 1.0
    if isinstance(metric, KL):
        scores = evaluator.scores(finalists, metric, min(samples, metric.available), seed, progress.tick)
        return min(zip(finalists, scores, strict=True), key=lambda pair: sign * pair[1].value)[0]
    race = Race(evaluator, metric, samples, seed, 0)
    for count in race.counts:
        if len(finalists) == 1:
            break
        lap = race.lap(finalists, count, tick=progress.tick)
        losses = {plan: sign * score.value for plan, score in zip(finalists, lap.scores, strict=True)}
        errors = {plan: e for plan, e in zip(finalists, lap.errors, strict=True) if math.isfinite(e)}
        finalists = hopeful(losses, errors) or finalists
    return finalists[0]
