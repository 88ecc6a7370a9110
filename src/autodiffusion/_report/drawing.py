"""What the figures of reports share in how they are drawn: names, axes, ticks, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autodiffusion._report.style import ACCENT, INK
from autodiffusion._report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MANY = 2000
"""Points above which they are drawn as one image, so that a report of a long search stays small."""
MARKERS = "sD^vPX"
"""Of the final table's rows other than the one found, in their order."""
LONG = 36
"""Characters of a name above which a figure cuts it short, so that names leave room for what is drawn."""


def intervals(axes: Axes, places: Sequence[float], fresh: Table, legend: bool = False) -> None:
    """A marker with its interval for each row of the final table."""
    markers = iter(MARKERS * len(fresh.rows))
    for place, name, value, low, high in zip(
        places, *(fresh.column(column) for column in ("plan", "value", "low", "high")), strict=True
    ):
        found = name == "found"
        ends = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(
            [place],
            [value],
            ends,
            fmt="o" if found else next(markers),
            color=ACCENT if found else INK,
            ms=6 if found else 4.5,
            lw=1.2,
            label=brief(name) if legend else None,
        )


def brief(name: str) -> str:
    """A name as figures write it, cut short where it is long; the tables have it whole."""
    return name if len(name) <= LONG else f"{name[: LONG - 1]}\N{HORIZONTAL ELLIPSIS}"


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis where the values call for it, with plain numbers beside it."""
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
        plain_ticks(axes, "y", values)


def plain_ticks(axes: Axes, which: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    narrow = max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True))


def short(axes: Axes, which: str) -> None:
    """Ticks such as 20k and 35M."""
    from matplotlib.ticker import EngFormatter

    (axes.yaxis if which == "y" else axes.xaxis).set_major_formatter(EngFormatter(sep=""))
