"""``autodiffusion search MODEL --steps K --out RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autodiffusion._cli._options import (
    METRICS,
    MODELS,
    SOLVERS,
    Captions,
    Checkpoint,
    Classes,
    Classifier,
    Features,
    Guidance,
    Json,
    ModelOption,
    NullClass,
    RayAddress,
    Reference,
    Schedule,
    SolverOption,
    Timeout,
    Workers,
    pairs,
    usual,
)
from autodiffusion._cli._output import print_json, print_rows
from autodiffusion._errors import InputError
from autodiffusion._names import known
from autodiffusion._study.settings import Settings, read_yaml

if TYPE_CHECKING:
    from autodiffusion._search.loop import Result

STRATEGIES = (
    f"{', '.join(known('strategies'))} (optuna:SAMPLER chooses its sampler; with --layers the default is prune) or "
    "package.module:attribute"
)


OF_PARTS = ("strategy_option", "solver_option", "model_option")
"""Options that hold those of a part, and may be repeated."""


def search_command(
    model: Annotated[str | None, typer.Argument(help=MODELS)] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; an unfinished search there is resumed [required]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the same options, underscores for dashes")] = None,
    preset: Annotated[
        str | None, typer.Option(help="default, or paper: Algorithm 1 as published, fresh noise for each candidate")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="number of steps; several by commas, each gets a folder of OUT [required]")
    ] = None,
    solver: Annotated[str | None, typer.Option(help=usual(SOLVERS, "solver"))] = None,
    solver_option: SolverOption = None,
    metric: Annotated[str | None, typer.Option(help=usual(METRICS, "metric"))] = None,
    reference: Reference = None,
    features: Features = None,
    strategy: Annotated[
        str | None,
        typer.Option(help=usual(STRATEGIES, "strategy")),
    ] = None,
    strategy_option: Annotated[
        list[str] | None,
        typer.Option("--strategy-option", metavar="NAME=VALUE", help="an option of the strategy; may be repeated"),
    ] = None,
    population: Annotated[
        int | None, typer.Option(help=usual("evolution: candidates a generation", "population"))
    ] = None,
    generations: Annotated[int | None, typer.Option(help=usual("evolution: generations", "generations"))] = None,
    parents: Annotated[
        int | None, typer.Option(help=usual("evolution: the best so many have children", "parents"))
    ] = None,
    mutations: Annotated[
        int | None, typer.Option(help=usual("evolution: children by mutation in a generation", "mutations"))
    ] = None,
    crossovers: Annotated[
        int | None, typer.Option(help=usual("evolution: children by crossover in a generation", "crossovers"))
    ] = None,
    mutation_probability: Annotated[
        float | None, typer.Option(help=usual("evolution: with which each time step changes", "mutation_probability"))
    ] = None,
    initial_mutations: Annotated[
        int | None,
        typer.Option(help=usual("evolution: mutations of the first grid in the first population", "initial_mutations")),
    ] = None,
    initial_mutation_probability: Annotated[
        float | None,
        typer.Option(
            help=usual("evolution: with which each of their time steps changes", "initial_mutation_probability")
        ),
    ] = None,
    mutation_scale: Annotated[
        float | None,
        typer.Option(
            help=usual("evolution: size of local moves as a share of the time range; 0: anywhere", "mutation_scale")
        ),
    ] = None,
    candidates: Annotated[int | None, typer.Option(help=usual("random: candidates in all", "candidates"))] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            help="network evaluations times samples that the candidates may cost; the choice among the finalists and "
            "the final table come on top [ladder: that of 100 candidates]"
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help=usual("for each candidate's score", "samples"))] = None,
    noise: Annotated[
        str | None, typer.Option(help=usual("common to all candidates, or fresh for each", "noise"))
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(help=usual("named grids, plan files and published plans to begin with, by commas", "starts")),
    ] = None,
    gap: Annotated[int | None, typer.Option(help=usual("smallest distance between two time steps", "gap"))] = None,
    layers: Annotated[
        bool | None, typer.Option("--layers", help="leave out layers of the network at each step")
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option(
            help="with --layers, of a plan: 60% (of the MACs of STEPS whole steps), 232 layers, 1.5 GMACs or 35 ms "
            "(measured) [the layers of STEPS whole steps]"
        ),
    ] = None,
    min_steps: Annotated[
        int | None, typer.Option(help="with --layers [as many whole steps as --max-cost pays for, at most STEPS]")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="with --layers [1.5 times as many as --max-cost pays for, at least STEPS]")
    ] = None,
    free_end: Annotated[
        bool | None,
        typer.Option(
            "--free-end/--no-free-end",
            help="search where the solver stops as well [with dpm_solver and others whose times are real numbers]",
        ),
    ] = None,
    free_numbers: Annotated[
        bool | None,
        typer.Option(
            "--free-numbers/--no-free-numbers",
            help="search what the solver leaves open for each step as well [for gls, pfdiff]",
        ),
    ] = None,
    finalists: Annotated[
        int | None, typer.Option(help=usual("how many of the best are compared again on fresh noise", "finalists"))
    ] = None,
    confirm_samples: Annotated[
        int | None, typer.Option(help=usual("for the figures on fresh noise", "confirm_samples"))
    ] = None,
    teacher: Annotated[
        int | None, typer.Option(help="add a row of so many uniform DDIM steps to the final table [0, none]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=usual("of everything random", "seed"))] = None,
    guidance_scale: Guidance = None,
    checkpoint: Checkpoint = None,
    classifier: Classifier = None,
    captions: Captions = None,
    model_option: ModelOption = None,
    classes: Classes = None,
    null_class: NullClass = None,
    schedule: Schedule = None,
    batch_size: Annotated[
        int | None, typer.Option(help=usual("samples in a noise block; scores do not depend on it", "batch_size"))
    ] = None,
    device: Annotated[str | None, typer.Option(help=usual("cpu, cuda, cuda:1 ...", "device"))] = None,
    dtype: Annotated[str | None, typer.Option(help=usual("float32, float16 or bfloat16", "dtype"))] = None,
    cache_mb: Annotated[
        int | None, typer.Option(help=usual("memory for what candidates have in common, in MiB", "cache_mb"))
    ] = None,
    threads: Annotated[int | None, typer.Option(help="of the CPU, 0 leaves it to torch [0]")] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    timeout: Timeout = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="scalars and samples of the best plan in OUT/tensorboard")
    ] = None,
    as_json: Json = False,
    named_model: Annotated[str | None, typer.Option("--model", hidden=True)] = None,  # as other verbs have it
) -> None:
    """Searches time steps, and layers to leave out; leaves plan.json, grid.png, report.html and the ledger in OUT."""
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("out", "config", "as_json"):
        given.pop(name, None)
    if named_model and given.setdefault("model", given.pop("named_model")) != named_model:
        raise InputError(f"search: two models, {model} and {named_model}; give one of them")
    if out is None:
        raise InputError("--out is missing; give the folder in which the run is kept")
    options = read_yaml(config) if config else {}
    if "out" in options:
        raise InputError(f"{config}: out: is given on the command line (--out); leave it out of the file")
    named = {name: pairs(given.pop(name, None), f"--{name.replace('_', '-')}") for name in OF_PARTS}
    # what is no setting of a search is an option of its strategy
    named["strategy_option"] = {
        name: given.pop(name) for name in [*given] if name not in Settings.model_fields
    } | named["strategy_option"]
    if "starts" in given:
        given["starts"] = [name for name in given["starts"].split(",") if name]
    options |= given
    for name, added in named.items():
        if added:
            before = options.get(f"{name}s", {})
            options[f"{name}s"] = {**before, **added} if isinstance(before, dict) else before
    counts = _counts(options.pop("steps", None))
    where = str(config) if config else "search"
    if "model" not in options:
        raise InputError(
            f"{where}: no model is given; name one, such as autodiffusion search mnist --steps 4 --out run"
        )
    if not counts:
        raise InputError(f"{where}: --steps is missing; give the number of steps, such as --steps 4")
    from autodiffusion._evaluation.confirm import alike, figure
    from autodiffusion._search.contest import search_solvers
    from autodiffusion._search.loop import search
    from autodiffusion._search.several import search_several
    from autodiffusion._views.progress import Progress

    solvers = _names(options.get("solver"))
    if len(solvers) == 1:
        [options["solver"]] = solvers
    if len(solvers) > 1 and len(counts) > 1:
        raise InputError(f"{where}: several solvers and several numbers of steps; give one of the two")
    found: dict[Path, Result] = {}
    with Progress() as progress:
        if len(solvers) > 1:
            options |= {"steps": counts[0]}
            del options["solver"]
            results_of = search_solvers(solvers, out, progress, where, **options)
            found = {out / name: result for name, result in results_of.items()}
        elif len(counts) > 1:
            results = search_several(counts, out, progress, where, **options)
            found = {out / str(count): result for count, result in results.items()}
        else:
            settings = Settings.of(where, steps=counts[0], **options)
            found = {out: search(settings, out, progress)}
    if as_json:
        shown = [_json(folder, result) for folder, result in found.items()]
        return print_json(shown[0] if len(counts) < 2 else {"out": str(out), "searches": shown})
    for folder, result in found.items():
        print_rows(result.rows, costs=bool(options.get("layers")))
        for same in alike(result.rows, result.plan)[:1]:
            name = same["name"]
            print(f"found: the plan of {name}; nothing else was better on fresh noise. A larger --budget looks further")
        cost, metric = result.search_cost, result.plan.origin["metric"]
        if searched := next((row["searched"] for row in result.rows if "searched" in row), None):
            print(
                f"found: its {metric} in the search was {searched['value']:.4g}, on {searched['samples']:,} samples; "
                f"on as many of fresh noise {figure(searched['fresh'])}"
            )
        print(
            f"search: {cost.evaluations:,} network evaluations times samples, {cost.saved:,} more saved by sharing; "
            f"confirmation: {result.confirm_cost.evaluations:,}"
        )
        print(f"{folder / 'plan.json'}  {folder / 'grid.png'}  {folder / 'report.html'}")


def _names(given: object) -> list[str]:
    """Names by commas, or a YAML file's list of them."""
    return [name for text in _listed(given) if (name := str(text).strip())]


def _listed(given: object) -> list[Any]:
    """What stands between commas, or in a YAML file's list; a single value likewise, and nothing for none."""
    return [] if given is None else given if isinstance(given, list) else [*str(given).split(",")]


def _json(folder: Path, result: Result) -> dict[str, object]:
    """A search as one JSON object."""
    return {
        "out": str(folder),
        "plan": result.plan.model_dump(mode="json"),
        "rows": result.rows,
        "search_cost": vars(result.search_cost),
        "confirm_cost": vars(result.confirm_cost),
    }


def _counts(steps: object) -> list[int]:
    """The numbers of steps in ``4,6,10``, in a list of a YAML file, or in a single number; empty for none."""
    texts = _listed(steps)
    if not all(str(text).strip().isdecimal() for text in texts):
        raise InputError(f"--steps {steps}: is not a whole number, nor several by commas such as 4,6,10")
    return [int(text) for text in texts]
