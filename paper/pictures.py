"""The paper's figures as pictures, and what came out beside what was published."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from autodiffusion._plans.published import read
from autodiffusion._report import picture
from autodiffusion._report.drawing import logarithmic, whole
from autodiffusion._report.figures.occurrence import table as occurrence
from autodiffusion._report.run import Run
from autodiffusion._report.style import ACCENT, LIGHT, SERIES, styled
from paper.experiments import Experiment
from paper.runs import Runs
from paper.tables import Cell

BINS = 50
DPI = 150


def samples(experiment: Experiment, runs: Runs, path: Path) -> bool:
    """The same seeds by each plan, side by side; nothing is drawn where a plan is missing."""
    named = {}
    for row in experiment.rows:
        plan = runs.plan(row, row.steps[0])
        if plan is None:
            return False
        named[row.name] = runs.images(plan, row.system, experiment.count)
    picture(named, path)
    return True


def occurrences(experiment: Experiment, runs: Runs, path: Path) -> bool:
    """Where the best candidates of each search have their time steps, and where the published plan has them."""
    panels = []
    for row in experiment.rows:
        steps = row.steps[0]
        if runs.found(row.search, steps) is None:
            return False
        run = Run.of(runs.folder(row.search, steps))
        panels.append((row.name, occurrence(run), run.start["times"][-1], read(str(row.plan)).times))
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    with styled():
        drawing = Figure(figsize=(3.4 * columns, 2.5 * math.ceil(len(panels) / columns)), layout="constrained")
        every = np.atleast_1d(drawing.subplots(math.ceil(len(panels) / columns), columns)).ravel()
        for axes, (name, table, last, marks) in zip(every, panels, strict=False):
            times = np.array(table.column("t"), dtype=float)
            axes.hist(times, bins=np.linspace(0, last, BINS + 1).tolist(), color=ACCENT, alpha=0.85, rwidth=0.86)
            below: dict[str, Any] = {"ls": "", "mew": 0, "clip_on": False, "zorder": 3}
            axes.plot(marks, [0] * len(marks), marker="^", color=LIGHT["orange"], ms=6, label="published plan", **below)
            axes.set_title(name, fontsize=8)
            axes.set_xlim(-0.01 * last, 1.01 * last)
            whole(axes.yaxis)
            axes.grid(axis="y")
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        every[0].legend()
        drawing.supxlabel("time step", fontsize=8)
        drawing.supylabel(f"occurrences among the best {len(set(panels[0][1].column('rank')))}", fontsize=8)
        _save(drawing, path)
    return True


def curves(experiment: Experiment, cells: dict[tuple[str, int], Cell], path: Path) -> bool:
    """FID over the number of steps: dashed as published, drawn through as it came out here."""
    from matplotlib.figure import Figure

    lines = []
    for number, row in enumerate(experiment.rows):
        theirs = {steps: row.published[steps][0] for steps in row.steps if steps in row.published}
        ours = {steps: fid for steps in row.steps if (fid := cells[row.name, steps].fid) is not None}
        lines.append((row.name, SERIES[number % len(SERIES)], theirs, ours))
    if not any(ours for *_, ours in lines):
        return False
    with styled():
        drawing = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = drawing.subplots()
        for name, colour, theirs, ours in lines:
            axes.plot(list(theirs), list(theirs.values()), "--o", color=colour, mfc="none", ms=4, lw=1)
            axes.plot(list(ours), list(ours.values()), "-o", color=colour, ms=4, mew=0, label=name)
        axes.plot([], [], "--", color=LIGHT["quiet"], label="published")
        axes.set_xticks(experiment.steps)
        axes.set_xlabel("steps")
        axes.set_ylabel("FID")
        logarithmic(axes, [value for *_, theirs, ours in lines for value in (*theirs.values(), *ours.values())])
        axes.grid()
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        _save(drawing, path)
    return True


def _save(drawing: Any, path: Path) -> None:
    drawing.savefig(path, dpi=DPI, facecolor=LIGHT["paper"], metadata={"Software": None})
