"""The search: ask, evaluate, tell, and at the end confirm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autodiffusion import __version__
from autodiffusion.candidates import score_candidates, standings
from autodiffusion.confirm import confirm
from autodiffusion.errors import RunError
from autodiffusion.evaluate import Evaluator, derive_seed
from autodiffusion.grids import GRIDS
from autodiffusion.inputs import plan_of, teacher_plan
from autodiffusion.job import REPORTED, Job, teacher_reference
from autodiffusion.metrics import KL, Metric, build
from autodiffusion.models import Model
from autodiffusion.plan import Plan
from autodiffusion.progress import Quiet
from autodiffusion.racing import Race
from autodiffusion.reference import Reference
from autodiffusion.report import GRID, picture, report
from autodiffusion.sampling import Cost, sample
from autodiffusion.settings import Settings
from autodiffusion.strategies import hopeful
from autodiffusion.study import LEDGER, PLAN, Study

TEACHER = "reference.npz"
"""Where a study keeps a reference that its model made itself."""


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        plan: the plan, with its fresh-noise figure as origin.
        rows: the final table: uniform, the best named grid, found, and the teacher where asked for.
        search_cost: spent on candidates; ``confirm_cost`` on choosing among the best and on the table.
    """

    plan: Plan
    rows: list[dict[str, Any]]
    search_cost: Cost
    confirm_cost: Cost


def search(settings: Settings, out: Path, progress: Quiet | None = None, model: Model | None = None) -> Result:
    """Searches a plan and leaves it, the ledger, the pictures and the report in ``out``; resumes what is there.

    Args:
        model: the settings' model, where it is loaded already.

    Raises:
        InputError: something in the settings or in ``out`` cannot be used; nothing has been written.
        RunError: no candidate gave finite images.
    """
    progress = progress or Quiet()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    job = Job.of(settings, model)
    with Study(out, job.settings) as study:
        if not study.of_kind("confirm"):
            reference = job.reference or teacher_reference(job, out / TEACHER, progress)
            metric = build(settings.metric, reference)
            _begin(job, study)
            score_candidates(job, metric, study, progress)
            _confirm(job, metric, reference, study, progress)
        result = _result(study)
        result.plan.save(out / PLAN)
        _picture(job, result, out)
        report(out)
    return result


def _begin(job: Job, study: Study) -> None:
    """Notes what the report draws besides the scores."""
    if study.events:
        return
    schedule = job.evaluator.model.schedule
    times = [float(t) for t in np.linspace(0, len(schedule) - 1, 201)]
    study.record(
        {
            "event": "start",
            "autodiffusion": __version__,
            "times": times,
            "log_snr": [schedule.log_snr(t) for t in times],
            "planned": job.strategy.planned,
        }
    )


def _confirm(job: Job, metric: Metric | KL, reference: Reference, study: Study, progress: Quiet) -> None:
    """Chooses among the best on fresh noise, and scores the choice and its opponents on other fresh noise."""
    settings, evaluator = job.settings, job.evaluator
    before = replace(evaluator.cost)
    ranked = list(standings(study, metric))
    if not ranked:
        raise RunError(f"no candidate could be scored; {study.folder / LEDGER} says why for each")
    grids = {_grid(job, name): name for name in ["uniform", *(name for name in job.starts if name in GRIDS)][::-1]}
    finalists = ranked[: settings.finalists]
    raced = len(grids) + (len(finalists) + 2) * (len(finalists) > 1)
    scored = raced + min(2, len(grids)) + 1
    progress.phase("confirm", scored * settings.confirm_samples * job.nfe + settings.teacher * settings.confirm_samples)
    best_grid = _choose(list(grids), metric, settings, evaluator, progress)
    if len(finalists) > 1:  # a search that found nothing better than a grid or a given start must not end with less
        starts = [plan for plan in ranked if plan in job.starts.values()][:1]
        finalists = list(dict.fromkeys([*finalists, best_grid, *starts]))
    named = {"uniform": _grid(job, "uniform")}
    if grids[best_grid] != "uniform":
        named[f"{grids[best_grid]} (best grid)"] = best_grid
    named["found"] = _choose(finalists, metric, settings, evaluator, progress)
    if settings.teacher:
        named[f"teacher ({settings.teacher} steps)"] = teacher_plan(evaluator.model, settings.teacher)
    metrics = list(dict.fromkeys([settings.metric, REPORTED]))
    rows = confirm(evaluator, reference, named, metrics, settings.confirm_samples, settings.seed, progress.tick)
    spent = evaluator.cost - before
    study.record(
        {
            "event": "confirm",
            "finalists": [finalist.digest for finalist in finalists],
            "rows": [row.to_json() for row in rows],
            "evaluations": spent.evaluations,
            "saved": spent.saved,
        }
    )


def _choose(
    finalists: list[Plan], metric: Metric | KL, settings: Settings, evaluator: Evaluator, progress: Quiet
) -> Plan:
    """The best of the finalists, in a race on noise that neither the search nor the final table uses."""
    seed, samples = derive_seed(settings.seed, "finalists"), settings.confirm_samples
    sign = -1.0 if metric.better == "higher" else 1.0
    if isinstance(metric, KL):
        scores = evaluator.scores(finalists, metric, min(samples, metric.available), seed, progress.tick)
        return min(zip(finalists, scores, strict=True), key=lambda pair: sign * pair[1].value)[0]
    race = Race(evaluator, metric, samples, seed, 0)
    for count in race.counts:
        if len(finalists) == 1:
            break
        lap = race.lap(finalists, count, tick=progress.tick)
        losses = {plan: sign * score.value for plan, score in zip(finalists, lap.scores, strict=True)}
        errors = {plan: e for plan, e in zip(finalists, lap.errors, strict=True) if math.isfinite(e)}
        finalists = hopeful(losses, errors) or finalists
    return finalists[0]


def _grid(job: Job, name: str) -> Plan:
    """A named grid as ``evaluate`` takes it, which is not quite the space's nearest where times are real numbers."""
    model, settings = job.evaluator.model, job.settings
    if job.space.free_end:
        return job.space.named(name, model.schedule)
    return plan_of(f"{name}:{settings.steps}", model, settings.solver, settings.solver_options)


def _result(study: Study) -> Result:
    """The result that the ledger holds."""
    confirmed = study.of_kind("confirm")[-1]
    row = next(row for row in confirmed["rows"] if row["name"] == "found")
    settings = study.settings
    plan = Plan.model_validate(row["plan"]).with_origin(
        model=settings.model,
        metric=settings.metric,
        **row["scores"].get(settings.metric, {}),
        samples=row["samples"],
        seed=row["seed"],
        autodiffusion=__version__,
    )
    events = study.of_kind("scores")
    searched = Cost(sum(event["evaluations"] for event in events), sum(event["saved"] for event in events))
    return Result(plan, confirmed["rows"], searched, Cost(confirmed["evaluations"], confirmed["saved"]))


def _picture(job: Job, result: Result, out: Path) -> None:
    """The same seeds by each plan of the table, side by side."""
    if not (out / GRID).exists():
        named = {row["name"]: Plan.model_validate(row["plan"]) for row in result.rows if row["problem"] is None}
        picture(
            {name: sample(job.evaluator.model, plan, 36, job.settings.seed) for name, plan in named.items()}, out / GRID
        )
