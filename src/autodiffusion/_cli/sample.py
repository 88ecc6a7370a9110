"""``autodiffusion sample PLAN --model MODEL --out FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autodiffusion._cli._options import (
    Batch,
    Captions,
    Checkpoint,
    Classes,
    Classifier,
    Device,
    Dtype,
    Guidance,
    ModelName,
    ModelOption,
    NullClass,
    Schedule,
    Seed,
    Solver,
    SolverOption,
    Threads,
    check_plan,
    check_writable,
    load_model,
    load_plan,
)


def sample_command(
    plan: Annotated[str, typer.Argument(help="a plan's file, a published plan, or a grid such as uniform:4")],
    model: ModelName,
    out: Annotated[Path, typer.Option(help="PNG file")],
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="number of images")] = 64,
    seed: Seed = 0,
    compare: Annotated[
        str | None,
        typer.Option(help="a grid (uniform, or uniform:10) or a plan, drawn beside it from the same seeds"),
    ] = None,
    solver: Solver = None,
    solver_option: SolverOption = None,
    guidance_scale: Guidance = None,
    checkpoint: Checkpoint = None,
    classifier: Classifier = None,
    captions: Captions = None,
    model_option: ModelOption = None,
    classes: Classes = None,
    null_class: NullClass = None,
    schedule: Schedule = None,
    batch_size: Batch = 128,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
) -> None:
    """Draws images of a plan or a named grid into one picture."""
    from autodiffusion._plans.grids import NAMED
    from autodiffusion._report import picture
    from autodiffusion._sampling.sampling import nfe
    from autodiffusion._sampling.sampling import sample as sample_plan
    from autodiffusion._views.progress import Progress

    given = locals()
    check_writable(out)
    check_plan(plan, solver, solver_option, compare)
    if compare and compare not in NAMED:
        check_plan(compare, solver, solver_option, plan)
    loaded = load_model(given)
    plans = {plan: load_plan(plan, loaded, solver, solver_option, compare)}
    if compare:
        whole = f"{compare}:{len(plans[plan].steps)}" if compare in NAMED else compare
        plans[whole] = load_plan(whole, loaded, solver, solver_option, plan)
    with Progress() as progress:
        progress.phase("sample", samples * sum(nfe(chosen, loaded) for chosen in plans.values()))
        drawn = {
            name: sample_plan(loaded, chosen, samples, seed, batch_size, progress.tick)
            for name, chosen in plans.items()
        }
    picture(drawn, out)
    print(out)
