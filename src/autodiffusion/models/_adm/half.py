"""ADM networks in half precision, cast as guided-diffusion casts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn


class MixedUNet(UNet2DModel):
    """A UNet whose time embedding is of another dtype than its blocks; diffusers takes that of the first weight."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the time embedding."""
        unet: Any = self
        return cast("torch.dtype", unet.time_embedding.linear_1.weight.dtype)


def cast_blocks(unet: Any, dtype: torch.dtype) -> None:
    """Casts the blocks' convolutions, those of attention included, as guided-diffusion's ``convert_to_fp16`` does.

    The time and class embeddings, the blocks' projections of them, normalizations and the output stay as they are. What
    a block's normalization or projection gives is cast again. What the network gives is of the output's dtype.
    """
    outer = unet.conv_out.weight.dtype
    unet.__class__ = MixedUNet
    unet.conv_norm_out.register_forward_pre_hook(_takes(outer))
    for part in (unet.conv_in, unet.down_blocks, unet.mid_block, unet.up_blocks):
        for name, module in part.named_modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_takes(outer))
                module.register_forward_hook(_gives(dtype))
            elif name.endswith("time_emb_proj"):
                module.register_forward_hook(_gives(dtype))
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(dtype)


def _takes(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, args: tuple(arg.to(dtype) for arg in args)


def _gives(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda module, args, output: output.to(dtype)
