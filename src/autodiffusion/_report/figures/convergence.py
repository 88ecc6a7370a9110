"""The search's scores over what was spent, and beside them the figures on fresh noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from autodiffusion._report.drawing import MANY, brief, intervals, logarithmic, short
from autodiffusion._report.figures._base import Chart, Entry
from autodiffusion._report.run import Run
from autodiffusion._report.style import ACCENT, QUIET, blank
from autodiffusion._report.tables import Table, in_full
from autodiffusion._study.standing import Candidate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(candidates: Sequence[Candidate], rows: Sequence[dict[str, Any]], metric: str, samples: int) -> Table:
    """Every full score over what was spent, and each row of the final table, on fresh noise.

    What a race scored with fewer samples costs as well, but is no score of this kind; nor are plans that cost more than
    may be found.
    """
    shown = [c for c in in_full(candidates, samples) if c.allowed]
    search = [("search", "candidate", c.samples, c.spent, c.value, None, None) for c in shown]
    fresh = [
        (
            "fresh noise",
            row["name"],
            row["samples"],
            None,
            *(row["scores"][metric][k] for k in ("value", "low", "high")),
        )
        for row in rows
        if row["scores"].get(metric, {}).get("value") is not None
    ]
    columns = ("noise", "plan", "samples", "evaluations", "value", "low", "high")
    return Table(columns, (*search, *fresh))


def draw(table: Table, metric: str, rising: bool) -> Figure:
    """The search's scores over what was spent; beside them, on axes of their own, the figures on fresh noise."""
    search, fresh = table.where("noise", "search"), table.where("noise", "fresh noise")
    drawing = blank()
    if fresh.rows and search.rows:
        axes, beside = drawing.subplots(1, 2, width_ratios=(3, max(1.0, 0.32 * len(fresh.rows))))
    else:
        axes = beside = drawing.subplots()
    if search.rows:
        spent, values = search.column("evaluations"), search.column("value")
        best = np.maximum if rising else np.minimum
        axes.plot(spent, values, ".", color=QUIET, alpha=0.8, ms=5.5, mew=0, rasterized=len(values) > MANY)
        axes.step(spent, best.accumulate(values), where="post", color=ACCENT)
        axes.set_title(f"in the search, {search.column('samples')[0]:,} samples")
        axes.set_xlabel("network evaluations times samples")
        short(axes, "x")
        axes.set_xlim(left=0)
        logarithmic(axes, values)
    if fresh.rows:
        names = [brief(name.partition(" (")[0]) for name in fresh.column("plan")]
        intervals(beside, range(len(names)), fresh)
        beside.set_title("fresh noise")
        beside.set_xlabel(f"{fresh.column('samples')[0]:,} samples")
        beside.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        beside.set_xlim(-0.6, len(names) - 0.4)
        beside.tick_params(axis="x", length=0)
        logarithmic(
            beside, [value for column in ("value", "low") for value in fresh.column(column) if value is not None]
        )
    axes.set_ylabel(metric)
    for each in (axes, beside):
        each.grid(axis="y")
    return drawing


def chart(run: Run) -> Chart | None:
    """The figure of a search that has a score, or none."""
    metric = run.settings.metric
    data = table(run.candidates, run.rows, metric, run.settings.samples)
    if not data.rows:
        return None
    scored = data.where("noise", "search").column("value")
    best = f"; the best is {(max if run.rising else min)(scored):.4g}" if scored else ""
    beside = ", and beside them the final table on fresh noise" if run.rows else ""
    return Chart(
        "convergence",
        "Convergence",
        f"Scores of the candidates over network evaluations: {len(scored)} on all samples{best}{beside}",
        "Scores on the search's own noise and number of samples are not to be compared with those on fresh noise."
        + (f" Of {metric} more is better." if run.rising else ""),
        data,
        partial(draw, metric=metric, rising=run.rising),
    )


figure = Entry(10, chart)
