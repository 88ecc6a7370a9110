"""Options that several verbs share, and what they turn into."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autodiffusion._errors import InputError
from autodiffusion._names import check_named, known, resolve
from autodiffusion._plans.grids import NAMED
from autodiffusion._plans.plan import Plan
from autodiffusion._study.settings import OF_MODEL, PRESETS, Settings, read_value
from autodiffusion.models._model import Model
from autodiffusion.strategies.evolution import Evolution
from autodiffusion.strategies.random import Random

if TYPE_CHECKING:
    from autodiffusion._sampling.blocks import Workers as Sampling

MODELS = (
    f"{', '.join(known('models'))} (also adm/imagenet64, adm/lsun-cat, adm/lsun-bedroom), a folder or hub name of a "
    "diffusers UNet or pipeline of Stable Diffusion or Flux, a .ckpt or .safetensors file of Stable Diffusion, or "
    "package.module:factory"
)
ModelName = Annotated[str, typer.Option("--model", help=MODELS)]
Checkpoint = Annotated[
    str | None, typer.Option(help="file of an adm model's weights, or of a Stable Diffusion pipeline's")
]
Classifier = Annotated[str | None, typer.Option(help="file of the weights of the classifier that guides it")]
Captions = Annotated[
    str | None, typer.Option(help="what a text-to-image model is asked to show: .txt, .csv, or captions_val2014.json")
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option",
        metavar="NAME=VALUE",
        help="a flag of an adm model; height or width of SD3 or Flux; may be repeated",
    ),
]
Reference = Annotated[
    str | None, typer.Option(help="folder of images, .npz of images, features or statistics, or teacher:100")
]
Features = Annotated[
    str | None, typer.Option(help=f"feature network: {', '.join(known('features'))} or package.module:attribute")
]
Guidance = Annotated[
    float | None, typer.Option("--guidance-scale", help="classifier-free, 1 is none; or the classifier's, 0 is none")
]
Classes = Annotated[int | None, typer.Option(min=1, help="number of classes, where the model's files do not say")]
NullClass = Annotated[int | None, typer.Option("--null-class", min=0, help="the label that stands for no class")]
Schedule = Annotated[str | None, typer.Option(help="linear, scaled_linear, cosine or flow, for a bare UNet")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="samples in a noise block; scores do not depend on it")]
Seed = Annotated[int, typer.Option(min=0, help="of everything random")]
Threads = Annotated[int, typer.Option(min=0, help="of the CPU, 0 leaves it to torch")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="processes that sample, by Ray [one for each GPU; with --ray-address, as many as fit]"),
]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="of a running Ray cluster that they are on: auto or host:6379")
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.001, help="seconds allowed for a plan and a block of noise; a slower plan has no score"),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output, nothing else there")]
SOLVERS = f"{', '.join(known('solvers'))} or package.module:attribute"
Solver = Annotated[str | None, typer.Option(help=f"of a grid [ddim], a plan has its own: {SOLVERS}")]
SolverOption = Annotated[
    list[str] | None,
    typer.Option("--solver-option", metavar="NAME=VALUE", help="an option of the solver; may be repeated"),
]
METRICS = f"{', '.join(known('metrics'))} or package.module:attribute"


def usual(text: str, name: str) -> str:
    """A help text with what each preset has for the option called ``name``."""
    values = []
    fields = {field: about.default for field, about in Settings.model_fields.items()} | vars(Evolution) | vars(Random)
    for preset in PRESETS.values():
        own = fields | preset | preset["evolution"]
        value = own[name]
        value = "every named grid" if value == list(NAMED) else value
        values.append(",".join(value) if isinstance(value, list) else str(value))
    default, paper = values
    return f"{text} [{default}]" if default == paper else f"{text} [{default}; paper: {paper}]"


def load_model(given: Mapping[str, Any]) -> Model:
    """The model that a verb's options describe; ``given`` holds all of them by name."""
    from autodiffusion.models._load import load, use_threads

    use_threads(given["threads"])
    options = {name: given[name] for name in OF_MODEL if name in given}
    model = load(given["model"], model_options=pairs(given["model_option"], "--model-option"), **options)
    if ":" in given["model"]:
        model.check_network(given["model"])
    return model


def crew_for(given: Mapping[str, Any]) -> AbstractContextManager[Sampling | None]:
    """Who samples, as a verb's options say; ``None`` for this process."""
    from autodiffusion._sampling.actor import Recipe
    from autodiffusion._search.crew import crew

    options = {name: given[name] for name in OF_MODEL if name in given}
    options["model_options"] = pairs(given["model_option"], "--model-option")
    recipe = Recipe(given["model"], options, given["features"], max(1, given["threads"]))
    return crew(recipe, given["workers"], given["ray_address"], given["timeout"])


def check_plan(name: str, solver: str | None, solver_option: list[str] | None, beside: str | None = None) -> None:
    """Raises :class:`InputError` for what :func:`load_plan` refuses whatever the model, before that is loaded."""
    from autodiffusion._search.inputs import plan_in

    own_solver, options = _of_plan(name, solver, solver_option, beside)
    if plan_in(name, own_solver, options) is None and (own_solver or options):
        check_named("solvers", own_solver or "ddim", options, 1)


def load_plan(
    name: str, model: Model, solver: str | None, solver_option: list[str] | None, beside: str | None = None
) -> Plan:
    """The plan in a file, or a named grid for ``model`` and the solver of the options.

    Args:
        beside: what else is drawn; where only that is a grid, the solver is the grid's.
    """
    from autodiffusion._search.inputs import plan_of

    return plan_of(name, model, *_of_plan(name, solver, solver_option, beside))


def _of_plan(
    name: str, solver: str | None, solver_option: list[str] | None, beside: str | None
) -> tuple[str | None, dict[str, Any]]:
    """The solver and its options, as far as they are said of this plan or grid."""
    from autodiffusion._search.inputs import is_grid

    options = pairs(solver_option, "--solver-option")
    if beside is None or is_grid(name) or not is_grid(beside):
        return solver, options
    if solver is not None:
        resolve("solvers", solver)  # should it be one of the user's own, the plan may name it too
    return None, {}


def pairs(texts: list[str] | None, option: str) -> dict[str, Any]:
    """``["eta=0.5"]`` as ``{"eta": 0.5}``; values are read as YAML, so that true, 1 and 0.5 are what they look like."""
    import yaml

    found = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} {text}: is not NAME=VALUE")
        try:
            found[name] = read_value(value)
        except (yaml.YAMLError, ValueError):  # the latter of a day that there is not
            raise InputError(f"{option} {text}: the value is not a number, true, false or a text") from None
    return found


def check_writable(file: Path) -> None:
    """Raises :class:`InputError` unless ``file`` can be written where it is to be."""
    if file.is_dir():
        raise InputError(f"{file}: is a folder; give a file")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"{file}: cannot be written; {file.parent} is no folder that can be written")
