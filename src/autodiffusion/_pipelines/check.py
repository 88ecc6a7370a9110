"""Whether a diffusers pipeline can follow a plan, told from its configurations before any weights are loaded."""

from __future__ import annotations

import inspect
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from autodiffusion._errors import InputError
from autodiffusion._pipelines.denoisers import PIPELINES
from autodiffusion._pipelines.pipeline import apply, known_as
from autodiffusion._pipelines.plan_scheduler import PlanScheduler
from autodiffusion._plans.plan import Plan, tidy
from autodiffusion.models.diffusers._folder import config_of, quiet

OPTIONS = ("num_inference_steps", "timesteps", "sigmas", "eta")
"""What a pipeline's call may take, and the plan has its own of."""


@dataclass(frozen=True)
class Following:
    """What a pipeline will do with a plan applied; as a text, one line.

    Attributes:
        pipeline: its class.
        network: the component that is asked.
        nfe: how often it is asked in a call of the pipeline.
        left_out: of each step that leaves out layers, the time and how many.
        not_followed: options of the call and settings of the pipeline's scheduler that the plan takes the place of.
        strength: of a pipeline that begins with an image, how it may be below 1, or why not; otherwise empty.
    """

    pipeline: str
    network: str
    nfe: int
    left_out: tuple[tuple[float, int], ...]
    not_followed: tuple[str, ...]
    strength: str

    def __str__(self) -> str:
        times = "once" if self.nfe == 1 else f"{self.nfe} times"
        layers = [f"{count} layer{'s' * (count > 1)} at {tidy(t)}" for t, count in self.left_out]
        asked = f"without {', '.join(layers)}" if layers else "whole"
        what = f"{self.pipeline} asks its {self.network} {times}, {asked}"
        return "; ".join(filter(None, (what, f"not followed: {', '.join(self.not_followed)}", self.strength)))


def check(plan: Plan, name: str | Path) -> Following:
    """Whether the pipeline in a folder or on the hub can follow ``plan``: what :func:`apply` would say of it.

    Reads ``model_index.json`` and the configurations of the scheduler and of the network that denoises, no weights. The
    network is made without memory for them (torch's meta device), so that its layers are known.

    Args:
        name: a pipeline's folder or hub name, as ``from_pretrained`` takes it.

    Raises:
        InputError: the pipeline, its scheduler or its network cannot follow the plan, for the reason that
            :func:`apply` has; or its files cannot be read.
    """
    if not isinstance(plan, Plan):
        raise InputError(f"check: {plan!r} is not a plan; read it with Plan.load, and give a pipeline's name after it")
    pipe, network = _hollow(str(name))
    stock, options = pipe.scheduler, inspect.signature(pipe.__call__).parameters
    try:
        with apply(plan, pipe):
            nfe = len(pipe.scheduler.timesteps)
            strength = _strength(pipe.scheduler, (len(plan.steps), nfe)) if "strength" in options else ""
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    clips = plan.solver_options.get("clip")
    settings = [key for key in ("clip_sample", "thresholding") if stock.config.get(key)]
    return Following(
        type(pipe).__name__,
        network,
        nfe,
        tuple((step.t, len(step.skip)) for step in plan.steps if step.skip),
        (
            *(option for option in OPTIONS if option in options),
            *(f"{key} of {type(stock).__name__}" for key in settings if not (clips and key == "clip_sample")),
        ),
        strength,
    )


def _strength(scheduler: PlanScheduler, counts: tuple[int, ...]) -> str:
    """With which of these numbers of steps, if any, the plan can begin at its second step."""
    reason = ""
    for count in counts:
        try:
            with warnings.catch_warnings():  # those of a call, which will give them
                warnings.simplefilter("ignore")
                scheduler.set_timesteps(count)
                scheduler.set_begin_index(scheduler.order)
            return f"strength below 1: call it with num_inference_steps={count}"
        except InputError as error:
            reason = f"strength below 1 is refused ({error})"
    return reason


def _hollow(name: str) -> tuple[Any, str]:
    """The pipeline with its scheduler and a network without weights, and which of its components that is.

    Raises:
        InputError: the files say nothing of such a pipeline, or cannot be read.
    """
    index = _config(diffusers.DDPMPipeline, name)
    found = str(index.get("_class_name"))
    kind = _class(found)
    if kind is None:
        raise InputError(
            f"{name}: its pipeline {found} is no class of diffusers {diffusers.__version__}, and its files do not say "
            "what it is derived from; load it, and apply the plan to it"
        )
    try:
        network, _ = PIPELINES[known_as(kind)]
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    parts: dict[str, Any] = {
        parameter.name: None
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is inspect.Parameter.empty
    }
    parts["scheduler"] = _component(name, index, "scheduler", diffusers.DDPMScheduler, "cpu")
    parts[network] = _component(name, index, network, diffusers.UNet2DModel, "meta")
    if parts[network] is not None:
        parts[network].to("meta").eval()  # some buffers are made of numpy's arrays, which no device holds for torch
    try:
        with quiet():
            return kind(**parts), network
    except Exception as error:  # whatever settings lead to that do not fit one another
        raise InputError(f"{name}: no {found} can be made of its files ({_short(error)})") from None


def _component(name: str, index: dict[str, Any], part: str, reader: Any, device: str) -> Any:
    """A part of the pipeline, made as its configuration says; ``None`` where the index has none."""
    match index.get(part):
        case None | [None, _]:
            return None
        case ["diffusers", str(found)] if (kind := _class(found)) is not None:
            config = _config(reader, name, part)
        case other:
            raise InputError(
                f"{name}: model_index.json says that its {part} is {other}, which is no class of diffusers "
                f"{diffusers.__version__}; load the pipeline, and apply the plan to it"
            )
    try:
        with quiet(), torch.device(device):
            return kind.from_config(config)
    except Exception as error:  # as many kinds as there are classes
        raise InputError(f"{name}/{part}: no {found} can be made of its configuration ({_short(error)})") from None


def _class(name: str) -> Any:
    """The class of diffusers with this name, or ``None``."""
    with quiet():
        found = getattr(diffusers, name, None)
    return found if isinstance(found, type) else None


def _config(reader: Any, name: str, part: str = "") -> dict[str, Any]:
    """The configuration of a part, or of the pipeline itself.

    Args:
        reader: a class that has its configuration in a file of the same name.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    folder, file = Path(name), f"{part}/{reader.config_name}".removeprefix("/")
    if folder.is_file():
        raise InputError(f"{name}: is a file; give the folder or the hub name of a pipeline")
    if name and folder.is_dir():
        if not (folder / file).is_file():
            raise InputError(f"{folder / file}: is missing; give a pipeline's folder, as save_pretrained writes it")
        config, error = config_of(reader, str(folder / file))
        reason = "cannot be read" if error else "is no JSON object; fetch or write it again"
    else:
        config, error = config_of(reader, name, **({"subfolder": part} if part else {}))
        cause = None if error is None else error.__context__
        if isinstance(cause, LocalEntryNotFoundError):
            reason = "no such folder, and the hub cannot be reached for it"
        elif isinstance(cause, GatedRepoError):
            reason = "the hub gives it to those alone who agreed to its terms; do so there, then run hf auth login"
        else:
            reason = "no such folder, and the hub has no such file"
    if config is None:
        raise InputError(f"{name}/{file}: {reason}")
    return config


def _short(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200)
