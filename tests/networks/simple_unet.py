"""Attention whose processor adds the input: as DeepFloyd's and Kandinsky's."""

from __future__ import annotations

from diffusers import UNet2DConditionModel

from networks import UNET, Small, texted

network = Small(
    UNet2DConditionModel,
    UNET
    | {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    texted,
    (4, 8, 8),
)
