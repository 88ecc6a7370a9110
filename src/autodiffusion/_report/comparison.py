"""Several searches beside each other: solvers, numbers of steps, strategies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._evaluation.confirm import figure
from autodiffusion._report.figures import Chart
from autodiffusion._report.page import drawn, put, render
from autodiffusion._report.run import Run
from autodiffusion._report.style import HEIGHT, QUIET, SERIES, blank
from autodiffusion._report.tables import Table, in_full
from autodiffusion._report.words import plan_text
from autodiffusion._spaces.costs import priced
from autodiffusion._study.study import CONFIG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISON = "comparison.html"
"""The file of a comparison, where nothing else is said."""
ALIKE = ("model", "metric", "features", "reference", "confirm_samples", "seed")
"""Settings that must be alike for figures to be compared."""
MARKERS = "osD^vP"
MANY = 8
"""Numbers of evaluations above which not each has a tick."""
SPREAD = 0.4
"""Evaluations over which searches with equally many are set apart, so that each is seen."""


def runs_in(folders: Sequence[Path]) -> list[Run]:
    """The searches in these folders; a folder of several searches stands for all of them.

    Raises:
        InputError: one holds none, or is given twice.
    """
    found: list[Path] = []
    for folder in folders:
        inside = [] if (folder / CONFIG).exists() else [path.parent for path in folder.glob(f"*/{CONFIG}")]
        found += sorted(inside, key=_natural) or [folder]
    if twice := next((path for path in found if found.count(path) > 1), None):
        raise InputError(f"{twice}: is given twice; give each search once")
    return [Run.of(path) for path in found]


def _natural(path: Path) -> tuple[int, str]:
    """4, 6, 10 in this order."""
    return int(path.name) if path.name.isdecimal() else -1, path.name


def compare(runs: Sequence[Run], out: Path) -> Path:
    """Writes one page about several searches to ``out``, and gives its path.

    Raises:
        InputError: the file cannot be written.
    """
    names = labels(runs)
    differences = [
        f"{name}: {', '.join(map(str, values))}"
        for name in ALIKE
        if len(values := list(dict.fromkeys(str(getattr(run.settings, name)) for run in runs))) > 1
    ]
    searched = [run.settings.metric for run in runs]
    metrics = list(dict.fromkeys([*searched, *(name for run in runs for row in run.rows for name in row["scores"])]))
    html = render(
        "compare.html",
        count=len(runs),
        differences=differences,
        metrics=metrics,
        costs=any(run.settings.layers and "cost" in row for run in runs for row in run.rows),
        rows=[_row(name, run) for name, run in zip(names, runs, strict=True)],
        drawn=drawn(charts(runs)),
    )
    return put(html, out)


def labels(runs: Sequence[Run]) -> list[str]:
    """What each search is called: its folder, without what all folders begin with."""
    paths = [os.path.abspath(run.folder) for run in runs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def _row(name: str, run: Run) -> dict[str, Any]:
    """A search as a row of texts: what it searched, what it spent, what it found."""
    found, uniform = run.row("found"), run.row("uniform")
    settings = run.settings

    def scores(row: dict[str, Any] | None) -> dict[str, str]:
        return {metric: figure(score) for metric, score in row["scores"].items()} if row else {}

    return {
        "name": name,
        "strategy": settings.strategy,
        "candidates": f"{run.plans:,}",
        "spent": f"{run.spent:,}",
        "confirmed": f"{run.confirmed['evaluations']:,}" if run.confirmed else "not finished",
        "nfe": str(found["nfe"]) if found else "",
        "cost": priced(found.get("cost", {})) if found else "",
        "found": scores(found),
        "uniform": scores(uniform),
        "grid": scores(run.best_grid),
        "problem": (found["problem"] or "") if found else "not finished",
        "plan": plan_text(found["plan"]) if found else "",
    }


def charts(runs: Sequence[Run]) -> Iterator[Chart]:
    """The figures of a comparison; a metric of each search's own is drawn under its name."""
    metrics = list(dict.fromkeys(run.settings.metric for run in runs))
    for metric in metrics:
        of = [(name, run) for name, run in zip(labels(runs), runs, strict=True) if run.settings.metric == metric]
        ending = f"_{metric.replace(':', '_')}" * (len(metrics) > 1)
        table = convergence(of)
        if table.rows:
            yield Chart(
                f"convergence{ending}",
                f"Convergence, {metric} in the search",
                f"The best {metric} so far of {len(of)} searches over network evaluations",
                "Of candidates scored on all samples of their search, each on its search's own noise.",
                table,
                partial(draw_convergence, metric=metric),
            )
        table = quality(of)
        if table.rows:
            yield Chart(
                f"quality{ending}",
                f"Quality against evaluations, {metric} on fresh noise",
                f"The {metric} of what {len(of)} searches found, and of uniform steps, over network evaluations",
                "With 95 % intervals; hollow: uniform steps. Equally many evaluations are drawn a little apart.",
                table,
                partial(draw_quality, metric=metric),
            )


def convergence(runs: Sequence[tuple[str, Run]]) -> Table:
    """The best full score so far of each search, over what it had spent."""
    rows: list[tuple[Any, ...]] = []
    for name, run in runs:
        shown = [c for c in in_full(run.candidates, run.settings.samples) if c.allowed]
        best = (np.maximum if run.rising else np.minimum).accumulate(np.array([c.value for c in shown], dtype=float))
        rows += [(name, c.samples, c.spent, float(value)) for c, value in zip(shown, best, strict=True)]
    return Table(("run", "samples", "evaluations", "best"), tuple(rows))


def quality(runs: Sequence[tuple[str, Run]]) -> Table:
    """What each search found, and its uniform steps, on fresh noise."""
    rows = [
        (
            name,
            kind,
            row["nfe"],
            row["samples"],
            *(row["scores"][run.settings.metric][k] for k in ("value", "low", "high")),
        )
        for name, run in runs
        for kind, row in (("found", run.row("found")), ("uniform", run.row("uniform")))
        if row and row["scores"].get(run.settings.metric, {}).get("value") is not None
    ]
    return Table(("run", "plan", "evaluations", "samples", "value", "low", "high"), tuple(rows))


def draw_convergence(table: Table, metric: str) -> Figure:
    """A line for each search."""
    from autodiffusion._report.drawing import brief, logarithmic, short

    drawing = blank(HEIGHT + 0.3)
    axes = drawing.subplots()
    for number, name in enumerate(dict.fromkeys(table.column("run"))):
        own = table.where("run", name)
        style = {"color": SERIES[number % len(SERIES)], "ls": ("-", "--", ":")[number // len(SERIES) % 3]}
        axes.step(own.column("evaluations"), own.column("best"), where="post", label=brief(name), **style)
        axes.plot(own.column("evaluations")[-1:], own.column("best")[-1:], "o", color=style["color"], ms=4, mew=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("network evaluations times samples")
    axes.set_ylabel(f"best {metric} so far")
    short(axes, "x")
    logarithmic(axes, table.column("best"))
    axes.grid(axis="y")
    axes.legend()
    return drawing


def draw_quality(table: Table, metric: str) -> Figure:
    """A marker with its interval for each search, and a hollow one for its uniform steps."""
    from autodiffusion._report.drawing import brief, logarithmic, whole

    drawing = blank(HEIGHT + 0.3)
    axes = drawing.subplots()
    names = list(dict.fromkeys(table.column("run")))
    for name, plan, place, _, value, low, high in table.rows:
        number, found = names.index(name), plan == "found"
        colour = SERIES[number % len(SERIES)]
        axes.errorbar(
            [place + _aside(table, name, place)],
            [value],
            None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt=MARKERS[number % len(MARKERS)],
            color=colour if found else QUIET,
            mfc=colour if found else "none",
            mec=colour,
            ms=6,
            lw=1.2,
            label=brief(name) if found else None,
        )
    axes.set_xlabel("network evaluations of a sample")
    axes.set_ylabel(metric)
    places = sorted(set(table.column("evaluations")))
    axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    if len(places) <= MANY:
        axes.set_xticks(places)
    else:
        whole(axes.xaxis)
    logarithmic(axes, [row[4] for row in table.rows] + [row[5] for row in table.rows if row[5] is not None])
    axes.grid(axis="y")
    if table.where("plan", "found").rows:
        axes.legend()
    return drawing


def _aside(table: Table, name: str, place: float) -> float:
    """How far a search is drawn from its number of evaluations, among those that have the same."""
    same = list(dict.fromkeys(table.where("evaluations", place).column("run")))
    return SPREAD * (same.index(name) / (len(same) - 1) - 0.5) if len(same) > 1 else 0.0
