"""What the figures of a report show, as tables: one function a figure, no drawing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._plans.grids import fitting, grid
from autodiffusion._plans.schedule import Floats, NoiseSchedule
from autodiffusion._report.run import Run
from autodiffusion._study.standing import Candidate

BEST = 15
"""How many of the best plans the occurrence of time steps is counted in (AutoDiffusion, figure 5)."""
NEAR = 0.01
"""How far, as a share of the time range, a plan in the ledger may lie from a named grid that is worked out again."""
PARTS = ("left out", "runs")


@dataclass(frozen=True)
class Table:
    """Named columns and rows of numbers, texts and ``None``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def where(self, name: str, *values: Any) -> Table:
        """The rows that have one of these values in a column."""
        place = self.columns.index(name)
        return Table(self.columns, tuple(row for row in self.rows if row[place] in values))

    def csv(self) -> str:
        """As comma-separated values; numbers with all their digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


def in_full(candidates: Sequence[Candidate], samples: int) -> list[Candidate]:
    """Those with a value of their own that stands on all ``samples``, which can be compared with one another."""
    return [c for c in candidates if c.own and c.value is not None and c.samples == samples]


def convergence(candidates: Sequence[Candidate], rows: Sequence[dict[str, Any]], metric: str, samples: int) -> Table:
    """Every full score over what was spent, and each row of the final table, on fresh noise.

    What a race scored with fewer samples costs as well, but is no score of this kind; nor are plans that cost more than
    may be found.
    """
    shown = [c for c in in_full(candidates, samples) if c.allowed]
    search = [("search", "candidate", c.samples, c.spent, c.value, None, None) for c in shown]
    fresh = [
        (
            "fresh noise",
            row["name"],
            row["samples"],
            None,
            *(row["scores"][metric][k] for k in ("value", "low", "high")),
        )
        for row in rows
        if row["scores"].get(metric, {}).get("value") is not None
    ]
    columns = ("noise", "plan", "samples", "evaluations", "value", "low", "high")
    return Table(columns, (*search, *fresh))


def schedule(run: Run) -> Table:
    """The noise schedule, and on it the time steps of the final table's plans and of the named grids."""
    if not run.start:
        return Table((), ())
    times, log_snr = run.start["times"], run.start["log_snr"]
    curve = [("schedule", "", t, level) for t, level in zip(times, log_snr, strict=True)]
    named = [("plan", row["name"], row["plan"]) for row in run.rows]
    if not named and run.ranked:
        named = [("plan", "best so far", run.ranked[0].plan)]
    named += [("grid", name, plan) for name, plan in grids(run).items()]
    steps = [
        (kind, name, step["t"], float(np.interp(step["t"], times, log_snr)))
        for kind, name, plan in named
        for step in plan["steps"]
    ]
    return Table(("kind", "name", "t", "log_snr"), (*curve, *steps))


def grids(run: Run) -> dict[str, dict[str, Any]]:
    """The named grids among the plans that the search began with, but those that the final table has.

    The ledger keeps the plans without their names. Each grid is worked out again on the schedule as the ledger has it,
    which is near enough to find its plan in the first round.
    """
    first = [c.plan for c in run.candidates if c.round == 0]
    times, log_snr = np.array(run.start["times"]), np.array(run.start["log_snr"])
    whole = np.arange(round(times[-1]) + 1)
    try:
        noise = NoiseSchedule(1 / (1 + np.exp(-2 * np.interp(whole, times, log_snr))))
        steps = run.settings.steps
        # real; and whole, since those that rounding makes equal are moved apart
        worked_out = fitting(
            lambda name: [np.array(grid(name, steps, noise, continuous=real)) for real in (True, False)]
        )
    except InputError:  # a schedule of another kind, or of fewer times than steps
        return {}
    known = [row["plan"]["steps"] for row in run.rows]
    found = {}
    for name in run.settings.starts:
        near = _nearest(worked_out[name], first, max(1.0, NEAR * times[-1])) if name in worked_out else None
        if near and near["steps"] not in known:
            found[name] = near
    return found


def _nearest(either: Sequence[Floats], plans: Sequence[dict[str, Any]], most: float) -> dict[str, Any] | None:
    """The plan whose times are nearest to the first of ``either`` that has any at most ``most`` away in each."""
    for times in either:
        same = [plan for plan in plans if len(plan["steps"]) == len(times)]
        far = {i: np.abs(times - [step["t"] for step in plan["steps"]]).max() for i, plan in enumerate(same)}
        nearest = min(far, key=lambda i: far[i], default=None)
        if nearest is not None and far[nearest] <= most:
            return same[nearest]
    return None


def occurrence(run: Run) -> Table:
    """The time steps of the best plans in the search, best first."""
    rows = [
        (rank, candidate.value, candidate.samples, number, step["t"])
        for rank, candidate in enumerate(run.ranked[:BEST], 1)
        for number, step in enumerate(candidate.plan["steps"], 1)
    ]
    return Table(("rank", "value", "samples", "step", "t"), tuple(rows))


def layers(run: Run) -> Table:
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


def front(run: Run) -> Table:
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


def spending(run: Run) -> Table:
    """What each round of the search spent, and what it saved as plans shared their beginnings."""
    rows: dict[int, list[int]] = {}
    for event in run.events:
        if event["event"] == "scores":
            row = rows.setdefault(event["generation"], [event["samples"], 0, 0, 0])
            for place, value in enumerate((len(event["scores"]), event["evaluations"], event["saved"]), 1):
                row[place] += value
    columns = ("round", "samples", "candidates", "evaluations", "saved")
    return Table(columns, tuple((number, *row) for number, row in rows.items()))
