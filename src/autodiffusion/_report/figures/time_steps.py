"""The noise schedule with the plans' time steps on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._plans.grids import fitting, grid
from autodiffusion._plans.schedule import Floats, NoiseSchedule
from autodiffusion._report.drawing import brief
from autodiffusion._report.figures._base import Chart, Entry
from autodiffusion._report.run import Run
from autodiffusion._report.style import ACCENT, HEIGHT, INK, QUIET, blank
from autodiffusion._report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 0.01
"""How far, as a share of the time range, a plan in the ledger may lie from a named grid that is worked out again."""


def table(run: Run) -> Table:
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
    whole = np.arange(round(times[0]), round(times[-1]) + 1)
    try:
        noise = NoiseSchedule(1 / (1 + np.exp(-2 * np.interp(whole, times, log_snr))))
        steps = run.settings.steps
        # real; and whole, since those that rounding makes equal are moved apart
        worked_out = fitting(
            lambda name: [whole[0] + np.array(grid(name, steps, noise, continuous=real)) for real in (True, False)]
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


def draw(table: Table) -> Figure:
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


def chart(run: Run) -> Chart | None:
    """The figure of a search whose ledger has a plan or a grid."""
    data = table(run)
    names = list(dict.fromkeys(row[1] for row in data.rows if row[0] != "schedule"))
    if not names:
        return None
    return Chart(
        "time_steps",
        "Time steps on the noise schedule",
        f"Time steps on the log-SNR curve of the model, of {', '.join(names)}",
        "Above, half the logarithm of signal over noise; below, when each plan asks the network.",
        data,
        draw,
    )


figure = Entry(20, chart)
