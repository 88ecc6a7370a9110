"""Confirmation: figures on fresh noise, with their intervals. Only these are reported as results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autodiffusion._evaluation.evaluate import LARGEST, Evaluator, derive_seed
from autodiffusion._plans.plan import Plan
from autodiffusion._references.reference import Reference
from autodiffusion._sampling.sampling import Tick, nfe
from autodiffusion.metrics._base import Interval
from autodiffusion.metrics._build import build


@dataclass(frozen=True)
class Row:
    """What one plan is worth on fresh noise.

    Attributes:
        name: e.g. ``uniform`` or ``found``.
        nfe: network evaluations for one sample.
        scores: each metric's value with its 95 % interval; infinite where the samples are not finite.
        problem: why there is no value.
    """

    name: str
    plan: Plan
    nfe: int
    samples: int
    seed: int
    scores: Mapping[str, Interval]
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as the command line and the ledger give it; figures that are not finite, or so large that a score
        would be none, become ``null``.
        """
        scores = {}
        for name, interval in self.scores.items():
            bounds = asdict(interval)
            usable = all(abs(bound) <= LARGEST for bound in bounds.values())  # not of what is not a number
            scores[name] = bounds if usable else dict.fromkeys(bounds)
        return {
            "name": self.name,
            "plan": self.plan.model_dump(mode="json"),
            "samples": self.samples,
            "seed": self.seed,
            "nfe": self.nfe,
            "scores": scores,
            "problem": self.problem,
        }


def figure(score: Mapping[str, float | None]) -> str:
    """A value with its interval as text: ``12.3 [11.9, 12.8]``."""
    value, low, high = (score[key] for key in ("value", "low", "high"))
    return "not finite" if value is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def alike(rows: Sequence[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """The rows of a table, as :meth:`Row.to_json` gives them, of this plan; but for the found plan's own."""
    return [row for row in rows if row["name"] != "found" and Plan.model_validate(row["plan"]) == plan]


def confirm(
    evaluator: Evaluator,
    reference: Reference,
    plans: Mapping[str, Plan],
    metrics: Sequence[str],
    samples: int,
    seed: int,
    tick: Tick | None = None,
) -> list[Row]:
    """Scores named plans on noise that no search with any seed has seen, by several metrics at once.

    Args:
        seed: the user's; the same seed gives the same figures, in a search's final table and in ``evaluate``.
    """
    noise = derive_seed(seed, "confirm")
    built = {name: build(name, reference) for name in metrics}
    rows = []
    for name, plan in plans.items():
        scores, problem = evaluator.intervals(plan, built, samples, noise, tick)
        rows.append(Row(name, plan, nfe(plan, evaluator.model), samples, seed, scores, problem))
    return rows
