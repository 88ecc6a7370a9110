"""The diffusers pipelines that plans can be applied to, and how the network of each is called.

Here it is called only to find its layers, so what it is asked to show is nothing: zeros for the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from autodiffusion._errors import InputError

Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of a :class:`Model`: (x ``[B, ...]``, t ``[B]``, label ``[B]`` or ``None``) -> prediction."""

PER_TIME = 1000
"""What Flux's pipelines divide a time by before they ask their network."""

TOKENS = 77
"""Length of the text; which layers there are does not depend on it."""


def _check(config: Any, key: str, known: str | None, instead: str = "") -> None:
    """Raises :class:`InputError` unless the configuration has ``known`` or nothing for ``key``."""
    if config.get(key) not in (None, known):
        raise InputError(
            f"unet: its layers cannot be found with {key} = {config[key]}; apply a plan that leaves out none{instead}"
        )


def _unet(unet: Any) -> tuple[Network, int | None]:
    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        _check(unet.config, "class_embed_type", None)
        prediction: Tensor = unet(x, t, class_labels=label, return_dict=False)[0]
        return prediction

    return network, unet.config.get("num_class_embeds")


def _dit(dit: Any) -> tuple[Network, int | None]:
    return lambda x, t, label: dit(x, t, class_labels=label, return_dict=False)[0], dit.config.num_embeds_ada_norm


def _text_unet(unet: Any) -> tuple[Network, int | None]:
    """A ``UNet2DConditionModel`` of Stable Diffusion 1, 2 or XL."""
    config = unet.config

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        _check(config, "class_embed_type", None)
        for key, known in (("encoder_hid_dim_type", "text_proj"), ("addition_embed_type", "text_time")):
            _check(config, key, known, ", or apply it before an adapter is loaded")
        width: Any = config.get("encoder_hid_dim") or config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]  # of each block, all the same
        added = None
        if config.get("addition_embed_type"):  # XL: the pooled text, and numbers such as the image's size
            pooled = config.projection_class_embeddings_input_dim - config.addition_time_embed_dim
            added = {"text_embeds": x.new_zeros(len(x), pooled), "time_ids": x.new_zeros(len(x), 1)}
        text = x.new_zeros(len(x), TOKENS, width)
        prediction: Tensor = unet(x, t, text, class_labels=label, added_cond_kwargs=added, return_dict=False)[0]
        return prediction

    return network, config.get("num_class_embeds")


def _pixart(transformer: Any) -> tuple[Network, int | None]:
    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        text = x.new_zeros(len(x), TOKENS, transformer.config.caption_channels)
        size = {"resolution": x.new_ones(len(x), 2), "aspect_ratio": x.new_ones(len(x), 1)}
        prediction: Tensor = transformer(x, text, timestep=t, added_cond_kwargs=size, return_dict=False)[0]
        return prediction

    return network, None


def _sd3(transformer: Any) -> tuple[Network, int | None]:
    config = transformer.config

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        text = x.new_zeros(len(x), TOKENS, config.joint_attention_dim)
        pooled = x.new_zeros(len(x), config.pooled_projection_dim)
        prediction: Tensor = transformer(x, text, pooled, t, return_dict=False)[0]
        return prediction

    return network, None


def _flux(transformer: Any) -> tuple[Network, int | None]:
    """A ``FluxTransformer2DModel``, which takes an image as a list of tokens with their places."""
    config = transformer.config

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        text = x.new_zeros(len(x), TOKENS, config.joint_attention_dim)
        prediction: Tensor = transformer(
            tokens,
            encoder_hidden_states=text,
            pooled_projections=x.new_zeros(len(x), config.pooled_projection_dim),
            timestep=t / PER_TIME,
            img_ids=x.new_zeros(tokens.shape[1], 3),
            txt_ids=x.new_zeros(TOKENS, 3),
            guidance=x.new_ones(len(x)) if config.guidance_embeds else None,
            return_dict=False,
        )[0]
        images: Tensor = prediction.transpose(1, 2).unflatten(2, x.shape[2:])
        return images

    return network, None


_UNET, _TEXT, _PIXART = ("unet", _unet), ("unet", _text_unet), ("transformer", _pixart)
_SD3, _FLUX = ("transformer", _sd3), ("transformer", _flux)

PIPELINES: dict[str, tuple[str, Callable[[Any], tuple[Network, int | None]]]] = {
    "DDPMPipeline": _UNET,
    "DDIMPipeline": _UNET,
    "PNDMPipeline": _UNET,
    "LDMPipeline": _UNET,
    "DiTPipeline": ("transformer", _dit),
    "StableDiffusionPipeline": _TEXT,
    "StableDiffusionImg2ImgPipeline": _TEXT,
    "StableDiffusionInpaintPipeline": _TEXT,
    "StableDiffusionControlNetPipeline": _TEXT,
    "StableDiffusionControlNetImg2ImgPipeline": _TEXT,
    "StableDiffusionControlNetInpaintPipeline": _TEXT,
    "StableDiffusionXLPipeline": _TEXT,
    "StableDiffusionXLImg2ImgPipeline": _TEXT,
    "StableDiffusionXLInpaintPipeline": _TEXT,
    "StableDiffusionXLControlNetPipeline": _TEXT,
    "StableDiffusionXLControlNetImg2ImgPipeline": _TEXT,
    "StableDiffusionXLControlNetInpaintPipeline": _TEXT,
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "StableDiffusion3ControlNetPipeline": _SD3,
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxControlNetPipeline": _FLUX,
    "FluxFillPipeline": _FLUX,
    "FluxKontextPipeline": _FLUX,
}
"""For each class of pipelines, and what is derived from it: the component that denoises, and how it is called as the
network of a :class:`Model`, with the number of its classes."""


def blends(name: str, network: Any) -> bool:
    """Whether pipelines of this class put the known part of an image into the sample after each step.

    Those that repaint with a network for whole images do; a network for repainting gets it beside the sample.
    """
    given, made = network.config.in_channels, network.config.out_channels
    return name.endswith("InpaintPipeline") and given == (made or given)


def divisor(name: str) -> int:
    """What pipelines of this class divide a time by before they ask their network."""
    return PER_TIME if PIPELINES[name] == _FLUX else 1


def flows(name: str) -> bool:
    """Whether the networks of these pipelines are of flow matching."""
    return PIPELINES[name] in (_SD3, _FLUX)
