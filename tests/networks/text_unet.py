"""Transformers between residual blocks: as Stable Diffusion's."""

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
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    texted,
    (4, 8, 8),
    {"Transformer2DModel": lambda block: [block.proj_out]},
)
