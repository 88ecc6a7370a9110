"""Residual blocks that resample, attention, scale-shift norm: as OpenAI's ADM networks."""

from __future__ import annotations

from diffusers import UNet2DModel

from networks import UNET, Small, plain

network = Small(
    UNet2DModel,
    UNET
    | {
        "block_out_channels": (8, 16),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
    plain,
    (3, 8, 8),
    {"ResnetBlock2D": lambda block: [block.conv2], "Attention": lambda block: [block.to_out[0]]},
)
