"""``autodiffusion evaluate PLAN --model MODEL``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autodiffusion._cli._options import (
    METRICS,
    Batch,
    Captions,
    Checkpoint,
    Classes,
    Classifier,
    Device,
    Dtype,
    Features,
    Guidance,
    Json,
    ModelName,
    ModelOption,
    NullClass,
    RayAddress,
    Reference,
    Schedule,
    Seed,
    Solver,
    SolverOption,
    Threads,
    Timeout,
    Workers,
    check_plan,
    crew_for,
    load_model,
    load_plan,
)
from autodiffusion._cli._output import print_json, print_rows
from autodiffusion._errors import RunError
from autodiffusion._names import resolve

if TYPE_CHECKING:
    from autodiffusion._evaluation.timing import Timing


def evaluate_command(
    plan: Annotated[str, typer.Argument(help="a plan's file, a published plan, or a grid such as uniform:4")],
    model: ModelName,
    metric: Annotated[str, typer.Option(help=f"one or several, by commas: {METRICS}")] = "fid",
    samples: Annotated[int, typer.Option(min=2, help="to score, as many as a search's final table has")] = 2000,
    seed: Seed = 0,
    reference: Reference = None,
    features: Features = None,
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
    workers: Workers = None,
    ray_address: RayAddress = None,
    timeout: Timeout = None,
    timed: Annotated[
        bool | None,
        typer.Option("--time/--no-time", help="measure how long sampling takes [where layers are left out]"),
    ] = None,
    save_images: Annotated[
        Path | None,
        typer.Option(help="a new folder for the images that are scored, a PNG each; they are sampled once more for it"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Scores a plan or a named grid on fresh noise, with a 95 % bootstrap interval.

    Of a plan that leaves out layers it says what it costs as well, beside the same steps with the whole network.
    """
    from autodiffusion._evaluation.timing import fitting, plan_times
    from autodiffusion._search.figures import evaluate, named
    from autodiffusion._search.inputs import found_elsewhere
    from autodiffusion._search.pricing import Pricing
    from autodiffusion._views.progress import Progress

    given = locals()
    check_plan(plan, solver, solver_option)
    for name in named(metric):
        resolve("metrics", name)
    loaded = load_model(given)
    chosen = load_plan(plan, loaded, solver, solver_option)
    if difference := found_elsewhere(chosen, loaded, model):
        print(f"autodiffusion: {difference}", file=sys.stderr)
    partial = chosen != chosen.leaving()
    timed = partial if timed is None else timed
    time: Timing | None = None
    with Progress() as progress:
        row = evaluate(
            chosen,
            loaded,
            metric,
            reference,
            features,
            samples,
            seed,
            images=save_images,
            batch_size=batch_size,
            progress=progress,
            workers=crew_for(given),
            name=plan,
        )
        if row.problem:
            raise RunError(f"{plan}: {row.problem}")
        if timed:
            progress.phase("measuring how long sampling takes", 0)
            [time] = fitting(lambda size: plan_times(loaded, [chosen], size), min(batch_size, samples))
    content = row.to_json()
    shown = {key: content[key] for key in ("plan", "samples", "seed", "nfe", "scores")}
    if not (partial or timed):
        return print_json(shown) if as_json else print_rows([content])
    pricing = Pricing.of(loaded)
    kept, every = pricing.plan(chosen), pricing.plan(chosen.leaving())
    if as_json:
        cost = {"layers": kept.get("layers"), "macs": kept.get("macs")}
        return print_json(shown | {"cost": cost | {"ms": time and time.ms, "ms_whole": time and time.ms_whole}})
    print_rows([content])
    print(_cost(kept, every, time))


def _cost(kept: dict[str, float], every: dict[str, float], time: Timing | None) -> str:
    """What a sample costs; where layers are left out, of what it would with the whole network."""
    from autodiffusion._spaces.costs import short

    def share(cost: str, whole: str, unit: str, ratio: float) -> str:
        return f"{cost} {unit}" if kept == every else f"{cost} of {whole} {unit} ({100 * ratio:.1f} %)"

    names = {"layers": "layers", "macs": "MACs"}
    parts = [
        share(f"{cost:,.0f}", f"{every[unit]:,.0f}", names[unit], cost / every[unit]) for unit, cost in kept.items()
    ]
    if time:
        ms, low, high, whole = (short(value) for value in (time.ms, time.low, time.high, time.ms_whole))
        parts += [share(ms, whole, "ms", time.ratio), f"quartiles {low} and {high} ms"]
    return f"a sample costs {', '.join(parts)}"
