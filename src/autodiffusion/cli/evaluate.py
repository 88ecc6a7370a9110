"""``autodiffusion evaluate PLAN --model MODEL``."""

from __future__ import annotations

from typing import Annotated

import typer

from autodiffusion.cli._options import (
    Batch,
    Classes,
    Device,
    Dtype,
    Features,
    Guidance,
    Json,
    ModelOption,
    NullClass,
    Reference,
    Schedule,
    Seed,
    Solver,
    SolverOption,
    Threads,
    load_model,
    load_plan,
)
from autodiffusion.cli._output import print_json, print_rows
from autodiffusion.errors import RunError


def evaluate_command(
    plan: Annotated[str, typer.Argument(help="a plan's file, or a grid such as uniform:4")],
    model: ModelOption,
    metric: Annotated[str, typer.Option(help="one or several, by commas")] = "fid",
    samples: Annotated[int, typer.Option(min=2)] = 5000,
    seed: Seed = 0,
    reference: Reference = None,
    features: Features = None,
    solver: Solver = "ddim",
    solver_option: SolverOption = None,
    guidance_scale: Guidance = None,
    classes: Classes = None,
    null_class: NullClass = None,
    schedule: Schedule = None,
    batch_size: Batch = 128,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Scores a plan or a named grid on fresh noise, with a 95 % bootstrap interval."""
    from autodiffusion.confirm import confirm
    from autodiffusion.inputs import check_source, find_reference, prepare
    from autodiffusion.progress import Shown
    from autodiffusion.sampling import nfe

    loaded = load_model(model, device, dtype, guidance_scale, classes, null_class, schedule, threads)
    chosen = load_plan(plan, loaded, solver, solver_option)
    evaluator, source = prepare(loaded, features, reference, batch_size)
    metrics = [name.strip() for name in metric.split(",") if name.strip()]
    reference_found = check_source(source, evaluator, metrics)
    evaluations = nfe(chosen, loaded)
    with Shown() as progress:
        reference_found = reference_found or find_reference(source, evaluator, progress)
        progress.phase("evaluate", evaluations * samples)
        [row] = confirm(evaluator, reference_found, {plan: chosen}, metrics, samples, seed, progress.tick)
    if row.problem:
        raise RunError(f"{plan}: {row.problem}")
    content = row.to_json()
    if as_json:
        return print_json({key: content[key] for key in ("plan", "samples", "seed", "nfe", "scores")})
    print_rows([content])
