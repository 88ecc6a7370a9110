"""What a study's files say, as frames of pandas and as a table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autodiffusion._errors import InputError
from autodiffusion._evaluation.confirm import figure
from autodiffusion._evaluation.evaluate import describe
from autodiffusion._notebook import table
from autodiffusion._plans.plan import Plan
from autodiffusion._study.standing import candidates

if TYPE_CHECKING:
    from pandas import DataFrame

Rows = Sequence[dict[str, Any]]
SHORT = 20
"""Steps of the longest plan that is written out."""


def of_candidates(events: Rows, metric: str) -> DataFrame:
    """A row for every score in a ledger, in its order.

    Columns: ``round`` (from 0), ``spent`` (network evaluations times samples by then), ``samples``, the metric by its
    name (not a number where there is a ``problem``), ``own`` (false for a difference from another plan's score),
    ``allowed`` (may be found), ``solver``, ``times``, ``end``, ``plan``; with layers ``left_out`` (how many, over all
    steps) and the ``cost_`` of a sample in each unit.

    Raises:
        InputError: pandas is not installed.
    """
    rows = []
    for one in candidates(events):
        plan = Plan.model_validate(one.plan)
        row: dict[str, Any] = {"round": one.round, "spent": one.spent, "samples": one.samples, metric: one.value}
        row |= {"own": one.own, "allowed": one.allowed, "problem": one.problem}
        row |= {"solver": plan.solver, "times": plan.times, "end": plan.end, "plan": plan}
        if one.cost:
            row |= {"left_out": sum(len(step.skip) for step in plan.steps)}
            row |= {f"cost_{unit}": cost for unit, cost in one.cost.items()}
        rows.append(row)
    return _frame(rows)


def of_rows(rows: Rows) -> DataFrame:
    """A row for each plan of a search's final table, on fresh noise.

    Columns: ``name``, ``nfe``, ``samples``, ``seed``, each metric with ``_low`` and ``_high`` of its 95 % interval,
    ``problem``, ``plan``.

    Raises:
        InputError: pandas is not installed.
    """
    found = []
    for row in rows:
        ends = {"value": "", "low": "_low", "high": "_high"}
        scores = {f"{name}{end}": score[key] for name, score in row["scores"].items() for key, end in ends.items()}
        said = {key: row[key] for key in ("name", "nfe", "samples", "seed")}
        found.append(said | scores | {"problem": row["problem"], "plan": Plan.model_validate(row["plan"])})
    return _frame(found)


def html(rows: Rows, notes: Sequence[str] = ()) -> str:
    """A search's final table, for a notebook."""
    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))  # a failed row has none
    caption = f"{rows[0]['samples']:,} samples on fresh noise, seed {rows[0]['seed']}, 95 % intervals"
    cells = []
    for row in rows:
        scores = [figure(row["scores"][name]) if name in row["scores"] else row["problem"] for name in metrics]
        plan = Plan.model_validate(row["plan"])
        cells.append([row["name"], row["nfe"], *scores, describe(plan) if len(plan.steps) <= SHORT else "..."])
    return table(caption, ["plan", "network evaluations", *metrics, "time steps"], cells, notes)


def _frame(rows: Rows) -> DataFrame:
    try:
        from pandas import DataFrame
    except ImportError:
        raise InputError("dataframe: needs pandas; pip install pandas") from None
    return DataFrame(rows)
