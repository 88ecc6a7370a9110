"""diffusers' UNet2DModel: bare or in a pipeline, from a local folder or a hub name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.models._model import Model
from autodiffusion.models.diffusers._folder import config_of, network_of, schedule_of, scheduler_of, weights_of


def load_unet(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    schedule: NoiseSchedule | None = None,
    guidance_scale: float = 1.0,
    classes: int | None = None,
    null_class: int | None = None,
    found: tuple[dict[str, Any], dict[str, Any]] | None = None,
) -> Model:
    """A Model of the UNet in ``name``, which is a pipeline's folder (``unet/``, ``scheduler/``) or the UNet's own.

    The prediction type, whether samples are clipped and the noise schedule come from the scheduler's configuration; a
    network with twice as many output as input channels has learned its variance, which sampling does not use.
    ``classes`` defaults to the network's class embeddings, less one where there is a ``null_class``.

    Args:
        found: what :func:`network_of` gives for ``name``, where it was asked already.

    Raises:
        InputError: nothing there, another kind of scheduler, no safetensors, or no noise schedule known.
    """
    from diffusers import UNet2DModel

    config, place = found or network_of(name)
    if "unet" in place.get("subfolder", ""):
        _check_pixels(name)
    scheduler = scheduler_of(name)
    schedule = schedule or schedule_of(name, scheduler)
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
    if config.get("class_embed_type") is not None:
        raise InputError(
            f"model '{name}': its network has class_embed_type = {config['class_embed_type']}; this version samples "
            "those with None, whose classes are numbers"
        )
    unet = weights_of(UNet2DModel, name, dtype, **place)
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
        prediction=(scheduler or {}).get("prediction_type", schedule.predictions[0]),
        clip=bool((scheduler or {}).get("clip_sample", True)),
        classes=classes,
        null_class=null_class,
        guidance_scale=guidance_scale,
        name=name,
        device=device,
        dtype=dtype,
        module=unet,
    )


def _check_pixels(name: str) -> None:
    """Raises :class:`InputError` for a pipeline whose UNet works on the latents of an autoencoder."""
    from diffusers import DDPMPipeline

    index, _ = config_of(DDPMPipeline, name)
    for part in ("vqvae", "vae"):
        if index and part in index:
            raise InputError(f"model '{name}': its network works on latents ({part}); this version samples pixels only")


networks = ("UNet2DModel",)
model = load_unet
