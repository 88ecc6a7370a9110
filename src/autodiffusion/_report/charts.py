"""The figures of a report: each a table, how it is drawn, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from autodiffusion._report import drawing, tables
from autodiffusion._report.run import Run
from autodiffusion._report.tables import PARTS, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A figure before it is drawn.

    Attributes:
        name: of its files.
        alt: what it shows, for those who do not see it.
        note: what to know when reading it.
    """

    name: str
    title: str
    alt: str
    note: str
    table: Table
    draw: Callable[[Table], Figure]


def charts(run: Run) -> Iterator[Chart]:
    """The figures that a search has data for, in the order of the page."""
    settings = run.settings
    metric = settings.metric
    table = tables.convergence(run.candidates, run.rows, metric, settings.samples)
    if table.rows:
        scored = table.where("noise", "search").column("value")
        best = f"; the best is {(max if run.rising else min)(scored):.4g}" if scored else ""
        beside = ", and beside them the final table on fresh noise" if run.rows else ""
        yield Chart(
            "convergence",
            "Convergence",
            f"Scores of the candidates over network evaluations: {len(scored)} on all samples{best}{beside}",
            "Scores on the search's own noise and number of samples are not to be compared with those on fresh noise."
            + (f" Of {metric} more is better." if run.rising else ""),
            table,
            partial(drawing.convergence, metric=metric, rising=run.rising),
        )
    table = tables.schedule(run)
    if any(row[0] != "schedule" for row in table.rows):
        names = list(dict.fromkeys(row[1] for row in table.rows if row[0] != "schedule"))
        yield Chart(
            "time_steps",
            "Time steps on the noise schedule",
            f"Time steps on the log-SNR curve of the model, of {', '.join(names)}",
            "Above, half the logarithm of signal over noise; below, when each plan asks the network.",
            table,
            drawing.schedule,
        )
    table = tables.occurrence(run)
    if table.rows and run.start:
        count = len(set(table.column("rank")))
        yield Chart(
            "occurrence",
            "Where the best candidates have their time steps",
            f"Occurrences of time steps among the best {count} candidates of the search",
            f"The best {count} of {run.plans:,} by their scores in the search; triangles: the first of them."
            if count > 1
            else "There is one candidate; triangles: its time steps.",
            table,
            partial(drawing.occurrence, last=run.start["times"][-1]),
        )
    table = tables.layers(run)
    if table.rows:
        out = len(table.where("part", PARTS[0]).rows)
        yield Chart(
            "layers",
            "Layers at each step",
            f"Map of steps by layers: {out} of {len(table.rows)} evaluations of a layer are left out",
            "Above, what each layer costs; below, blue where it runs, pale where it is left out.",
            table,
            drawing.layers,
        )
    table = tables.front(run)
    if len(set(table.column(table.columns[2]))) > 1:
        yield Chart(
            "front",
            "Quality against cost",
            f"{metric} against {drawing.UNITS[table.columns[2]]}",
            "Dots are scores in the search; what has an interval is on fresh noise.",
            table,
            partial(drawing.front, metric=metric),
        )
    table = tables.spending(run)
    if table.rows:
        yield Chart(
            "spending",
            "What each round spent",
            f"Network evaluations of {len(table.rows)} rounds of the search: {run.spent:,} made, {run.saved:,} saved",
            "A round with fewer samples compares more candidates for the same cost.",
            table,
            drawing.spending,
        )
