"""What every figure of a report is: a table, how it is drawn, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from autodiffusion._names import modules
from autodiffusion._report.run import Run
from autodiffusion._report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A figure before it is drawn.

    Attributes:
        name: of its files; of a figure in this room that of the file it comes from.
        alt: what it shows, for those who do not see it.
        note: what to know when reading it.
        table: its data, which are written as CSV beside it.
        draw: makes it of the table, in the style of :mod:`autodiffusion._report.style`.
    """

    name: str
    title: str
    alt: str
    note: str
    table: Table
    draw: Callable[[Table], Figure]


class Entry(NamedTuple):
    """What a file in this room ends in.

    Attributes:
        place: figures stand on the page by rising places.
        chart: what there is to show of a search, finished or not; ``None`` where it has no data for this figure.
    """

    place: int
    chart: Callable[[Run], Chart | None]


def charts(run: Run) -> Iterator[Chart]:
    """The figures that a search has data for, in the order of the page."""
    entries = [file.figure for file in modules("_report.figures").values()]
    for entry in sorted(entries, key=lambda entry: entry.place):
        if made := entry.chart(run):
            yield made
