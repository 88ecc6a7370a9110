"""From the names that a user gives to plans, evaluators and references; a reference may be the model's own teacher."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from autodiffusion._errors import InputError, nearest
from autodiffusion._evaluation.evaluate import BATCH_SIZE, Evaluator, derive_seed
from autodiffusion._names import resolve
from autodiffusion._plans.grids import NAMED, grid, parse
from autodiffusion._plans.plan import Option, Plan
from autodiffusion._plans.published import published, read
from autodiffusion._references.reference import Begin, Reference
from autodiffusion._references.reference import load as load_reference
from autodiffusion._sampling.sampling import Tick, stretches
from autodiffusion._views.progress import Quiet
from autodiffusion.features import Extractor
from autodiffusion.features._base import load as load_extractor
from autodiffusion.metrics._build import build
from autodiffusion.models._model import Model
from autodiffusion.solvers._base import build as build_solver

BLANKS = 64
"""Equal images in place of a teacher's samples, at most, for which nobody has to wait."""
SAMPLES = 2000
"""Of a teacher's reference, unless it is given as ``teacher:STEPS:SAMPLES``."""


def prepare(
    model: Model,
    features: str | Extractor | None = None,
    reference: str | None = None,
    batch_size: int = BATCH_SIZE,
    samples: int = 1,
) -> tuple[Evaluator, str]:
    """An evaluator of ``model`` and the name of its reference, both the model's own where not given.

    Args:
        features: the name of a feature network, or one that is loaded already.
        samples: that will be compared with the reference, at most.

    Raises:
        InputError: the feature network cannot be had, there is no reference, or fewer captions than samples.
    """
    source = reference or (None if model.reference is None else str(model.reference))
    if source is None:
        raise InputError(
            f"model '{model.name}' brings no reference; give --reference with a folder of images, an .npz file, "
            "or teacher:100 for its own 100-step samples"
        )
    if model.captions is not None:
        _, drawn = parse_teacher(source, model) or (0, 0)
        model.captions.check(max(samples, drawn))
    if not isinstance(features, Extractor):
        features = load_extractor(features or model.features, model.device)
    return Evaluator(model, features, batch_size), source


def reading(progress: Quiet | None) -> Begin:
    """What is told of a reference's images while their features are computed: a phase of ``progress``."""
    progress = progress or Quiet()

    def begin(count: int) -> Tick:
        progress.phase("reference", count, "images")
        return progress.tick

    return begin


def check_source(
    source: str, evaluator: Evaluator, metrics: Sequence[str], progress: Quiet | None = None
) -> Reference | None:
    """The reference, if it exists already, with the metrics checked against it; ``None`` for a teacher's, made later.

    Raises:
        InputError: no metric is named, or the reference cannot be used, or it or the model lacks what a metric needs.
    """
    if not metrics:
        raise InputError("no metric is named; give one such as fid")
    teacher = parse_teacher(source, evaluator.model)
    if teacher is None:
        reference = load_reference(source, evaluator.extractor, begin=reading(progress))
        for name in metrics:
            evaluator.check(build(name, reference))
        return reference
    for name in metrics:
        if getattr(resolve("metrics", name), "needs", None) == "errors":
            raise InputError(
                f"metric {name} needs real images, which reference {source} has not; give a folder of images"
            )
    # before the teacher is paid for: what its reference will lack, as many equal images lack it too
    blank = Reference.of(evaluator.blank(min(teacher[1], BLANKS)), evaluator.extractor.name, name=source)
    for name in metrics:
        try:
            evaluator.check(build(name, blank))
        except InputError:
            raise
        except Exception:  # of equal images, which do not spread, a metric of somebody's own may make nothing
            continue
    return None


def find_reference(source: str, evaluator: Evaluator, progress: Quiet | None = None) -> Reference:
    """The reference of this name, made now if it is a teacher's.

    Raises:
        InputError: it cannot be used, or the teacher's samples are not finite.
    """
    parsed = parse_teacher(source, evaluator.model)
    if parsed is None:
        return load_reference(source, evaluator.extractor, begin=reading(progress))
    steps, samples = parsed
    progress = progress or Quiet()
    progress.phase("teacher", steps * samples)
    plan = teacher_plan(evaluator.model, steps)
    # its seed is nobody's, so that no plan is compared with samples of its own noise
    [features] = evaluator.features([plan], samples, derive_seed(0, "teacher"), progress.tick)
    if isinstance(features, str):
        raise InputError(f"reference {source}: {features}; this model cannot be its own reference")
    return Reference.of(features, evaluator.extractor.name, name=source)


def teacher_plan(model: Model, steps: int) -> Plan:
    """Deterministic DDIM at ``steps`` uniform time steps.

    Raises:
        InputError: ``steps`` outside 1 to T.
    """
    return Plan.of("ddim", grid("uniform", steps, model.schedule), solver_options={"clip": model.clip})


def parse_teacher(source: str, model: Model) -> tuple[int, int] | None:
    """``teacher:100`` or ``teacher:100:5000`` as (steps, samples); ``None`` for any other source.

    Raises:
        InputError: it begins like a teacher and does not go on like one.
    """
    if not source.startswith("teacher:"):
        return None
    numbers = source.split(":")[1:]
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise InputError(f"reference '{source}': write teacher:STEPS or teacher:STEPS:SAMPLES, e.g. teacher:100:2000")
    teacher_plan(model, int(numbers[0]))
    return int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else SAMPLES


def plan_of(
    name: str | os.PathLike[str],
    model: Model,
    solver: str | None = None,
    solver_options: Mapping[str, Option] | None = None,
) -> Plan:
    """The published plan ``name``, the plan in that file, or the named grid (such as ``karras:6``) for ``model``.

    Args:
        name: ``run/plan.json``, ``adm-g/imagenet64/4`` or ``karras:6``, say.
        model: whose times the plan is to fit.
        solver: of a named grid, ``ddim`` by default, with its ``solver_options``. A plan has its own; where it is
            one of yours, name it here too, as no plan imports code by itself.

    Raises:
        InputError: none of them; the plan does not fit the model; or it is for another solver than ``solver``.
    """
    name = os.fspath(name)
    plan = plan_in(name, solver, solver_options)
    if plan is not None:
        try:
            made = build_solver(plan.solver, model.schedule, plan.solver_options)
            made.path(plan.times, plan.end, plan.params)
        except InputError as error:  # the plan's own fault, whatever the model
            raise InputError(f"plan '{name}': {error}") from None
        try:
            stretches(plan, model)
        except InputError as error:
            found = f", found on {plan.origin['model']}," if "model" in plan.origin else ""
            raise InputError(
                f"plan '{name}'{found} does not fit {model.name}: {error}; give a plan of a model of its kind, or "
                "search one for it"
            ) from None
        return plan
    kind, steps = parse(name)
    solver = solver or "ddim"
    continuous = resolve("solvers", solver).continuous
    options: dict[str, Option] = {"clip": model.clip, **(solver_options or {})}
    build_solver(solver, model.schedule, options)  # says what is wrong with an option better than the plan can
    times = grid(kind, steps, model.schedule, continuous=continuous)
    plan = Plan.of(solver, times, solver_options=options)
    stretches(plan, model)
    return plan


def plan_in(name: str, solver: str | None = None, solver_options: Mapping[str, Option] | None = None) -> Plan | None:
    """The plan that is published as ``name`` or in the file ``name``; ``None`` of a named grid, which needs a model.

    Args:
        solver: as of :func:`plan_of`, and so ``solver_options``.

    Raises:
        InputError: as :func:`plan_of`, as far as that can be told without the model.
    """
    if solver is not None:
        resolve("solvers", solver)  # one of the user's own is here from now on
    if name in published() or Path(name).exists() or name.endswith(".json"):
        plan = read(name)
        if solver not in (None, plan.solver):
            raise InputError(f"plan '{name}' is for solver {plan.solver}, not {solver}; leave the solver out")
        if solver_options:
            raise InputError(f"plan '{name}' has its own solver options; leave {', '.join(solver_options)} out")
        return plan
    if is_grid(name):
        parse(name)
        return None
    raise InputError(
        f"plan '{name}' is no file, no published plan (see autodiffusion plans) and no grid such as uniform:4 "
        f"{nearest(name, NAMED)}"
    )


def is_grid(name: str) -> bool:
    """Whether this is a named grid, such as ``karras:6``, rather than a plan."""
    return name.partition(":")[0] in NAMED and not Path(name).exists()


def found_elsewhere(plan: Plan, model: Model, name: str | None = None) -> str | None:
    """What to know of a plan that was found on another model or under another guidance than ``model`` has: where the
    guidance is the same, plans go from one model to another (AutoDiffusion, section 5.1). ``None`` where both are the
    same, or not known.

    Args:
        name: by which the model was loaded, if that is not its own.
    """
    there, guidance = plan.origin.get("model", model.name), plan.origin.get("guidance", model.guidance)
    if guidance != model.guidance:
        return f"the plan was found on {there} with guidance {guidance}; {model.name} has {model.guidance}"
    return None if there in (model.name, name) else f"the plan was found on {there}, not on {model.name}"
