"""diffusers' UNet2DModel: bare or in a pipeline, from a local folder or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodiffusion.errors import InputError
from autodiffusion.models._model import Model
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

    subfolder = {"subfolder": "unet"}
    config = _config(name, subfolder)
    if config is None:
        subfolder, config = {}, _config(name, {})
    if config is None:
        raise InputError(_nothing(name))
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise InputError(f"model '{name}': its network is a {kind}; this version samples UNet2DModel only")
    scheduler = _scheduler(name)
    if schedule is None:
        if scheduler is None:
            raise InputError(
                f"model '{name}': no scheduler beside the network says how it was trained; "
                "give --schedule linear, scaled_linear or cosine"
            )
        if "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
            raise InputError(
                f"model '{name}': scheduler {scheduler.get('_class_name')} is not of a variance-preserving model "
                "with discrete time steps"
            )
        schedule = NoiseSchedule.from_config(scheduler)
    labels = config.get("num_class_embeds")
    if labels is None and (classes is not None or null_class is not None):
        raise InputError(f"model '{name}': has no class embedding; leave --classes and --null-class out")
    if labels is not None:
        classes = classes or labels - (null_class is not None)
        if classes > labels or (null_class is not None and not classes <= null_class < labels):
            raise InputError(
                f"model '{name}': {classes} classes and null class {null_class} do not fit {labels} class embeddings"
            )
    try:
        unet = UNet2DModel.from_pretrained(
            name, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False, **subfolder
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model '{name}': its weights cannot be loaded ({reason}); safetensors are needed") from None
    except Exception as error:  # safetensors raises its own class on a truncated file
        raise InputError(f"model '{name}': its weights cannot be loaded ({error}); fetch the file again") from None
    # channels last is the layout that convolutions are fastest in, on CPU and GPU
    unet = unet.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        output: Tensor = unet(x, t, class_labels=label, return_dict=False)[0]
        return output

    return Model(
        network,
        schedule,
        (unet.config.in_channels, height, width),
        prediction=(scheduler or {}).get("prediction_type", "epsilon"),
        clip=bool((scheduler or {}).get("clip_sample", True)),
        classes=classes,
        null_class=null_class,
        guidance_scale=guidance_scale,
        name=name,
        device=device,
        dtype=dtype,
    )


def _config(name: str, subfolder: dict[str, str]) -> dict[str, Any] | None:
    """The network's configuration, or ``None`` where there is none."""
    from diffusers import UNet2DModel

    try:
        config: dict[str, Any] = UNet2DModel.load_config(name, **subfolder)
    except OSError:
        return None
    except ValueError as error:
        raise InputError(f"model '{name}': {str(error).splitlines()[0]}") from None
    return config if "_class_name" in config else None


def _scheduler(name: str) -> dict[str, Any] | None:
    """The configuration of the pipeline's scheduler, or of one that lies beside a bare network."""
    from diffusers import DDPMScheduler

    for place in ({"subfolder": "scheduler"}, {}):
        try:
            config: dict[str, Any] = DDPMScheduler.load_config(name, **place)
        except (OSError, ValueError):
            continue
        if "num_train_timesteps" in config:
            return config
    return None


def _nothing(name: str) -> str:
    from autodiffusion.names import known

    names = ", ".join(known("models"))
    if Path(name).exists():
        return f"model '{name}': no UNet configuration in this folder (unet/config.json or config.json)"
    return f"model '{name}' is unknown: not bundled ({names}), no such folder, and no UNet of that name on the hub"
