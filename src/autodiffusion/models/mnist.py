"""The bundled model: digits at 16x16, class-conditional, with a null class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autodiffusion.models._model import Model
from autodiffusion.models._unet import load_unet

FOLDER = Path(__file__).parent.parent / "bundled" / "mnist"
NULL_CLASS = 10


def mnist(**options: Any) -> Model:
    """The model in ``bundled/mnist`` with its own feature network and reference; its card is the README there."""
    options["null_class"] = NULL_CLASS if options.get("null_class") is None else options["null_class"]
    model = load_unet(str(FOLDER), **options)
    return replace(model, name="mnist", features="mnist", reference=FOLDER / "reference.npz")


model = mnist
