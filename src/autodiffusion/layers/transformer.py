"""Transformers in diffusers' UNets, and the blocks of its transformers: DiT, PixArt, SD3, Flux."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autodiffusion.layers._base import Rule


def one_stream(module: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The input."""
    return hidden_states


def in_unet(module: Any, hidden_states: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
    """The input, in the form that was asked for."""
    if not return_dict:
        return (hidden_states,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=hidden_states)


def is_continuous(module: nn.Module) -> bool:
    """Whether it adds to an image; one that takes patches or tokens is a network of its own, made of blocks."""
    return bool(module.is_input_continuous)


def two_streams(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor | None, Tensor]:
    """Both inputs, the text's first; SD3's last block has no text to pass on."""
    return (None if getattr(module, "context_pre_only", False) else encoder_hidden_states), hidden_states


def joined_streams(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """Both inputs, or the one in which the network has joined them: diffusers before 0.34."""
    return hidden_states if encoder_hidden_states is None else (encoder_hidden_states, hidden_states)


rules = (
    Rule("diffusers.Transformer2DModel", "transformer", in_unet, is_continuous),
    Rule("diffusers.BasicTransformerBlock", "transformer", one_stream),
    Rule("diffusers.JointTransformerBlock", "transformer", two_streams),
    Rule("diffusers.FluxTransformerBlock", "transformer", two_streams),
    Rule("diffusers.FluxSingleTransformerBlock", "transformer", joined_streams),
)
