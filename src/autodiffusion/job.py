"""Job: everything a search works with, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autodiffusion.errors import InputError
from autodiffusion.evaluate import Evaluator
from autodiffusion.grids import GRIDS
from autodiffusion.inputs import check_source, find_reference, prepare, teacher_plan
from autodiffusion.metrics import KL, Metric
from autodiffusion.models import Model, load
from autodiffusion.names import resolve
from autodiffusion.plan import Plan
from autodiffusion.progress import Quiet
from autodiffusion.reference import Reference
from autodiffusion.reference import load as load_reference
from autodiffusion.resample import resample
from autodiffusion.sampling import nfe
from autodiffusion.settings import Settings
from autodiffusion.space import SearchSpace
from autodiffusion.strategies import Strategy
from autodiffusion.strategies import build as build_strategy

REPORTED = "fid"
"""The metric that every final table has, beside the one that was searched."""


@dataclass(frozen=True)
class Job:
    """The parts of a search.

    Attributes:
        settings: resolved: what was left to the model is filled in.
        reference: what samples are compared with; ``None`` for a teacher's, which is made later.
        starts: the named grids and plans to begin with, by name or file.
        nfe: network evaluations for one sample of a candidate.
    """

    settings: Settings
    evaluator: Evaluator
    reference: Reference | None
    space: SearchSpace
    starts: dict[str, Plan]
    strategy: Strategy
    nfe: int

    @classmethod
    def of(cls, settings: Settings, model: Model | None = None) -> Job:
        """The job that ``settings`` describe.

        Args:
            model: theirs, where it is loaded already.

        Raises:
            InputError: something in them cannot be used.
        """
        chosen = settings.model_dump(include={"device", "dtype", "guidance_scale", "classes", "null_class", "schedule"})
        model = model or load(settings.model, **chosen)
        solver = resolve("solvers", settings.solver)
        free_end = settings.free_end
        if free_end is None:
            free_end = solver.continuous
        options = {"clip": model.clip} | settings.solver_options
        space = SearchSpace.of(
            model.schedule,
            settings.steps,
            settings.solver,
            options,
            continuous=solver.continuous,
            free_end=free_end,
            gap=settings.gap,
        )
        evaluations = nfe(space.plan([*range(space.nodes)]), model)  # builds the solver, which checks its options
        price = evaluations * settings.samples
        if settings.budget is not None and settings.budget < price:
            raise InputError(
                f"budget = {settings.budget} is less than one candidate costs, {price} network evaluations"
            )
        evaluator, source = prepare(model, settings.features, settings.reference, settings.batch_size)
        reference = check_source(source, evaluator, [settings.metric, REPORTED])
        _check_samples(settings, evaluator, reference)
        if settings.teacher:
            teacher_plan(model, settings.teacher)
        starts = {name: _start(name, space, model) for name in settings.starts}
        strategy = build_strategy(
            settings.strategy, space, list(starts.values()), settings.seed, settings.strategy_options
        )
        resolved = {"solver_options": options, "free_end": free_end, "features": evaluator.extractor.name}
        return cls(settings.model_copy(update=resolved), evaluator, reference, space, starts, strategy, evaluations)


def _start(name: str, space: SearchSpace, model: Model) -> Plan:
    """The member of the space nearest to a named grid, or to the plan in a file, resampled to the space's steps."""
    if name in GRIDS:
        return space.named(name, model.schedule)
    plan = resample(Plan.load(name), space.steps)
    return space.nearest([*plan.times, plan.end or 0.0] if space.free_end else plan.times)


def _check_samples(settings: Settings, evaluator: Evaluator, reference: Reference | None) -> None:
    """Raises :class:`InputError` where the metric has no value from so many samples."""
    metric, count = resolve("metrics", settings.metric), min(settings.samples, settings.confirm_samples)
    if issubclass(metric, KL) and reference is not None:
        evaluator.bounds([], metric(reference), settings.samples, 0)  # of no plan: the real images are all it looks at
    elif issubclass(metric, Metric) and count < metric.minimum:
        raise InputError(f"metric {settings.metric}: {count} samples are too few; give {metric.minimum} or more")


def teacher_reference(job: Job, kept: Path, progress: Quiet) -> Reference:
    """The model's own many-step samples as reference, made once and kept in the file ``kept``."""
    if kept.exists():
        return load_reference(str(kept), job.evaluator.extractor)
    reference = find_reference(str(job.settings.reference), job.evaluator, progress)
    reference.save(kept)
    return reference
