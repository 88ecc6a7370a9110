"""Residual blocks of diffusers' UNets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autodiffusion.layers._base import Rule


def bypass(module: Any, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The input, resampled and projected by the shortcut as in the block, over the block's scale factor."""
    x = input_tensor
    if module.upsample is not None:
        if x.shape[0] >= 64:  # as the block does: diffusers issue 984
            x = x.contiguous()
        x = module.upsample(x)
    elif module.downsample is not None:
        x = module.downsample(x)
    if module.conv_shortcut is not None:
        x = module.conv_shortcut(x)
    return x if module.output_scale_factor == 1 else x / module.output_scale_factor


rules = (Rule("diffusers.ResnetBlock2D", "resnet", bypass),)
