"""diffusers' UNet2DModel: bare or in a pipeline, from a local folder or a hub name."""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodiffusion.errors import InputError, nearest
from autodiffusion.models._model import Model
from autodiffusion.names import known
from autodiffusion.schedule import NoiseSchedule


def load_unet(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    schedule: NoiseSchedule | None = None,
    guidance_scale: float = 1.0,
    classes: int | None = None,
    null_class: int | None = None,
) -> Model:
    """A Model of the UNet in ``name``, which is a pipeline's folder (``unet/``, ``scheduler/``) or the UNet's own.

    The prediction type, whether samples are clipped and the noise schedule come from the scheduler's configuration; a
    network with twice as many output as input channels has learned its variance, which sampling does not use.
    ``classes`` defaults to the network's class embeddings, less one where there is a ``null_class``.

    Raises:
        InputError: nothing there, another kind of network or scheduler, no safetensors, or no noise schedule known.
    """
    from diffusers import UNet2DModel

    config, place = _network(name)
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise InputError(f"model '{name}': its network is a {kind}; this version samples UNet2DModel only")
    if "unet" in place.get("subfolder", ""):
        _check_pixels(name)
    scheduler = _scheduler(name)
    schedule = schedule or _schedule(name, scheduler)
    labels = config.get("num_class_embeds")
    if labels is None and (classes is not None or null_class is not None):
        raise InputError(f"model '{name}': has no class embedding; leave --classes and --null-class out")
    if labels is not None:
        classes = classes or labels - (null_class is not None)
        if classes > labels or (null_class is not None and not classes <= null_class < labels):
            raise InputError(
                f"model '{name}': {classes} classes and null class {null_class} do not fit {labels} class embeddings"
            )
    channels, answers = config.get("in_channels"), config.get("out_channels")
    if not channels or answers not in (channels, 2 * channels):
        raise InputError(
            f"model '{name}': its network makes {answers} channels of {channels}; one that denoises makes as many, "
            "or twice as many where it has learned its variance"
        )
    try:
        with _quiet():
            unet, loaded = UNet2DModel.from_pretrained(
                name,
                torch_dtype=dtype,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **place,
            )
    except Exception as error:  # diffusers, safetensors and torch have a class each for files that do not fit
        raise InputError(_unfit(name, textwrap.shorten(str(error), 200))) from None
    if loaded["missing_keys"]:  # diffusers would leave them random
        raise InputError(_unfit(name, f"{loaded['missing_keys'][0]} is missing"))
    # channels last is the layout that convolutions are fastest in, on CPU and GPU
    unet = unet.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    size = unet.config.sample_size
    if size is None:
        raise InputError(f"model '{name}': its config.json does not say the sample_size; write it there")
    height, width = (size, size) if isinstance(size, int) else size

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        output: Tensor = unet(x, t, class_labels=label, return_dict=False)[0]
        return output

    return Model(
        network,
        schedule,
        (channels, height, width),
        prediction=(scheduler or {}).get("prediction_type", "epsilon"),
        clip=bool((scheduler or {}).get("clip_sample", True)),
        classes=classes,
        null_class=null_class,
        guidance_scale=guidance_scale,
        name=name,
        device=device,
        dtype=dtype,
        module=unet,
    )


def _network(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The UNet's configuration, and where in ``name`` it lies.

    Raises:
        InputError: there is none.
    """
    from diffusers import UNet2DModel
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(name).is_file():
        raise InputError(f"model '{name}': is a file; give the folder that holds it")
    reached: dict[str, Any] = {}
    for place in ({"subfolder": "unet"}, {}):
        config, error = _config(UNet2DModel, name, **place, **reached)
        if config is not None and "_class_name" in config:
            return config, place
        if error is not None and isinstance(error.__context__, LocalEntryNotFoundError):
            reached = {"local_files_only": True}  # a hub that does not answer is not asked, and waited for, again
    if name and Path(name).is_dir():
        raise InputError(f"model '{name}': no UNet configuration in this folder (unet/config.json or config.json)")
    hub = "the hub cannot be reached" if reached else "the hub has no UNet of that name"
    raise InputError(f"model '{name}' is unknown {nearest(name, known('models'))}: no such folder, and {hub}")


def _check_pixels(name: str) -> None:
    """Raises :class:`InputError` for a pipeline whose UNet works on the latents of an autoencoder."""
    from diffusers import DDPMPipeline

    index, _ = _config(DDPMPipeline, name)
    for part in ("vqvae", "vae"):
        if index and part in index:
            raise InputError(f"model '{name}': its network works on latents ({part}); this version samples pixels only")


def _scheduler(name: str) -> dict[str, Any] | None:
    """The configuration of the pipeline's scheduler, or of one that lies beside a bare network."""
    from diffusers import DDPMScheduler

    found = (_config(DDPMScheduler, name, **place)[0] for place in ({"subfolder": "scheduler"}, {}))
    return next((config for config in found if config is not None), None)


def _schedule(name: str, scheduler: dict[str, Any] | None) -> NoiseSchedule:
    """The noise schedule that the scheduler's configuration describes."""
    if scheduler is None:
        raise InputError(
            f"model '{name}': no scheduler beside the network says how it was trained; "
            "give --schedule linear, scaled_linear or cosine"
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
    try:
        return NoiseSchedule.from_config(scheduler)
    except (InputError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error), 200)
        raise InputError(f"model '{name}': its scheduler_config.json describes no noise schedule ({reason})") from None


def _config(kind: Any, name: str, **place: Any) -> tuple[dict[str, Any] | None, Exception | None]:
    """The configuration of this kind of thing in ``name``; where there is none, why.

    Raises:
        InputError: there is one, and it cannot be read.
    """
    try:
        with _quiet():
            config: object = kind.load_config(name, **place)
    except (OSError, ValueError) as error:
        if "valid JSON" in str(error):
            raise InputError(f"model '{name}': {' '.join(str(error).split())} Fetch or write it again") from None
        return None, error
    return (config if isinstance(config, dict) else None), None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from the user what diffusers says besides its errors, which become one line of ours."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _unfit(name: str, reason: str) -> str:
    return (
        f"model '{name}': its weights cannot be loaded ({reason.removesuffix('.')}); "
        "complete safetensors that fit its config.json are needed"
    )
