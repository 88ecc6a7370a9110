"""OpenAI's ADM and ADM-G (Dhariwal and Nichol 2021) from guided-diffusion's checkpoints."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodiffusion._errors import InputError, nearest
from autodiffusion._names import check_options
from autodiffusion.models._adm.classifier import classifier_of
from autodiffusion.models._adm.fitting import fitting
from autodiffusion.models._adm.flags import CLASSES, Flags
from autodiffusion.models._adm.network import MisfitError, adm_unet
from autodiffusion.models._model import Model

_LSUN = Flags(
    image_size=256,
    num_channels=256,
    num_head_channels=64,
    attention_resolutions="32,16,8",
    resblock_updown=True,
    learn_sigma=True,
)
PRESETS = {
    "imagenet64": Flags(
        num_channels=192,
        num_res_blocks=3,
        num_head_channels=64,
        attention_resolutions="32,16,8",
        class_cond=True,
        resblock_updown=True,
        use_new_attention_order=True,
        learn_sigma=True,
        noise_schedule="cosine",
        classifier_depth=4,
    ),
    "lsun-cat": _LSUN,
    "lsun-bedroom": _LSUN,
}
"""The flags of the checkpoints that AutoDiffusion (Li et al. 2023) was published with; guided-diffusion's README has
them."""

FILES = {"imagenet64": "64x64_diffusion.pt", "lsun-cat": "lsun_cat.pt", "lsun-bedroom": "lsun_bedroom.pt"}
HOME = "the README of github.com/openai/guided-diffusion"


@torch.inference_mode(False)  # weights of inference mode take no part in gradients
def adm(
    *,
    preset: str | None = None,
    checkpoint: str | None = None,
    classifier: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    guidance_scale: float | None = None,
    classes: int | None = None,
) -> Model:
    """The network of a checkpoint, guided by a classifier where one is given.

    In half precision only the blocks are, as the checkpoints were meant to be used: see
    :func:`autodiffusion.models._adm.half.cast_blocks`.

    Args:
        preset: whose flags it has; without one, guided-diffusion's defaults.
        checkpoint: file of the network's weights, as torch saves a ``state_dict`` or as safetensors.
        classifier: likewise of a classifier.
        model_options: flags that differ, by name: see :class:`Flags`.
        guidance_scale: of the classifier, 1 where nothing is said.
        classes: of the network and the classifier, 1,000 where nothing is said.

    Raises:
        InputError: no such preset or flag, a file that cannot be read or does not fit, a scale without classifier.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"model 'adm/{preset}' is unknown {nearest(preset, PRESETS)}, or adm for any other checkpoint")
    name = f"adm/{preset}" if preset else "adm"
    if checkpoint is None:
        file = f"{FILES[preset]} from" if preset else "such as those in"
        raise InputError(f"model '{name}' needs its weights; give --checkpoint FILE, {file} {HOME}")
    if guidance_scale is not None and classifier is None:
        raise InputError(
            f"model '{name}': guidance_scale = {guidance_scale:g} needs a classifier; give --classifier FILE, "
            f"such as 64x64_classifier.pt from {HOME}"
        )
    flags = _flags(name, PRESETS[preset] if preset else Flags(), model_options or {})
    labels, schedule, scale = classes or CLASSES, flags.schedule, flags.time_scale
    unet: Any = _read(checkpoint, "checkpoint", flags, labels)
    if classes is not None and not flags.class_cond and classifier is None:
        raise InputError(f"model '{name}' has no classes; leave --classes out, or give --model-option class_cond=true")
    guide: Any = None if classifier is None else _read(classifier, "classifier", flags, labels)
    if dtype != torch.float32:
        from autodiffusion.models._adm.half import cast_blocks

        cast_blocks(unet, dtype)
        if guide is not None:
            guide.cast_blocks(dtype)
    # channels last is the layout that convolutions are fastest in, on CPU and GPU
    unet.to(device, memory_format=torch.channels_last)
    if guide is not None:
        guide.to(device)

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        given = label if flags.class_cond else None
        output: Tensor = unet(x, scale * t, class_labels=given, return_dict=False)[0]
        return output

    def logits(x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = guide(x, scale * t)
        return answer

    return Model(
        network,
        schedule,
        (3, flags.image_size, flags.image_size),
        prediction="sample" if flags.predict_xstart else "epsilon",
        classes=labels if flags.class_cond or guide is not None else None,
        guidance_scale=1.0 if guidance_scale is None else guidance_scale,
        name=name,
        device=device,
        dtype=dtype,
        module=unet,
        classifier=None if guide is None else logits,
    )


def _flags(name: str, flags: Flags, options: Mapping[str, Any]) -> Flags:
    """The flags with what the options say; lists of one number look like numbers, and are lists."""
    defaults = vars(flags)
    options = {
        key: str(value) if type(value) in (int, float) and isinstance(defaults.get(key), str) else value
        for key, value in options.items()
    }
    check_options(f"model {name}", defaults, options)
    return replace(flags, **options)


def _read(file: str, kind: str, flags: Flags, classes: int) -> object:
    """The network of this kind, ``checkpoint`` or ``classifier``, from its file."""
    guides = kind == "classifier"
    state = read_state(Path(file), f"--{kind}")
    try:
        return classifier_of(state, flags.classifier(classes)) if guides else adm_unet(state, flags.network(classes))
    except InputError as error:
        fits = fitting(state, flags, classes, guides)
        if fits == "":  # what is wrong, no weight shows: the heads
            raise
        problem = error.problem if isinstance(error, MisfitError) else str(error)
        if ("out.2.c_proj.weight" in state) != guides and "out.0.weight" in state:
            remedy = f"it is a network of the other kind; give it as --{'checkpoint' if guides else 'classifier'}"
        elif fits:
            remedy = f"it fits with {fits} (--model-option NAME=VALUE each, --classes for classes)"
        else:
            remedy = "no flags make it fit; give a whole UNet or classifier of guided-diffusion"
        raise InputError(f"--{kind} {file}: {problem}; {remedy}") from None


def read_state(path: Path, what: str, instead: str = "save its state_dict() alone") -> dict[str, Tensor]:
    """The tensors in a file that torch saved (``weights_only``) or in ``.safetensors``, by name.

    Args:
        what: how messages call it.
        instead: what to do where it holds other objects.

    Raises:
        InputError: there is no such file, it is incomplete, or it holds anything but tensors by name.
    """
    if not os.path.isfile(path):  # pathlib's fails on names that are too long
        raise InputError(f"{what} {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors have a class each for files that do not fit
        # torch says which objects it refuses; only a complete file gets as far
        if "Unsupported" in str(error) or (zipfile.is_zipfile(path) and type(error).__name__ == "UnpicklingError"):
            raise InputError(
                f"{what} {path}: holds other objects than tensors, which could run code of their own and are not "
                f"loaded; {instead}"
            ) from None
        raise InputError(f"{what} {path}: is incomplete or no file of weights; fetch it again") from None
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"{what} {path}: is not a state_dict, tensors by name; save model.state_dict() alone")
    return dict(state)


model = adm
