"""One worker, in a process of its own: how it makes what it samples with, and what it answers."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from autodiffusion._errors import InputError
from autodiffusion._sampling.blocks import Done, Sampler, Task
from autodiffusion.features._base import load as load_extractor
from autodiffusion.models._load import load


@dataclass(frozen=True)
class Recipe:
    """How a worker makes what it samples with.

    Attributes:
        model: its name.
        options: what else :func:`autodiffusion.load_model` is called with; a worker sees one GPU only, ``cuda``.
        features: the name of the feature network; the model's own where none is given.
        threads: of torch.
        paths: where modules of the user's own are looked for, as in the driver.
    """

    model: str
    options: dict[str, Any]
    features: str | None = None
    threads: int = 1
    paths: tuple[str, ...] = field(default_factory=lambda: (os.getcwd(), *sys.path))


class Worker:
    """One actor: a :class:`Sampler` that is made where it runs."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._sampler: Sampler | None = None

    def prepare(self) -> str | None:
        """Loads the model; why it cannot be loaded, if so."""
        recipe = self._recipe
        sys.path.extend(path for path in recipe.paths if path not in sys.path)
        torch.set_num_threads(recipe.threads)
        try:
            model = load(recipe.model, **recipe.options)
            self._sampler = Sampler(model, load_extractor(recipe.features or model.features, model.device))
        except InputError as error:
            return str(error)
        return None

    def run(self, task: Task) -> Done:
        """What comes of a task."""
        assert self._sampler is not None
        try:
            return self._sampler.run(task)
        except Exception:
            if not self._sampler.sound():
                os._exit(1)  # another takes its place
            raise

    def forget(self, noise: str) -> None:
        """Frees the states of a noise."""
        if self._sampler is not None:
            self._sampler.forget(noise)
