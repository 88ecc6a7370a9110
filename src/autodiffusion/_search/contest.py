"""Several solvers in one go: their searches race, and the best goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from autodiffusion._errors import InputError, RunError
from autodiffusion._plans.plan import Plan
from autodiffusion._sampling.blocks import Workers
from autodiffusion._search.crew import crew_of
from autodiffusion._search.job import Job
from autodiffusion._search.loop import TIMES, Result, explore, search, spent_on, with_teacher
from autodiffusion._search.pricing import load_times
from autodiffusion._spaces.costs import Costs
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import LEDGER, PLAN, check_several, read_events
from autodiffusion._views.progress import Quiet

LOOKS = (0.15, 0.4)
"""Shares of a whole search after each of which the worse half of the solvers is out."""
GENERAL = "gls"
"""The solver that goes on from any other: not one of those that race."""
FINISH = 1
"""What it spends, in whole searches."""


def search_solvers(
    solvers: Sequence[str], out: Path, progress: Quiet | None = None, where: str = "settings", **options: Any
) -> dict[str, Result]:
    """A plan of the best of several solvers, each searched in a folder of ``out`` that is called by it.

    The worse half stops at each of :data:`LOOKS`, by the best score on the noise that all share. Where ``gls`` is among
    them, it then moves its free numbers from the best plan of the others, which it has for its plain solver. A solver
    with more than one network evaluation a step gets fewer steps, so that no plan has more evaluations than ``steps``.
    A ``budget`` holds for all together. Interrupted and called again it goes on, as
    :func:`~autodiffusion._search.loop.search` does.

    Args:
        options: as of :class:`Settings`, without ``solver``.

    Returns:
        The result of the last search, by its solver's name, with what all together have spent; its plan is also
        ``plan.json`` in ``out``.

    Raises:
        InputError: as :func:`~autodiffusion._search.loop.search`, for any of the solvers, before anything is written.
        RunError: as there.
    """
    progress = progress or Quiet()
    check_several(out)
    racing = [name for name in dict.fromkeys(solvers) if name != GENERAL]
    general = GENERAL in solvers
    if not racing:
        raise InputError(
            f"{where}: solver: names no other than {GENERAL}; give one that it can go on from, such as ddim"
        )
    options = {key: value for key, value in options.items() if value is not None}
    budget = Settings.of(where, **options, solver=racing[0]).budget
    if general and options.get("layers"):
        raise InputError(f"{where}: {GENERAL} does not leave out layers; leave it out of the solvers, or --layers")
    if general and options.get("free_numbers") is False:
        raise InputError(f"{where}: {GENERAL} searches free numbers alone; leave out one of the two")
    each = None if budget is None else _each(budget, len(racing), general)
    options["budget"] = each
    if general:
        options = {"free_numbers": False} | options
    field: dict[str, Settings] = {}
    job, times = None, load_times(out / racing[0] / TIMES)
    for name in racing:
        field[name], job = _settings(where, options | {"solver": name}, times, progress, job)
        if general:
            try:
                _finishing(where, options | {"steps": field[name].steps}, name, None, job)
            except InputError as error:
                raise InputError(f"{where}: {GENERAL} cannot go on from {name}: {error}") from None
        if name != racing[0]:
            field[name] = with_teacher(field[name], out / racing[0])
    assert job is not None
    # whose plan is there already needs nobody else, nor do those that have lost
    here = nullcontext(job.evaluator.workers)
    with here if (out / PLAN).exists() else crew_of(next(iter(field.values()))) as workers:
        winner, start = _race(field, out, (*LOOKS, 1.0) if general else LOOKS, progress, job, workers)
        settings = field[winner]
        if general:
            start.save(out / f"{winner}.json")
            settings, winner = _finishing(where, options, winner, out / f"{winner}.json", job), GENERAL
            settings = with_teacher(settings, out / racing[0])
        progress.part(f"solver {winner}")
        result = search(settings, out / winner, progress, before=job, workers=workers)
    result.plan.save(out / PLAN)
    ledgers = [out / name / LEDGER for name in dict.fromkeys([*racing, winner])]
    spent = spent_on(event for ledger in ledgers for event in read_events(ledger))
    return {winner: replace(result, search_cost=spent)}


def _race(
    field: dict[str, Settings],
    out: Path,
    looks: Sequence[float],
    progress: Quiet,
    before: Job,
    workers: Workers | None,
) -> tuple[str, Plan]:
    """The solver that is left after the last of ``looks``, and the best plan that it has found."""
    found: dict[str, tuple[tuple[int, float], Plan]] = {}
    for share in looks:
        for number, name in enumerate(field, 1):
            progress.part(f"solver {name} ({number} of {len(field)}, to {share:.0%})")
            best = explore(field[name], out / name, share, progress, before=before, workers=workers)
            found |= {name: best} if best else {}
        ranked = sorted((name for name in field if name in found), key=lambda name: found[name][0])
        if not ranked:
            raise RunError(
                f"no candidate of any solver has a score; the ledgers in {out} say why, or the budget is too small"
            )
        field = {name: field[name] for name in ranked[: math.ceil(len(ranked) / 2)]}
        if share == LOOKS[-1]:
            field = {ranked[0]: field[ranked[0]]}
    [winner] = field
    return winner, found[winner][1]


def _each(budget: int, count: int, general: bool) -> int:
    """What a whole search of one solver may spend, so that all together stay within the budget."""
    going, before, total = count, 0.0, 0.0
    for share in LOOKS:
        total += going * (share - before)
        going, before = math.ceil(going / 2), share
    return int(budget / (total + 1 - before + FINISH * general))


def _settings(
    where: str, options: dict[str, Any], times: Costs | None, progress: Quiet, before: Job | None
) -> tuple[Settings, Job]:
    """The settings of one solver, with as many steps as its evaluations allow, and the job that they describe."""
    settings = Settings.of(where, **options)
    job = Job.of(settings, None, times, progress, before)
    counts = [steps for steps in range(1, settings.steps + 1) if sum(job.evaluations(steps)) <= settings.steps]
    if not counts:
        raise InputError(f"{where}: solver {settings.solver} needs more network evaluations than {settings.steps}")
    if counts[-1] == settings.steps:
        return settings, job
    settings = settings.model_copy(update={"steps": counts[-1]})
    return settings, Job.of(settings, before=job)


def _finishing(where: str, options: dict[str, Any], plain: str, start: Path | None, before: Job) -> Settings:
    """The settings of the general solver on ``plain``, from the plan in the file ``start`` on; they can be searched."""
    own = options.get("solver_options", {}) | {"plain": plain}
    given = options | {"solver": GENERAL, "solver_options": own, "free_numbers": True}
    if given["budget"] is not None:
        given["budget"] *= FINISH
    if start is not None:
        plan = Plan.load(start)
        given |= {"steps": len(plan.steps), "free_end": plan.end is not None, "starts": ["uniform", str(start)]}
    settings = Settings.of(where, **given)
    if settings.strategy == "ladder":  # the times have been searched
        known = {"family": False, "explorations": 0}
        settings = settings.model_copy(update={"strategy_options": known | settings.strategy_options})
    Job.of(settings, before=before)
    return settings
