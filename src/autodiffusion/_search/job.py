"""Job: everything a search works with, checked before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._evaluation.evaluate import Evaluator
from autodiffusion._names import check_named, resolve
from autodiffusion._plans.free import OfSteps
from autodiffusion._plans.grids import NAMED, fitting
from autodiffusion._plans.plan import Option, Plan
from autodiffusion._plans.published import read
from autodiffusion._plans.resample import resample
from autodiffusion._references.reference import Reference
from autodiffusion._references.reference import load as load_reference
from autodiffusion._sampling.blocks import Workers
from autodiffusion._search.inputs import check_source, find_reference, prepare, teacher_plan
from autodiffusion._search.pricing import Pricing, evaluations_of, layered_space, measured, whole_layers
from autodiffusion._spaces.costs import Costs
from autodiffusion._spaces.layered import LayeredSpace
from autodiffusion._spaces.space import SearchSpace
from autodiffusion._study.settings import OF_MODEL, Settings
from autodiffusion._views.progress import Quiet
from autodiffusion.metrics import Metric
from autodiffusion.metrics.kl import KL
from autodiffusion.models._load import load, use_threads
from autodiffusion.models._model import Model
from autodiffusion.solvers._base import build
from autodiffusion.strategies import Strategy
from autodiffusion.strategies._base import build as build_strategy
from autodiffusion.strategies._base import check_strategy

REPORTED = "fid"
"""The metric that every final table has, beside the one that was searched."""


@dataclass(frozen=True)
class Job:
    """The parts of a search.

    Attributes:
        settings: resolved: what was left to the model is filled in.
        reference: what samples are compared with; ``None`` for a teacher's, which is made later.
        starts: the named grids and plans to begin with, by name or file; with layers also the grids of
            ``whole_steps``, such as ``uniform:3``.
        evaluations: network evaluations of each step, by the number of steps.
        pricing: what plans cost.
        times: what was measured of the layers' times, if it was.
        layers: the plans that may be found, where layers are left out.
        whole_steps: of the named grids that what is found is compared with: as many whole ones as its budget pays for.
    """

    settings: Settings
    evaluator: Evaluator
    reference: Reference | None
    space: SearchSpace
    starts: dict[str, Plan]
    strategy: Strategy
    evaluations: Callable[[int], tuple[int, ...]]
    pricing: Pricing
    times: Costs | None
    layers: LayeredSpace | None
    whole_steps: int

    @classmethod
    def of(
        cls,
        settings: Settings,
        model: Model | None = None,
        times: Costs | None = None,
        progress: Quiet | None = None,
        before: Job | None = None,
    ) -> Job:
        """The job that ``settings`` describe.

        Args:
            model: theirs, where it is loaded already.
            times: of the model's layers, where they are measured already and ``max_cost`` is counted in them.
            before: a job of the same model, features and metric, of which all that takes time to load is taken over.

        Raises:
            InputError: something in them cannot be used.
        """
        use_threads(settings.threads)
        _check_names(settings)
        if before is not None:
            model, times = model or before.evaluator.model, times or before.times
        model = model or load(settings.model, **settings.model_dump(include=OF_MODEL))
        if before is None and ":" in settings.model:  # the user's own, asked once before anything is paid for
            model.check_network(settings.model)
        solver = resolve("solvers", settings.solver)
        free_end = settings.free_end
        if free_end is None:
            free_end = solver.continuous
        options = {"clip": model.clip} | settings.solver_options
        free = free_numbers(settings, model, options, free_end)
        space = SearchSpace.of(
            model.schedule,
            settings.steps,
            settings.solver,
            options,
            continuous=solver.continuous,
            free_end=free_end,
            gap=settings.gap,
            free=free,
        )
        evaluations = evaluations_of(space, model)
        price = sum(evaluations(settings.steps)) * settings.samples  # builds the solver, which checks its options
        if settings.budget is not None and settings.budget < price:
            raise InputError(
                f"budget = {settings.budget:,} is less than one candidate costs, {price:,} network evaluations times "
                f"samples; give at least that, or fewer samples (--samples)"
            )
        samples = max(settings.samples, settings.confirm_samples)
        features = settings.features if before is None else before.evaluator.extractor
        evaluator, source = prepare(model, features, settings.reference, settings.batch_size, samples)
        if before is not None and before.settings.reference == settings.reference and before.reference is not None:
            reference: Reference | None = before.reference
        else:
            reference = check_source(source, evaluator, [settings.metric, REPORTED], progress)
        _check_samples(settings, evaluator, reference)
        if settings.teacher:
            teacher_plan(model, settings.teacher)
        resolved = {
            "solver_options": options,
            "free_end": free_end,
            "free_numbers": bool(space.numbers),
            "features": evaluator.extractor.name,
        }
        times, layers, whole_steps = measured(settings, model, times), None, settings.steps
        pricing = _pricing(settings, model, times)
        if settings.layers:
            layers, whole_steps = layered_space(settings, space, pricing)
            max_cost = settings.max_cost or whole_layers(pricing, evaluations(settings.steps))
            resolved |= {"max_cost": max_cost, "min_steps": layers.min_steps, "max_steps": layers.max_steps}
        starts = _starts(settings, space, model, layers)
        if layers is not None and whole_steps != settings.steps and whole_steps in layers.counts:
            grids = [name for name in starts if name in NAMED]
            starts |= {
                f"{name}:{whole_steps}": layers.spaces[whole_steps].named(name, model.schedule) for name in grids
            }
        given = list(starts.values())
        strategy = build_strategy(settings.strategy, space, given, settings.seed, settings.strategy_options, layers)
        settings = settings.model_copy(update=resolved)
        return cls(
            settings, evaluator, reference, space, starts, strategy, evaluations, pricing, times, layers, whole_steps
        )

    def sampled_by(self, workers: Workers) -> Job:
        """The same job with others to sample for it."""
        return replace(self, evaluator=replace(self.evaluator, elsewhere=workers))

    def nfe(self, plan: Plan) -> int:
        """Network evaluations for one sample of a plan of the job's solver."""
        return sum(self.evaluations(len(plan.steps)))

    def allows(self, plan: Plan) -> bool:
        """Whether what is found may be this plan; a whole-network start or candidate may cost too much."""
        space = self.layers
        if space is None:
            return True
        return space.min_steps <= len(plan.steps) <= space.max_steps and space.cost(plan) <= space.budget


def _check_names(settings: Settings) -> None:
    """Raises :class:`InputError` for names, options and plans that can be refused before anything is loaded."""
    check_named("solvers", settings.solver, settings.solver_options, 1)
    resolve("metrics", settings.metric)
    check_strategy(settings.strategy, settings.strategy_options)
    for name in settings.starts:
        if name not in NAMED:
            read(name)


def _pricing(settings: Settings, model: Model, times: Costs | None) -> Pricing:
    """What plans cost; where no layers are left out, a network that cannot be counted is searched all the same."""
    try:
        return Pricing.of(model, times)
    except Exception:  # the network is run under hooks, which those of somebody's own making may refuse in any way
        if settings.layers:
            raise
        return Pricing(model, ())


def _starts(settings: Settings, space: SearchSpace, model: Model, layers: LayeredSpace | None) -> dict[str, Plan]:
    """What the search begins with, by name; of all named grids, which nobody chose, those that fit the schedule."""

    def make(name: str) -> Plan:
        return _start(name, space, model, layers, settings.seed)

    if not set(NAMED) <= set(settings.starts):
        return {name: make(name) for name in settings.starts}
    return fitting(make) | {name: make(name) for name in settings.starts if name not in NAMED}


def _start(name: str, space: SearchSpace, model: Model, layers: LayeredSpace | None, seed: int) -> Plan:
    """The member of the space nearest to a named grid, or to a plan, published or in a file, resampled to its steps.

    A plan that leaves out layers becomes a member of ``layers``, with its own number of steps where that is allowed;
    without ``layers`` it is taken for its time steps.
    """
    if name in NAMED:
        return space.named(name, model.schedule)
    plan = read(name)
    skip = frozenset[int]().union(*(step.skip for step in plan.steps))
    if layers is not None and skip:
        try:
            model.check(skip)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        plan = plan if len(plan.steps) in layers.counts else resample(plan, space.steps, model.schedule.first)
        return layers.repair(plan, np.random.default_rng(seed))
    plan = resample(plan, space.steps, model.schedule.first)
    nearest = space.nearest([*plan.times, plan.end or 0.0] if space.free_end else plan.times)
    return space.plan(space.positions(nearest), space.values(plan)) if plan.solver == space.solver else nearest


def free_numbers(settings: Settings, model: Model, options: dict[str, Option], free_end: bool) -> OfSteps:
    """What the solver leaves open for each step and the search moves.

    Raises:
        InputError: the solver leaves nothing open though the settings ask for it, or layers are left out as well.
    """
    solver = build(settings.solver, model.schedule, options)
    wanted = solver.searched and not settings.layers if settings.free_numbers is None else settings.free_numbers
    free = solver.free(settings.steps, not free_end) if wanted else ()
    if settings.free_numbers is None and solver.searched and settings.layers:
        warnings.warn(
            f"with --layers the free numbers of {settings.solver} are not searched, only its time steps", stacklevel=2
        )
    if settings.free_numbers and not any(free):
        raise InputError(f"free_numbers: solver {settings.solver} leaves nothing open for {settings.steps} steps")
    if any(free) and settings.layers:
        raise InputError("free_numbers: are not searched together with layers yet; leave out one of the two")
    return free if any(free) else ()


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
