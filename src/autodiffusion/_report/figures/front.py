"""Quality against cost: what the search scored, its front, and the figures on fresh noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autodiffusion._report.drawing import MANY, intervals, logarithmic, plain_ticks, short
from autodiffusion._report.figures._base import Chart, Entry
from autodiffusion._report.run import Run
from autodiffusion._report.style import QUIET, blank
from autodiffusion._report.tables import Table, in_full

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {
    "evaluations": "network evaluations of a sample",
    "macs": "multiply-accumulates of a sample",
    "ms": "milliseconds of a sample, by measured layers",
}


def table(run: Run) -> Table:
    """Quality against cost: candidates with a full score in the search, and the final table on fresh noise.

    ``front`` says of a candidate that none in the search is both cheaper and better.
    """
    unit = cost_unit(run)
    metric = run.settings.metric
    full = in_full(run.candidates, run.settings.samples) if unit != "evaluations" else []
    points = [(c.cost[unit], c.value) for c in full]
    best = pareto(points, run.rising)
    search = [
        ("search", "candidate", cost, value, None, None, c.allowed, i in best)
        for i, (c, (cost, value)) in enumerate(zip(full, points, strict=True))
    ]
    fresh = [
        (
            *("fresh noise", row["name"], row["nfe"] if unit == "evaluations" else row["cost"][unit]),
            *(row["scores"][metric][key] for key in ("value", "low", "high")),
            *(None, None),
        )
        for row in run.rows
        if row["scores"].get(metric, {}).get("value") is not None
    ]
    return Table(("noise", "plan", unit, "value", "low", "high", "allowed", "front"), (*search, *fresh))


def cost_unit(run: Run) -> str:
    """What a plan's cost is counted in: measured time where there is one, else what leaving out layers saves."""
    costs = [candidate.cost for candidate in run.candidates] + [row.get("cost", {}) for row in run.rows]
    for unit in ("ms", "macs"):
        if run.settings.layers and costs and all(unit in cost for cost in costs):
            return unit
    return "evaluations"


def pareto(points: Sequence[tuple[float, Any]], rising: bool) -> set[int]:
    """The places of the points that none beats: cheaper at no worse value, or better at no higher cost."""
    sign = -1.0 if rising else 1.0
    front: set[int] = set()
    least = float("inf")
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1])):
        if sign * points[i][1] < least:
            least = sign * points[i][1]
            front.add(i)
    return front


def draw(table: Table, metric: str) -> Figure:
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
    intervals(axes, fresh.column(unit), fresh, legend=True)
    axes.set_xlabel(UNITS[unit])
    axes.set_ylabel(metric)
    logarithmic(axes, table.column("value") + [v for v in table.column("low") if v is not None])
    costs = table.column(unit)
    if max(costs) > 5 * min(costs):
        axes.set_xscale("log")
        plain_ticks(axes, "x", costs)
    if unit == "macs":
        short(axes, "x")
    axes.grid()
    axes.legend()
    return drawing


def chart(run: Run) -> Chart | None:
    """The figure of a search with plans of more than one cost."""
    data, metric = table(run), run.settings.metric
    unit = data.columns[2]
    if len(set(data.column(unit))) < 2:
        return None
    return Chart(
        "front",
        "Quality against cost",
        f"{metric} against {UNITS[unit]}",
        "Dots are scores in the search; what has an interval is on fresh noise.",
        data,
        partial(draw, metric=metric),
    )


figure = Entry(50, chart)
