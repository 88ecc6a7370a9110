"""The bundled model: digits at 16x16, class-conditional, with a null class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from autodiffusion.models._model import Model
from autodiffusion.models.diffusers.unet import load_unet

FOLDER = Path(__file__).parent.parent / "_bundled" / "mnist"
NULL_CLASS = 10


def mnist(
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    guidance_scale: float = 1.0,
    classes: int | None = None,
    null_class: int = NULL_CLASS,
) -> Model:
    """The model in ``_bundled/mnist`` with its own feature network and reference; its card is the README there."""
    model = load_unet(
        str(FOLDER), device=device, dtype=dtype, guidance_scale=guidance_scale, classes=classes, null_class=null_class
    )
    return replace(model, name="mnist", features="mnist", reference=FOLDER / "reference.npz")


model = mnist
