"""The final table: what is found among the best candidates, and its figures and its opponents' on fresh noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from autodiffusion._errors import RunError
from autodiffusion._evaluation.confirm import confirm
from autodiffusion._plans.grids import fitting
from autodiffusion._plans.plan import Plan
from autodiffusion._references.reference import Reference
from autodiffusion._search.candidates import standings
from autodiffusion._search.finalists import choice, choose
from autodiffusion._search.inputs import plan_of, teacher_plan
from autodiffusion._search.job import REPORTED, Job
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import LEDGER, Study
from autodiffusion._views.progress import Quiet
from autodiffusion.metrics import Metric
from autodiffusion.metrics.kl import KL


def final_table(job: Job, metric: Metric | KL, reference: Reference, study: Study, progress: Quiet) -> None:
    """Chooses among the best on fresh noise, and scores the choice and its opponents on other fresh noise.

    Raises:
        RunError: no candidate has a score, or none of those that have may be found.
    """
    settings, evaluator = job.settings, job.evaluator
    before = replace(evaluator.cost)
    scored = standings(study.events, metric)
    if not scored:
        raise RunError(
            f"no candidate could be scored, the first because {_problem(study)}; {study.folder / LEDGER} says why for "
            "each. They count as done: mend it and give another --out, or delete the folder"
        )
    ranked = [plan for plan in scored if job.allows(plan)]
    if not ranked:
        raise RunError(f"no candidate scored costs at most {settings.max_cost}; give the search a larger budget")
    grids = _grids(job)
    finalists = choice(ranked, settings.finalists, evaluator.model.schedule.last, job.space.free)
    starts = [plan for plan in ranked if plan in job.starts.values()][:1]
    starts += [plan for plan in ranked if not any(plan.params)][:1]
    raced = len(grids) + (len(finalists) + 2) * (len(finalists) > 1)
    dearest = max(job.nfe(plan) for plan in [*grids, *finalists, *starts])
    estimate = (raced + min(2, len(grids)) + 1) * dearest + settings.teacher
    progress.phase("confirm", estimate * settings.confirm_samples)
    best_grid = choose(list(grids), metric, settings, evaluator, progress)
    if len(finalists) > 1:  # a search that found nothing better than a grid or a given start must not end with less
        finalists = list(dict.fromkeys([*finalists, *([best_grid] if job.allows(best_grid) else []), *starts]))
    whole = f"{job.whole_steps} whole step{'s' * (job.whole_steps > 1)}" if job.layers else ""
    named = {f"uniform ({whole})" if whole else "uniform": _grid(job, "uniform")}
    if grids[best_grid] != "uniform":
        named[f"{grids[best_grid]} (best grid{', ' * bool(whole)}{whole})"] = best_grid
    named["found"] = choose(finalists, metric, settings, evaluator, progress)
    if settings.teacher:
        named[f"teacher ({settings.teacher} steps)"] = teacher_plan(evaluator.model, settings.teacher)
    metrics = list(dict.fromkeys([settings.metric, REPORTED]))
    rows = confirm(evaluator, reference, named, metrics, settings.confirm_samples, settings.seed, progress.tick)
    searched = _searched(scored.get(named["found"]), metric, settings)
    if searched:  # only scores of equally many samples can be held against each other
        found, count = {"found": named["found"]}, searched["samples"]
        [again] = confirm(evaluator, reference, found, [settings.metric], count, settings.seed, progress.tick)
        searched["fresh"] = again.to_json()["scores"].get(settings.metric)
    extra = {"searched": searched} if searched.get("fresh") else {}
    spent = evaluator.cost - before
    study.record(
        {
            "event": "confirm",
            "finalists": [finalist.digest for finalist in finalists],
            "rows": [row.to_json() | _cost(job, row.plan) | (extra if row.name == "found" else {}) for row in rows],
            "evaluations": spent.evaluations,
            "saved": spent.saved,
        }
    )


def _problem(study: Study) -> str:
    """Why the first candidate has no score."""
    problems = (entry["problem"] for event in study.of_kind("scores") for entry in event["scores"])
    return next(filter(None, problems), "none was tried")


def _searched(standing: tuple[int, float] | None, metric: Metric | KL, settings: Settings) -> dict[str, Any]:
    """What a row says of its plan's score in the search; nothing where that was no more than a first look."""
    if standing is None or standing[0] < settings.samples:
        return {}
    samples, loss = standing
    return {"samples": samples, "value": -loss if metric.better == "higher" else loss}


def _cost(job: Job, plan: Plan) -> dict[str, Any]:
    """What a row says of its plan's cost: nothing where the network has no layers."""
    return {"cost": job.pricing.plan(plan)} if job.pricing.costs else {}


def _grids(job: Job) -> dict[Plan, str]:
    """The named grids that fit the model and the number of steps, by the plans that they are."""
    named = fitting(partial(_grid, job))
    return {plan: name for name, plan in reversed(named.items())}  # of names of the same plan the first


def _grid(job: Job, name: str) -> Plan:
    """A named grid as ``evaluate`` takes it, which is not quite the space's nearest where times are real numbers."""
    model, settings = job.evaluator.model, job.settings
    space = job.layers.spaces[job.whole_steps] if job.layers else job.space
    if space.free_end:
        return space.named(name, model.schedule)
    return plan_of(f"{name}:{space.steps}", model, settings.solver, settings.solver_options)
