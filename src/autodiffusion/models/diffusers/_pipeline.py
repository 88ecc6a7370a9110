"""The parts of a Stable Diffusion pipeline: from a folder or hub name, or from a single file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autodiffusion._errors import InputError
from autodiffusion.models.diffusers._folder import config_of, quiet, scheduler_of, unfit, weights_of
from autodiffusion.models.diffusers._leftovers import leftovers

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
OF_XL = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
KINDS = {PIPELINES[0]: COMPONENTS, PIPELINES[1]: COMPONENTS | OF_XL}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
SUFFIXES = (".ckpt", ".safetensors")


@dataclass(frozen=True)
class Parts:
    """What images of a text are made with; the safety checker is never loaded.

    Attributes:
        xl: whether it is a Stable Diffusion XL.
        encoders: tokenizers and text encoders, in the pipeline's order.
        scheduler: its configuration.
        zeros: whether no caption is zeros, and not the empty text.
        upcast: whether the autoencoder needs float32 where the rest is float16.
    """

    xl: bool
    unet: Any
    vae: Any
    encoders: tuple[tuple[Any, Any], ...]
    scheduler: dict[str, Any] | None
    zeros: bool
    upcast: bool


def parts_of(name: str, checkpoint: str | None) -> Parts:
    """The parts of the pipeline ``name``, in float32 on the CPU.

    Args:
        name: a folder, a hub name, or a single file.
        checkpoint: a single file with the weights, where ``name`` has the configuration.

    Raises:
        InputError: it is none of these, another pipeline, or cannot be read.
    """
    if Path(name).is_file():
        if checkpoint is not None:
            raise InputError(f"model '{name}': is a file itself; leave --checkpoint out")
        return _from_file(name, Path(name), None)
    index = index_of(name, KINDS)
    return _from_folder(name, index) if checkpoint is None else _from_file(name, Path(checkpoint), index)


def index_of(name: str, kinds: Mapping[str, Mapping[str, str]], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The content of ``model_index.json``, checked to be of a pipeline that is known, with the parts it has.

    Args:
        kinds: of each pipeline that is known the parts, and of which class each is.
        optional: parts that may be ``None``.

    Raises:
        InputError: it is missing, or of another pipeline, or one with other parts.
    """
    from diffusers import DDPMPipeline

    index, _ = config_of(DDPMPipeline, name)
    kind = (index or {}).get("_class_name", "pipeline of no kind (model_index.json is missing)")
    if index is None or kind not in kinds:
        network = " or ".join(dict.fromkeys(next(iter(parts.values())) for parts in kinds.values()))
        raise InputError(
            f"model '{name}': its network is a {network} in a {kind}; of these this version samples "
            f"{' and '.join(kinds)} only"
        )
    for part, wanted in kinds[kind].items():
        _, found = index.get(part) or (None, None)
        if str(found).removesuffix("Fast") != wanted and not (found is None and part in optional):
            raise InputError(f"model '{name}': its {part} is a {found}; this version knows {kind}s with a {wanted}")
    return index


def tokenizer_of(kind: Any, name: str, part: str) -> Any:
    """The tokenizer of this class of transformers in a subfolder of ``name``.

    Raises:
        InputError: its files are missing or cannot be read.
    """
    try:
        with quiet():
            tokenizer = kind.from_pretrained(name, subfolder=part)
        # all that transformers has without its files; of T5 the mark of a word's beginning besides
        if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:
            raise OSError("its vocabulary is missing")
    except Exception as error:  # whatever a file with another content leads to
        reason = textwrap.shorten(str(error), 200)
        raise InputError(f"model '{name}': its {part} cannot be loaded ({reason})") from None
    return tokenizer


def _from_folder(name: str, index: dict[str, Any]) -> Parts:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def load(kind: Any, place: str) -> Any:
        return weights_of(kind, name, torch.float32, subfolder=place)

    def encoder(kind: Any, suffix: str = "") -> tuple[Any, Any]:
        tokenizer = tokenizer_of(CLIPTokenizer, name, f"tokenizer{suffix}")
        with no_bars():
            return tokenizer, load(kind, f"text_encoder{suffix}")

    xl = index["_class_name"] == PIPELINES[1]
    encoders = [encoder(CLIPTextModel), *([encoder(CLIPTextModelWithProjection, "_2")] if xl else [])]
    return Parts(
        xl,
        load(UNet2DConditionModel, "unet"),
        load(AutoencoderKL, "vae"),
        tuple(encoders),
        scheduler_of(name),
        xl and bool(index.get("force_zeros_for_empty_prompt", True)),
        needs_upcast(name),
    )


def needs_upcast(name: str) -> bool:
    """Whether its own configuration says so: diffusers does where nothing is said, as of the first pipelines."""
    from diffusers import AutoencoderKL

    config, _ = config_of(AutoencoderKL, name, subfolder="vae")
    return bool((config or {}).get("force_upcast"))


def _from_file(name: str, file: Path, index: dict[str, Any] | None) -> Parts:
    import diffusers

    keys = _keys(file)
    xl = any(key.startswith("conditioner.") for key in keys) if index is None else index["_class_name"] == PIPELINES[1]
    kind: Any = getattr(diffusers, PIPELINES[xl])
    unused = dict.fromkeys(UNUSED[xl:])  # an XL pipeline has no safety checker
    try:
        with quiet(), no_bars(), leftovers(file):
            pipe = kind.from_single_file(str(file), config=name if index else None, torch_dtype=torch.float32, **unused)
    except Exception as error:  # of diffusers, transformers, the hub and torch, each with classes of its own
        reason = textwrap.shorten(str(error), 200)
        remedy = "give a file that fits the model" if index else "give its pipeline's folder, and --checkpoint FILE"
        raise InputError(f"{file}: cannot be loaded as a {kind.__name__} ({reason}); {remedy}") from None
    for prefix, network in (("model.diffusion_model.", pipe.unet), ("first_stage_model.", pipe.vae)):
        held = sum(key.startswith(prefix) for key in keys)
        if held < len(network.state_dict()):  # diffusers would leave the others random
            raise unfit(str(file), f"{held} tensors of {prefix}*, the network has {len(network.state_dict())}")
    encoders = [(pipe.tokenizer, pipe.text_encoder), *([(pipe.tokenizer_2, pipe.text_encoder_2)] if xl else [])]
    return Parts(
        xl,
        pipe.unet,
        pipe.vae,
        tuple(encoders),
        scheduler_of(name) if index else dict(pipe.scheduler.config),
        xl and bool(pipe.config.force_zeros_for_empty_prompt),
        needs_upcast(name) if index else xl,
    )


def _keys(file: Path) -> set[str]:
    """The names of a single file's tensors, read without making any other object of its own.

    Raises:
        InputError: it is none, or holds other objects than tensors and :func:`leftovers`.
    """
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    from autodiffusion.models.adm import read_state

    if file.suffix not in SUFFIXES or not file.is_file():
        what = "is a file of another kind" if file.is_file() else "is no file"
        raise InputError(f"{file}: {what}; give a {' or '.join(SUFFIXES)} of Stable Diffusion, or a pipeline's folder")
    try:
        with quiet(), leftovers(file):
            state = load_single_file_checkpoint(str(file))
            keys = {str(key) for key in state}
    except Exception:  # which does not say whether the file is torn or holds code
        read_state(file, "checkpoint", "give the .safetensors of the same model")
        keys = set()
    if not any(key.startswith("model.diffusion_model.") for key in keys):
        raise InputError(
            f"{file}: is a file without a whole Stable Diffusion (model.diffusion_model.*); give one, or the folder of "
            "a pipeline"
        )
    return keys


@contextmanager
def no_bars() -> Iterator[None]:
    """Keeps the bars of loading weights from the user; those of downloading go with them."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
