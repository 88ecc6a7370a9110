"""What each round of the search spent, and what it saved as plans shared their beginnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autodiffusion._report.drawing import short, whole
from autodiffusion._report.figures._base import Chart, Entry
from autodiffusion._report.run import Run
from autodiffusion._report.style import ACCENT, LIGHT, blank
from autodiffusion._report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 7
"""The last round, counted from 0, up to which the axis of rounds is equally long."""


def table(run: Run) -> Table:
    """A row for each round."""
    rows: dict[int, list[int]] = {}
    for event in run.events:
        if event["event"] == "scores":
            row = rows.setdefault(event["generation"], [event["samples"], 0, 0, 0])
            for place, value in enumerate((len(event["scores"]), event["evaluations"], event["saved"]), 1):
                row[place] += value
    columns = ("round", "samples", "candidates", "evaluations", "saved")
    return Table(columns, tuple((number, *row) for number, row in rows.items()))


def draw(table: Table) -> Figure:
    """What each round spent, and on it what sharing saved."""
    drawing = blank()
    axes = drawing.subplots()
    rounds, spent, saved = (table.column(name) for name in ("round", "evaluations", "saved"))
    axes.bar(rounds, spent, color=ACCENT, width=0.8, label="made")
    axes.bar(rounds, saved, bottom=spent, color=LIGHT["orange"], alpha=0.55, width=0.8, label="saved by sharing")
    axes.set_xlabel("round of the search")
    axes.set_ylabel("network evaluations times samples")
    axes.set_xlim(-0.8, max(rounds[-1], FEW) + 0.8)  # one round is no wall
    whole(axes.xaxis)
    short(axes, "y")
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return drawing


def chart(run: Run) -> Chart | None:
    """The figure of a search with a round."""
    data = table(run)
    if not data.rows:
        return None
    return Chart(
        "spending",
        "What each round spent",
        f"Network evaluations of {len(data.rows)} rounds of the search: {run.spent:,} made, {run.saved:,} saved",
        "A round with fewer samples compares more candidates for the same cost.",
        data,
        draw,
    )


figure = Entry(60, chart)
