"""From the tables of a report to its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autodiffusion._report.style import ACCENT, HEIGHT, INK, LIGHT, QUIET, RULE, blank
from autodiffusion._report.tables import PARTS, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MANY = 2000
"""Points above which they are drawn as one image, so that a report of a long search stays small."""
MARKERS = "sD^vPX"
"""Of the final table's rows other than the one found, in their order."""
FEW = 7
"""The last round, counted from 0, up to which the axis of rounds is equally long."""
UNITS = {
    "evaluations": "network evaluations of a sample",
    "macs": "multiply-accumulates of a sample",
    "ms": "milliseconds of a sample, by measured layers",
}
LONG = 36
"""Characters of a name above which a figure cuts it short, so that names leave room for what is drawn."""


def convergence(table: Table, metric: str, rising: bool) -> Figure:
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
        _intervals(beside, range(len(names)), fresh)
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


def schedule(table: Table) -> Figure:
    """The noise schedule with the plan's time steps on it, and below a lane for each plan and named grid."""
    curve = table.where("kind", "schedule")
    names = list(dict.fromkeys((row[0], row[1]) for row in table.rows if row[0] != "schedule"))
    drawing = blank(HEIGHT - 0.6 + 0.19 * len(names))
    upper, lanes = drawing.subplots(2, 1, sharex=True, height_ratios=(2.0, 0.19 * max(1, len(names))))
    upper.plot(curve.column("t"), curve.column("log_snr"), color=QUIET, lw=1)
    upper.set_ylabel("log(alpha / sigma)")
    for lane, (kind, name) in enumerate(names):
        own = table.where("kind", kind).where("name", name)
        chosen = name in ("found", "best so far")
        times, few = own.column("t"), len(own.rows) <= 20
        colour = ACCENT if chosen else INK if kind == "plan" else QUIET
        style: dict[str, Any] = {"ls": "", "color": colour}
        style |= {"marker": "o", "ms": 5 if chosen else 4, "mew": 0} if few else {"marker": "|", "ms": 6, "mew": 0.8}
        lanes.plot(times, [lane] * len(times), **style)
        if chosen:
            upper.plot(times, own.column("log_snr"), **style)
            for t in times if few else ():
                for axes in (upper, lanes):
                    axes.axvline(t, color=ACCENT, lw=0.6, alpha=0.35, zorder=0)
    lanes.set_yticks(range(len(names)), [brief(name) for _, name in names])
    for label, (_, name) in zip(lanes.get_yticklabels(), names, strict=True):
        label.set_color(ACCENT if name in ("found", "best so far") else QUIET)
    lanes.set_ylim(len(names) - 0.4, -0.6)
    lanes.tick_params(axis="y", length=0)
    lanes.grid(axis="y")
    lanes.set_xlabel("time step")
    upper.grid(axis="y")
    return drawing


def occurrence(table: Table, last: float) -> Figure:
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


def layers(table: Table) -> Figure:
    """What runs at each step and what is left out, by layers in the order in which the network runs them."""
    from matplotlib.colors import ListedColormap

    steps, numbers = sorted(set(table.column("step"))), sorted(set(table.column("number")))
    runs = np.array([part == PARTS[1] for part in table.column("part")]).reshape(len(steps), len(numbers))
    macs = table.where("step", steps[0]).column("macs")
    drawing = blank(1.9 + 0.17 * min(len(steps), 25))
    above, field = drawing.subplots(2, 1, sharex=True, height_ratios=(0.8, 0.17 * min(len(steps), 25) + 0.2))
    above.bar(numbers, macs, color=QUIET, width=0.8)
    above.set_ylabel("MACs")
    short(above, "y")
    above.tick_params(axis="x", length=0)
    edges = np.arange(len(numbers) + 1) - 0.5
    field.pcolormesh(
        edges,
        np.arange(len(steps) + 1) + 0.5,
        runs,
        cmap=ListedColormap([RULE, ACCENT]),
        vmin=0,
        vmax=1,
        edgecolor=LIGHT["paper"],
        linewidth=1.2 if len(steps) * len(numbers) < 1500 else 0,
    )
    shown = steps if len(steps) <= 12 else steps[:: math.ceil(len(steps) / 12)]
    first = table.where("number", numbers[0])
    times = dict(zip(first.column("step"), first.column("t"), strict=True))
    field.set_yticks(shown, [f"{times[step]:g}" for step in shown])
    field.set_ylim(len(steps) + 0.5, 0.5)
    field.set_ylabel("time step")
    field.set_xlabel("layer, in the order in which they run")
    whole(field.xaxis)
    field.spines[["left", "bottom"]].set_visible(False)
    field.tick_params(length=0)
    return drawing


def front(table: Table, metric: str) -> Figure:
    """Quality against cost, the front in the search, and the figures on fresh noise."""
    unit = table.columns[2]
    search, fresh = table.where("noise", "search"), table.where("noise", "fresh noise")
    drawing = blank()
    axes = drawing.subplots()
    full: dict[str, Any] = {"color": QUIET, "mew": 0}
    hollow: dict[str, Any] = {"mfc": "none", "mec": QUIET, "mew": 0.7}
    for allowed, style in ((True, full), (False, hollow)):
        dots = search.where("allowed", allowed)
        if dots.rows:
            label = "in the search" if allowed else "in the search, over the budget"
            many = len(dots.rows) > MANY
            axes.plot(dots.column(unit), dots.column("value"), "o", ms=3.5, label=label, rasterized=many, **style)
    best = sorted(row[2:4] for row in search.where("front", True).rows)
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=QUIET, lw=1, label="front in the search")
    _intervals(axes, fresh.column(unit), fresh, legend=True)
    axes.set_xlabel(UNITS[unit])
    axes.set_ylabel(metric)
    logarithmic(axes, table.column("value") + [v for v in table.column("low") if v is not None])
    costs = table.column(unit)
    if max(costs) > 5 * min(costs):
        axes.set_xscale("log")
        _plain_ticks(axes, "x", costs)
    if unit == "macs":
        short(axes, "x")
    axes.grid()
    axes.legend()
    return drawing


def spending(table: Table) -> Figure:
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


def _intervals(axes: Axes, places: Sequence[float], fresh: Table, legend: bool = False) -> None:
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
        _plain_ticks(axes, "y", values)


def _plain_ticks(axes: Axes, which: str, values: Sequence[float]) -> None:
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
