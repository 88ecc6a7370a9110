"""PixArt, with DiT's blocks and a text."""

from __future__ import annotations

from diffusers import PixArtTransformer2DModel

from networks import PATCHES, Small, texted

network = Small(
    PixArtTransformer2DModel,
    PATCHES | {"num_layers": 2, "cross_attention_dim": 16, "caption_channels": 16},
    texted,
    (4, 8, 8),
)
