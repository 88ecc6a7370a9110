"""Crew: who samples in a search, this process or workers elsewhere, as its settings say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from autodiffusion.blocks import Workers
from autodiffusion.settings import OF_MODEL, Settings


@contextmanager
def crew(settings: Settings) -> Iterator[Workers | None]:
    """Starts the workers that ``settings`` ask for, and ends them; ``None`` where this process samples alone.

    One for each GPU where nothing is said and the device is ``cuda``; a warning says where Ray is missing for that.

    Raises:
        InputError: Ray is asked for and not installed or not reached, or a worker cannot load the model.
    """
    count, elsewhere = settings.workers, settings.ray_address is not None or settings.timeout is not None
    if count is None and settings.ray_address is None:
        count = torch.cuda.device_count() if settings.device == "cuda" else 1
        if count > 1 and find_spec("ray") is None:
            warnings.warn(
                f'one of {count} GPUs is used; for all of them pip install "autodiffusion[cluster]"', stacklevel=2
            )
            count = 1
    if count == 1 and not elsewhere:
        yield None
        return
    from autodiffusion.cluster import Cluster, Recipe  # Ray is heavy, and an extra

    recipe = Recipe(settings.model, settings.model_dump(include=OF_MODEL), settings.features, max(1, settings.threads))
    with Cluster(recipe, count, settings.ray_address, settings.timeout) as workers:
        yield workers
