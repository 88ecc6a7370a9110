"""The kept results of ``bench.compare``: read, as a Markdown table, and as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bench.models import ABOUT

COLOURS = {"paper": "C0", "common": "C2", "random": "0.55", "default": "C3"}
TITLES = {
    "paper": "paper preset",
    "common": "Algorithm 1, common noise",
    "random": "random search",
    "default": "default",
}
BARS = {"paper": 2.0, "common": 6.0}
"""In how many % of an opponent's evaluations the default shall be as good as it."""


class Row(NamedTuple):
    """What is compared with each other."""

    model: str
    solver: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.solver}-{self.steps}"


@dataclass(frozen=True)
class Run:
    """One search.

    Attributes:
        samples: for a candidate; ``fresh_samples`` for a figure of the curve.
        evaluations: network evaluations times samples, spent on all candidates.
        curve: (evaluations, FID on fresh noise) of the best plan of the search until then; infinite if not finite.
    """

    seed: int
    samples: int
    fresh_samples: int
    candidates: int
    evaluations: int
    curve: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, content: dict[str, Any]) -> Run:
        points = [(point[0], math.inf if point[-1] is None else point[-1]) for point in content["curve"]]
        numbers = {k: content[k] for k in ("seed", "samples", "fresh_samples", "candidates", "evaluations")}
        return cls(**numbers, curve=tuple(points))

    @property
    def final(self) -> float:
        return self.curve[-1][1]

    def reaches(self, target: float) -> float:
        """Evaluations when the FID on fresh noise was first as low as ``target``; infinite if it never was."""
        return next((spent for spent, fid in self.curve if fid <= target), math.inf)


@dataclass(frozen=True)
class Kept:
    """The results of one row: the named grids' FID, and the runs of each method in the order of their seeds."""

    grids: dict[str, float]
    runs: dict[str, list[Run]]

    def best_grid(self) -> str:
        return min(self.grids, key=lambda name: self.grids[name])

    def final(self, method: str) -> float:
        return median(run.final for run in self.runs[method])

    def spent(self, method: str) -> float:
        return median(run.evaluations for run in self.runs[method])


def read(folder: Path, rows: Sequence[Row]) -> dict[Row, Kept]:
    """What the folder holds of each row.

    Raises:
        SystemExit: figures on fresh noise of one row have different numbers of samples.
    """
    found = {}
    for row in rows:
        file = folder / f"{row.name}-grids.json"
        grids = json.loads(file.read_text()) if file.exists() else {}
        runs = {}
        for method in TITLES:
            files = folder.glob(f"{row.name}-{method}-*.json")
            runs[method] = sorted((Run.of(json.loads(file.read_text())) for file in files), key=lambda run: run.seed)
        counts = {run.fresh_samples for some in runs.values() for run in some}
        if len(counts | ({grids["fresh_samples"]} if grids else set())) > 1:
            raise SystemExit(f"{folder}/{row.name}-*: fresh_samples differ; make these again with --again")
        finite = {name: math.inf if fid is None else fid for name, fid in grids.get("fid", {}).items()}
        found[row] = Kept(finite, runs)
    return found


def table(kept: dict[Row, Kept]) -> str:
    """Two Markdown tables, what each search ends with and what the default needs, and a count of the rows that hold."""
    fresh: dict[str, set[int]] = {}
    for row, one in kept.items():
        fresh.setdefault(row.model, set()).update(run.fresh_samples for some in one.runs.values() for run in some)
    counts = ", ".join(f"{', '.join(f'{n:,}' for n in sorted(ns))} ({model})" for model, ns in fresh.items() if ns)
    seeds = max((len(some) for one in kept.values() for some in one.runs.values()), default=0)
    in_two = [f"within {BARS[opponent]:g} %" for opponent in BARS]
    needs = ["as good as the paper preset after", in_two[0], "ends better"]
    needs += ["as good as Algorithm 1 with common noise after", in_two[1]]
    lines = [
        "Made by `python -m bench.compare`; the runs are in `compare/`.",
        "",
        f"FID on fresh noise, the same noise for all, of {counts} samples: median over {seeds} seeds",
        "[least, greatest], and thousands of network evaluations times samples that the search spent. The plan is the",
        "one that scored best in the search or, of the default, the one chosen among its finalists, paid for as well.",
        "",
        ABOUT,
        "",
        *_lines(["model", "solver", "steps", "uniform", "best grid", *TITLES.values()]),
        *(_line([*row, *_ends(one, seeds)]) for row, one in kept.items()),
        "",
        "Evaluations until the default's best plan matches the opponent's final plan (median over its seeds) on fresh",
        "noise, also in % of what the opponent spent: median over the default's seeds, never = infinite; and whether",
        "the default's final plan is better.",
        "",
        *_lines(["model", "solver", "steps", *needs]),
        *(_line([*row, *_needs(one, "paper"), _ends_better(one), *_needs(one, "common")]) for row, one in kept.items()),
        "",
    ]
    for opponent, words in (
        ("paper", f"the paper preset's final quality {in_two[0]} of its evaluations, and ends better,"),
        ("common", f"the final quality of Algorithm 1 with common noise {in_two[1]} of its evaluations"),
    ):
        run = [one for one in kept.values() if one.runs["default"] and one.runs[opponent]]
        good = [one for one in run if holds(one, opponent)]
        lines.append(f"- The default reaches {words} in {len(good)} of the {len(run)} rows that have been run.")
    lines += ["", "Samples for a full score (a method may drop candidates on fewer) x candidates:", ""]
    return "\n".join([*lines, *_samples(kept)]) + "\n"


def share(one: Kept, opponent: str) -> float:
    """% of the opponent's evaluations after which the default is as good as the opponent in the end."""
    target = one.final(opponent)
    return 100 * median(run.reaches(target) for run in one.runs["default"]) / one.spent(opponent)


def holds(one: Kept, opponent: str) -> bool:
    """Whether the default is as good soon enough; against the paper preset also whether it ends better."""
    better = opponent != "paper" or one.final("default") < one.final("paper")
    return better and share(one, opponent) <= BARS[opponent]


def short(value: float) -> str:
    """Two digits, or all those before the point."""
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"


def _ends(one: Kept, seeds: int) -> list[str]:
    """The cells of the first table."""
    grid = one.best_grid() if one.grids else ""
    cells = [f"{one.grids['uniform']:.4g}", f"{one.grids[grid]:.4g} ({grid})"] if grid else ["not run"] * 2
    for method in TITLES:
        runs = one.runs[method]
        if not runs:
            cells.append("not run")
            continue
        finals = [run.final for run in runs]
        fewer = f", {len(runs)} seed{'s' * (len(runs) > 1)}" if len(runs) < seeds else ""
        span = f"[{min(finals):.4g}, {max(finals):.4g}]"
        cells.append(f"{median(finals):.4g} {span}, {one.spent(method) / 1000:,.0f}k{fewer}")
    return cells


def _needs(one: Kept, opponent: str) -> list[str]:
    """When the default is as good as the opponent, and whether that is soon enough; by how much it is not."""
    if not one.runs["default"] or not one.runs[opponent]:
        return ["not run"] * 2
    runs, target, bar = one.runs["default"], one.final(opponent), BARS[opponent]
    percent = share(one, opponent)
    if percent == math.inf:
        reached = sum(run.reaches(target) < math.inf for run in runs)
        return [f"never ({reached} of {len(runs)} seeds)", "**no**: never"]
    spent = f"{percent * one.spent(opponent) / 100_000:,.1f}k = {short(percent)} %"
    return [spent, "yes" if percent <= bar else f"**no**: {short(percent / bar)} times that"]


def _ends_better(one: Kept) -> str:
    if not one.runs["default"] or not one.runs["paper"]:
        return "not run"
    difference = 100 * (one.final("default") / one.final("paper") - 1)
    return f"yes, {short(-difference)} % lower" if difference < 0 else f"**no**, {short(difference)} % higher"


def _samples(kept: dict[Row, Kept]) -> list[str]:
    """A table of samples for a candidate and of candidates, by model and method, as the runs have them."""
    steps = sorted({row.steps for row in kept})
    lines = _lines(["model", "method", *(f"{count} steps" for count in steps)])
    for model in dict.fromkeys(row.model for row in kept):
        for method, title in TITLES.items():
            cells = []
            for count in steps:
                runs = [
                    r for row, k in kept.items() if (row.model, row.steps) == (model, count) for r in k.runs[method]
                ]
                samples = ", ".join(map(str, sorted({run.samples for run in runs})))
                few, many = (f(run.candidates for run in runs) if runs else 0 for f in (min, max))
                cells.append(f"{samples} x {few}{f' to {many}' * (many > few)}" if runs else "not run")
            lines.append(_line([model, title, *cells]))
    return lines


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _lines(titles: Sequence[str]) -> list[str]:
    return [_line(titles), _line(["---"] * len(titles))]


def middle(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """The median over runs of their step curves: (evaluations, FID), from where all have begun to where most end."""
    begin = max(run.curve[0][0] for run in runs)
    places = sorted({begin, *(spent for run in runs for spent, _ in run.curve if spent > begin)})
    fids = [median([fid for spent, fid in run.curve if spent <= place][-1] for run in runs) for place in places]
    end = max(median(run.evaluations for run in runs), places[-1])
    return [*places, end], [*fids, fids[-1]]


def draw(kept: dict[Row, Kept], path: Path) -> None:
    """Writes the plot: a panel for each row, a curve for each method, thin ones for single seeds, grids dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    lanes = list(dict.fromkeys((row.model, row.solver) for row in kept))
    columns = sorted({row.steps for row in kept})
    drawing = Figure(figsize=(4 * len(columns), 2.6 * len(lanes) + 0.6), layout="constrained")
    panels = np.atleast_2d(drawing.subplots(len(lanes), len(columns), squeeze=False))
    handles: dict[str, Any] = {}
    for row, one in kept.items():
        axes = panels[lanes.index((row.model, row.solver)), columns.index(row.steps)]
        axes.set_title(f"{row.model}, {row.solver}, {row.steps} steps", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        shown = []
        for method, runs in one.runs.items():
            for run in runs:
                spent, fids = zip(*run.curve, (max(run.evaluations, run.curve[-1][0]), run.final), strict=True)
                axes.step(spent, fids, where="post", color=COLOURS[method], linewidth=0.6, alpha=0.45)
                shown += fids
            if runs:
                [handles[TITLES[method]]] = axes.step(*middle(runs), where="post", color=COLOURS[method], linewidth=1.8)
        if one.grids:
            fids = [one.grids["uniform"], one.grids[one.best_grid()]]
            for name, fid, dash in zip(("uniform", "best named grid"), fids, (":", "--"), strict=True):
                handles[name] = axes.axhline(fid, color="0.2", linewidth=0.9, linestyle=dash)
            shown += fids
        if not any(one.runs.values()):
            axes.text(0.5, 0.5, "not run", ha="center", color="0.5", transform=axes.transAxes)
            axes.set_xticks([])
            axes.yaxis.set_visible(bool(shown))
            continue
        axes.set_xscale("log")
        if max(shown) > 3 * min(shown):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
    for axes in panels[-1]:
        axes.set_xlabel("network evaluations x samples")
    for axes in panels[:, 0]:
        axes.set_ylabel("FID on fresh noise")
    if handles:
        drawing.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=80, format="png")
