"""What a search would have given, had it been stopped at any point, for ``bench.compare`` and ``bench.ablation``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autodiffusion._plans.plan import Plan

POINTS = 12
"""Most points of a curve that are scored and kept."""


class Best(NamedTuple):
    """A plan that was the best so far, when ``evaluations`` had been spent."""

    evaluations: int
    plan: Plan
    score: float


def improvements(events: Sequence[dict[str, Any]]) -> list[Best]:
    """Each time that the plan changed which the search would have given, had it been stopped. A score is known when
    its whole batch is done.

    That is ``candidates.standings`` at every point: more samples come before a lower score, since a race drops its
    worse plans early, and estimates from an anchor do not count.
    """
    spent, samples, best, found = 0, 0, math.inf, list[Best]()
    for event in events:
        if event["event"] != "scores":
            continue
        spent += event["evaluations"]
        scored = [s for s in event["scores"] if s["value"] is not None] if event.get("anchor") is None else []
        top = min(scored, key=lambda score: score["value"], default=None)
        if top is not None and (-event["samples"], top["value"]) < (-samples, best):
            samples, best = event["samples"], top["value"]
            found.append(Best(spent, Plan.model_validate(top["plan"]), best))
    return found


def thin(points: Sequence[Best], most: int = POINTS) -> list[Best]:
    """The first, the last, and those in between that are nearest to even distances in the logarithm of evaluations."""
    if len(points) <= most:
        return list(points)
    places = np.log([point.evaluations for point in points])
    kept = {int(np.abs(places - place).argmin()) for place in np.linspace(places[0], places[-1], most)}
    return [points[i] for i in sorted(kept | {len(points) - 1})]
