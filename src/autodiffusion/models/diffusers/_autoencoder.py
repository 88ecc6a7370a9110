"""Latents to images through a diffusers autoencoder, a few at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PIXELS = 2**20
"""Decoded at once: four images of 512x512. Decoding takes more memory than the network does for as many samples."""


def decoder(
    vae: Any, pixels: int = PIXELS, *, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0
) -> Callable[[Tensor], Tensor]:
    """From latents ``[B, C, H, W]``, scaled as the network sees them, to images in [-1, 1], as the pipelines do.

    Args:
        vae: an ``AutoencoderKL``, in the dtype in which it is to compute.
        pixels: decoded at once, or one image where that has more.
        mean, std: of the latents, one number or one for each channel: those that the pipeline puts back beside the
            ``scaling_factor``, ``latents * std / scaling_factor + mean``.
    """
    side = enlargement(vae.config)
    centre, spread = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        height, width = (side * size for size in latents.shape[2:])
        latents = latents.to(vae.device)
        scaled = (latents * spread.to(latents) / vae.config.scaling_factor + centre.to(latents)).to(vae.dtype)
        parts = scaled.split(max(1, pixels // (height * width)))
        return torch.cat([vae.decode(part, return_dict=False)[0] for part in parts])

    return decode


def enlargement(config: Mapping[str, Any]) -> int:
    """How many pixels wide a latent's place is, by the autoencoder's configuration."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
