"""Sums over the root of 2 and resampling by a FIR filter: as score-SDE's networks."""

from __future__ import annotations

from diffusers import UNet2DModel

from networks import Small, plain

network = Small(
    UNet2DModel,
    {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "mid_block_scale_factor": 2**0.5,
    },
    plain,
    (3, 8, 8),
)
