"""What came out, laid beside what was published, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autodiffusion._errors import InputError
from autodiffusion._evaluation.evaluate import describe
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.published import read
from autodiffusion._search.inputs import plan_of
from paper.experiments import Experiment, Row
from paper.runs import Runs

NONE = "-"
"""What is not known, or not searched."""


@dataclass(frozen=True)
class Cell:
    """A plan of a row with its figure, or why there is none.

    Attributes:
        figure: as of :meth:`Runs.figure`.
        problem: why there is none.
    """

    plan: Plan | None = None
    figure: dict[str, Any] | None = None
    problem: str | None = None

    @property
    def fid(self) -> float | None:
        """The value, where there is one."""
        return None if self.figure is None else self.figure["scores"].get("fid", {}).get("value")

    def __str__(self) -> str:
        if self.figure is None:
            return self.problem or NONE
        scores = self.figure["scores"]
        if self.fid is None:
            return str(self.figure["problem"] or "not finite")
        fid, score = scores["fid"], scores["inception_score"]
        return f"{fid['value']:.2f} ± {(fid['high'] - fid['low']) / 2:.2f} / {score['value']:.2f}"


def cell(runs: Runs, row: Row, steps: int) -> Cell:
    """The figure of what a row has for this number of steps; of a plan that does not fit its model, why."""
    if row.found and runs.found(row.search, steps) is None:
        return Cell()
    runs.model(row.system)
    try:
        plan = runs.plan(row, steps)
    except InputError as error:
        return Cell(problem=f"no figure: {error}")
    return Cell(plan, runs.figure(plan, row.system)) if plan else Cell()


def published_cell(runs: Runs, row: Row) -> Cell:
    """The figure of the published plan of a row, made here."""
    if row.plan is None:
        return Cell()
    model = runs.model(row.system)
    try:
        plan = plan_of(row.plan, model)
    except InputError as error:
        return Cell(problem=f"no figure: {error}")
    return Cell(plan, runs.figure(plan, row.system))


def published(row: Row, steps: int) -> str:
    """FID / inception score as printed, of two decimals or more."""
    values = (f"{value:.2f}" if round(value, 2) == value else f"{value:g}" for value in row.published.get(steps, ()))
    return " / ".join(values) or NONE


def of_figures(experiment: Experiment, cells: dict[tuple[str, int], Cell]) -> str:
    """A row a method, and for each number of steps what was published and what came out here."""
    head = [f"{steps} steps, {where}" for steps in experiment.steps for where in ("published", "here")]
    lines = []
    for row in experiment.rows:
        line = [row.name]
        for steps in experiment.steps:
            line += [published(row, steps), str(cells.get((row.name, steps), NONE))]
        lines.append(line)
    return markdown(["FID / inception score", *head], lines)


def of_plans(experiment: Experiment, cells: dict[tuple[str, int], Cell], theirs: dict[str, Cell]) -> str:
    """Two rows a published plan: it, with its published figure and the one made here; and what was found here."""
    lines = []
    for row in experiment.rows:
        for steps in row.steps:
            printed, here = theirs[row.name], cells[row.name, steps]
            lines.append([row.name, "published", steps_of(read(str(row.plan))), published(row, steps), str(printed)])
            lines.append(["", "found here", NONE if here.plan is None else steps_of(here.plan), NONE, str(here)])
    head = ["", "", "steps", "FID / inception score, published", "FID / inception score, here"]
    return markdown(head, lines)


def steps_of(plan: Plan) -> str:
    """``926, 690, 424, 153 without layer 55``: times, and after each the layers that are left out there."""
    out = [
        f"layer{'s' * (len(step.skip) > 1)} {', '.join(map(str, sorted(step.skip)))} at {step.t:g}"
        for step in plan.steps
        if step.skip
    ]
    return describe(plan) + (f"; without {'; '.join(out)}" if out else "")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def notes(experiment: Experiment, runs: Runs) -> list[str]:
    """What to know when reading it: sources, samples, what is assumed and what was replaced."""
    paper, systems = runs.paper, list(dict.fromkeys(row.system for row in experiment.rows))
    said = [f"Published: {experiment.source}.", experiment.note]
    searches = {row.search: paper.searches[row.search].get("assumed") for row in experiment.rows if row.found}
    said += [f"Assumed of {name}: {assumed}." for name, assumed in searches.items() if assumed]
    measured = experiment.kind in ("figures", "plans")
    made = [
        f"{paper.final(name):,} samples of " * measured
        + f"{paper.systems[name]['title']} ({paper.systems[name]['model']})"
        for name in systems
    ]
    how = "; ± is half of the 95 % interval" * measured
    said.append(f"Here: {'; '.join(dict.fromkeys(made))}, seed {runs.seed}{how}.")
    if paper.scale < 1:
        said.append(f"Made at --scale {paper.scale:g}. FIDs of fewer samples are higher, also of the same plan.")
    if paper.every:
        said.append("The searches are smaller than the paper's.")
    return [line for line in said if line]
