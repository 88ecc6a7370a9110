"""Attention blocks of diffusers' UNets, which add to their input themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autodiffusion.layers._base import Rule


def bypass(module: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The input, over the block's scale factor."""
    return hidden_states if module.rescale_output_factor == 1 else hidden_states / module.rescale_output_factor


def is_residual(module: nn.Module) -> bool:
    """Whether the block adds its input; others of the class leave that to the block that they are a part of.

    The blocks of UNets with ``SimpleCrossAttn`` blocks add it in their processor.
    """
    return bool(module.residual_connection) or "AttnAddedKV" in type(module.processor).__name__


rules = (Rule("diffusers.Attention", "attention", bypass, is_residual),)
