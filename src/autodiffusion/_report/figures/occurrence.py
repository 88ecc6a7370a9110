"""Where the best candidates have their time steps (AutoDiffusion, figure 5)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from autodiffusion._report.drawing import whole
from autodiffusion._report.figures._base import Chart, Entry
from autodiffusion._report.run import Run
from autodiffusion._report.style import ACCENT, LIGHT, blank
from autodiffusion._report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST = 15
"""How many of the best plans the occurrence of time steps is counted in, as in the paper."""


def table(run: Run) -> Table:
    """The time steps of the best plans in the search, best first."""
    rows = [
        (rank, candidate.value, candidate.samples, number, step["t"])
        for rank, candidate in enumerate(run.ranked[:BEST], 1)
        for number, step in enumerate(candidate.plan["steps"], 1)
    ]
    return Table(("rank", "value", "samples", "step", "t"), tuple(rows))


def draw(table: Table, last: float) -> Figure:
    """How often the best plans have a time step in each part of the time range 0 to ``last``; the best's are marked."""
    drawing = blank()
    axes = drawing.subplots()
    times = np.array(table.column("t"), dtype=float)
    axes.hist(times, bins=np.linspace(0, last, 51).tolist(), color=ACCENT, alpha=0.85, rwidth=0.86)
    best = table.where("rank", 1).column("t")
    axes.plot(best, [0] * len(best), "^", color=LIGHT["orange"], ms=6, mew=0, clip_on=False, zorder=3)
    axes.set_xlim(-0.01 * last, 1.01 * last)
    whole(axes.yaxis)
    axes.set_xlabel("time step")
    axes.set_ylabel(f"occurrences among the best {len(set(table.column('rank')))}")
    axes.grid(axis="y")
    return drawing


def chart(run: Run) -> Chart | None:
    """The figure of a search that has a score."""
    data = table(run)
    if not data.rows or not run.start:
        return None
    count = len(set(data.column("rank")))
    return Chart(
        "occurrence",
        "Where the best candidates have their time steps",
        f"Occurrences of time steps among the best {count} candidates of the search",
        f"The best {count} of {run.plans:,} by their scores in the search; triangles: the first of them."
        if count > 1
        else "There is one candidate; triangles: its time steps.",
        data,
        partial(draw, last=run.start["times"][-1]),
    )


figure = Entry(30, chart)
