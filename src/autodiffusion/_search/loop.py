"""The search: ask, evaluate, tell, and at the end confirm."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autodiffusion import __version__
from autodiffusion._errors import RunError
from autodiffusion._evaluation.confirm import confirm
from autodiffusion._interrupts import patient
from autodiffusion._names import resolve
from autodiffusion._plans.grids import fitting
from autodiffusion._plans.plan import Plan
from autodiffusion._references.reference import Reference
from autodiffusion._report import report
from autodiffusion._sampling.blocks import Workers
from autodiffusion._sampling.sampling import Cost
from autodiffusion._search.candidates import score_candidates, standings
from autodiffusion._search.crew import at_work, keeping
from autodiffusion._search.finalists import choice, choose
from autodiffusion._search.inputs import plan_of, teacher_plan
from autodiffusion._search.job import REPORTED, Job, teacher_reference
from autodiffusion._search.pricing import load_times, save_times
from autodiffusion._search.showing import show
from autodiffusion._spaces.costs import Costs
from autodiffusion._study import frames
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import LEDGER, PLAN, Study
from autodiffusion._views import tensorboard
from autodiffusion._views.progress import Quiet
from autodiffusion._views.watch import Watch
from autodiffusion.metrics import Metric
from autodiffusion.metrics._build import build
from autodiffusion.metrics.kl import KL
from autodiffusion.models._model import Model

if TYPE_CHECKING:
    from pandas import DataFrame

TEACHER = "reference.npz"
"""Where a study keeps a reference that its model made itself."""
TIMES = "layer_times.json"
"""Where a study keeps the measured times of its model's layers, in which its budget is counted."""


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        plan: the plan, with its fresh-noise figure and its cost as origin.
        rows: the final table: uniform, the best named grid, found, and the teacher where asked for; each with its
            ``cost`` in every unit that is known, where the network has layers; found also with what it ``searched``:
            its score in the search, on so many samples.
        search_cost: spent on candidates; ``confirm_cost`` on choosing among the best and on the table.
    """

    plan: Plan
    rows: list[dict[str, Any]]
    search_cost: Cost
    confirm_cost: Cost

    def dataframe(self) -> DataFrame:
        """The final table as a frame of pandas; see :func:`autodiffusion._study.frames.of_rows`.

        Raises:
            InputError: pandas is not installed.
        """
        return frames.of_rows(self.rows)

    def _repr_html_(self) -> str:
        searched, confirmed = self.search_cost, self.confirm_cost
        spent = (
            f"search: {searched.evaluations:,} network evaluations times samples, {searched.saved:,} more saved by "
            f"sharing; confirmation: {confirmed.evaluations:,}"
        )
        return frames.html(self.rows, [spent])


def search(
    settings: Settings,
    out: Path,
    progress: Quiet | None = None,
    model: Model | None = None,
    times: Costs | None = None,
    workers: Workers | None = None,
) -> Result:
    """Searches a plan and leaves it, the ledger, the pictures and the report in ``out``; resumes what is there.

    Within it, the first Ctrl-C waits until the blocks of noise that are being sampled are done and kept.

    Args:
        model: the settings' model, where it is loaded already.
        times: of its layers, where they are measured already and ``max_cost`` is counted in them.
        workers: of the settings, where they are at work already.

    Raises:
        InputError: something in the settings or in ``out`` cannot be used; nothing has been written.
        RunError: no candidate gave finite images, or one worker after the other died.
        KeyboardInterrupt: asked for; called again, the search goes on.
    """
    progress = progress or Quiet()
    job = _job(settings, out, model, times)
    with ExitStack() as stack:
        workers = stack.enter_context(at_work(job, out, workers))
        study = stack.enter_context(Study(out, job.settings))
        with patient(), Watch(study, job.evaluator.model, progress):
            if not study.of_kind("confirm"):
                job, kept = keeping(job, study, workers)
                metric, reference = _score(job, study, progress)
                _confirm(job, metric, reference, study, progress)
                kept.clear()
        result = _result(study)
        result.plan.save(out / PLAN)
        show(job.evaluator.model, job.settings, result.rows, out, progress)
        report(out)
    return result


def explore(
    settings: Settings,
    out: Path,
    share: float,
    progress: Quiet | None = None,
    model: Model | None = None,
    times: Costs | None = None,
    workers: Workers | None = None,
) -> tuple[tuple[int, float], Plan] | None:
    """A search that stops after ``share`` of what it may spend; another call, or :func:`search`, goes on with it.

    Args:
        model: as of :func:`search`, and so ``times`` and ``workers``.

    Returns:
        The best plan's standing, lower is better: the negative of its samples, and its loss; and the plan. With layers
        it may cost more than what is found. ``None`` if no candidate has a score.
    """
    progress = progress or Quiet()
    job = _job(settings, out, model, times)
    with ExitStack() as stack:
        workers = stack.enter_context(at_work(job, out, workers))
        study = stack.enter_context(Study(out, job.settings))
        with patient(), Watch(study, job.evaluator.model, progress):
            job, kept = keeping(job, study, workers)
            metric, _ = _score(job, study, progress, share)
            kept.clear()
        found = standings(study.events, metric)
    return next((((-samples, loss), plan) for plan, (samples, loss) in found.items()), None)


def _job(settings: Settings, out: Path, model: Model | None, times: Costs | None) -> Job:
    """What the search in ``out`` works with; nothing has been written yet."""
    if settings.tensorboard:
        tensorboard.check()
    return Job.of(settings, model, load_times(out / TIMES) or times)


def _score(job: Job, study: Study, progress: Quiet, share: float = 1.0) -> tuple[Metric | KL, Reference]:
    """Scores candidates, and gives what they were scored by."""
    if job.times and not (study.folder / TIMES).exists():
        save_times(job.times, study.folder / TIMES)
    reference = job.reference or teacher_reference(job, study.folder / TEACHER, progress)
    metric = build(job.settings.metric, reference)
    _begin(job, study)
    score_candidates(job, metric, study, progress, share)
    return metric, reference


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
            "better": resolve("metrics", job.settings.metric).better,
            "guidance": job.evaluator.model.guidance,
            **({"layers": [vars(layer) for layer in job.evaluator.model.layers]} if job.layers else {}),
        }
    )


def _confirm(job: Job, metric: Metric | KL, reference: Reference, study: Study, progress: Quiet) -> None:
    """Chooses among the best on fresh noise, and scores the choice and its opponents on other fresh noise."""
    settings, evaluator = job.settings, job.evaluator
    before = replace(evaluator.cost)
    scored = standings(study.events, metric)
    if not scored:
        raise RunError(f"no candidate could be scored; {study.folder / LEDGER} says why for each")
    ranked = [plan for plan in scored if job.allows(plan)]
    if not ranked:
        raise RunError(f"no candidate scored costs at most {settings.max_cost}; give the search a larger budget")
    grids = _grids(job)
    finalists = choice(ranked, settings.finalists, len(evaluator.model.schedule) - 1)
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


def _result(study: Study) -> Result:
    """The result that the ledger holds."""
    confirmed = study.of_kind("confirm")[-1]
    row = next(row for row in confirmed["rows"] if row["name"] == "found")
    settings, [start] = study.settings, study.of_kind("start")
    plan = Plan.model_validate(row["plan"]).with_origin(
        model=settings.model,
        **({"guidance": start["guidance"]} if "guidance" in start else {}),
        metric=settings.metric,
        **row["scores"].get(settings.metric, {}),
        samples=row["samples"],
        seed=row["seed"],
        **({"cost": row["cost"]} if "cost" in row else {}),
        autodiffusion=__version__,
    )
    events = study.of_kind("scores")
    searched = Cost(sum(event["evaluations"] for event in events), sum(event["saved"] for event in events))
    return Result(plan, confirmed["rows"], searched, Cost(confirmed["evaluations"], confirmed["saved"]))
