"""What runs at each step of the plan found, and what is left out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from autodiffusion._report.drawing import short, whole
from autodiffusion._report.figures._base import Chart, Entry
from autodiffusion._report.run import Run
from autodiffusion._report.style import ACCENT, LIGHT, QUIET, RULE, blank
from autodiffusion._report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("left out", "runs")


def table(run: Run) -> Table:
    """Every layer at every step of the plan found: whether it runs, and what it costs."""
    known, found = run.start.get("layers"), run.row("found")
    columns = ("step", "t", "number", "name", "kind", "macs", "part")
    if not known or not found:
        return Table(columns, ())
    rows = [
        (number, step["t"], *(layer[key] for key in columns[2:6]), PARTS[layer["number"] not in step["skip"]])
        for number, step in enumerate(found["plan"]["steps"], 1)
        for layer in known
    ]
    return Table(columns, tuple(rows))


def draw(table: Table) -> Figure:
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


def chart(run: Run) -> Chart | None:
    """The figure of a finished search with layers."""
    data = table(run)
    if not data.rows:
        return None
    out = len(data.where("part", PARTS[0]).rows)
    return Chart(
        "layers",
        "Layers at each step",
        f"Map of steps by layers: {out} of {len(data.rows)} evaluations of a layer are left out",
        "Above, what each layer costs; below, blue where it runs, pale where it is left out.",
        data,
        draw,
    )


figure = Entry(40, chart)
