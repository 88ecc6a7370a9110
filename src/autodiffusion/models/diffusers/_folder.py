"""What a diffusers folder or hub name holds: configurations, weights and the noise schedule."""

from __future__ import annotations

import inspect
import logging
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autodiffusion._errors import InputError, nearest
from autodiffusion._names import known
from autodiffusion._plans.schedule import NoiseSchedule, unfit_for_plans


def network_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The denoising network's configuration, and where in ``name`` it lies.

    Raises:
        InputError: there is none.
    """
    from diffusers import UNet2DModel
    from huggingface_hub.errors import LocalEntryNotFoundError

    reached: dict[str, Any] = {}
    for place in ({"subfolder": "unet"}, {"subfolder": "transformer"}, {}):
        config, error = config_of(UNet2DModel, name, **place, **reached)
        if config is not None and "_class_name" in config:
            return config, place
        if error is not None and isinstance(error.__context__, LocalEntryNotFoundError):
            reached = {"local_files_only": True}  # a hub that does not answer is not asked, and waited for, again
    if name and Path(name).is_dir():
        places = "config.json, or one in unet/ or transformer/"
        raise InputError(f"model '{name}': no configuration of a network in this folder ({places})")
    hub = "the hub cannot be reached" if reached else "the hub has no network of that name"
    raise InputError(f"model '{name}' is unknown {nearest(name, known('models'))}: no such folder, and {hub}")


def weights_of(kind: Any, name: str, dtype: torch.dtype, **place: Any) -> Any:
    """The network of this class of diffusers or transformers, with its weights in ``dtype``.

    Raises:
        InputError: its safetensors are missing, incomplete or of another network.
    """
    try:
        with quiet():
            network, loaded = kind.from_pretrained(
                name,
                torch_dtype=dtype,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **place,
            )
    except Exception as error:  # diffusers, safetensors and torch have a class each for files that do not fit
        raise unfit(name, textwrap.shorten(str(error), 200)) from None
    if loaded["missing_keys"]:  # diffusers would leave them random
        raise unfit(name, f"{min(loaded['missing_keys'])} is missing")
    return network


def scheduler_of(name: str) -> dict[str, Any] | None:
    """The configuration of the pipeline's scheduler, or of one that lies beside a bare network."""
    from diffusers import DDPMScheduler

    found = (config_of(DDPMScheduler, name, **place)[0] for place in ({"subfolder": "scheduler"}, {}))
    return next((config for config in found if config is not None), None)


def schedule_of(name: str, scheduler: dict[str, Any] | None) -> NoiseSchedule:
    """The noise schedule that the scheduler's configuration describes.

    Raises:
        InputError: there is none, or it describes none of a variance-preserving model with discrete time steps.
    """
    if scheduler is None:
        raise InputError(
            f"model '{name}': no scheduler beside the network says how it was trained; "
            "give --schedule linear, scaled_linear, cosine or flow"
        )
    if scheduler.get("thresholding") or (scheduler.get("clip_sample") and scheduler.get("clip_sample_range", 1) != 1):
        warnings.warn(
            f"model '{name}': its scheduler thresholds samples in a way of its own; here they are clipped to [-1, 1], "
            "or not at all with --solver-option clip=false",
            stacklevel=2,
        )
    if "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
        raise InputError(
            f"model '{name}': scheduler {scheduler.get('_class_name')} is not of a variance-preserving model "
            "with discrete time steps"
        )
    kind = str(scheduler.get("_class_name"))
    if reason := unfit_for_plans(scheduler, kind):
        raise InputError(f"model '{name}': its scheduler {kind} {reason}")
    try:
        return NoiseSchedule.from_config(scheduler)
    except (InputError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 200)
        raise InputError(f"model '{name}': its scheduler_config.json describes no noise schedule ({reason})") from None


def config_of(kind: Any, name: str, **place: Any) -> tuple[dict[str, Any] | None, Exception | None]:
    """The configuration of this kind of thing in ``name``; where there is none, why.

    Raises:
        InputError: there is one, and it cannot be read.
    """
    try:
        with quiet():
            config: object = kind.load_config(name, **place)
    except (OSError, ValueError) as error:
        if "valid JSON" in str(error):
            raise InputError(f"model '{name}': {' '.join(str(error).split())} Fetch or write it again") from None
        return None, error
    return (config if isinstance(config, dict) else None), None


def settings_of(kind: Any, name: str, part: str) -> dict[str, Any]:
    """What the constructor of this class of networks gets for a part of ``name``, its defaults included.

    Raises:
        InputError: the part has no configuration, or it cannot be read.
    """
    config, _ = config_of(kind, name, subfolder=part)
    if config is None:
        raise InputError(f"model '{name}': {part}/config.json is missing; fetch the whole pipeline")
    defaults = {key: parameter.default for key, parameter in inspect.signature(kind.__init__).parameters.items()}
    return defaults | config


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps from the user what diffusers and transformers say besides their errors, which become one line of ours."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def unfit(name: str, reason: str) -> InputError:
    """The error of weights that cannot be loaded."""
    return InputError(
        f"model '{name}': its weights cannot be loaded ({reason.removesuffix('.')}); "
        "complete safetensors that fit its config.json are needed"
    )
