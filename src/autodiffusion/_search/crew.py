"""Crew: who samples, this process or workers elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch

from autodiffusion._sampling.actor import Recipe
from autodiffusion._sampling.blocks import Workers
from autodiffusion._sampling.cluster import Cluster
from autodiffusion._sampling.unfinished import FOLDER, Unfinished
from autodiffusion._search.job import Job
from autodiffusion._study.settings import OF_MODEL, Settings
from autodiffusion._study.study import Study, finished


@contextmanager
def crew(
    recipe: Recipe, count: int | None = None, address: str | None = None, timeout: float | None = None
) -> Iterator[Workers | None]:
    """Starts ``count`` workers, and ends them; ``None`` where this process samples alone.

    One for each GPU where nothing is said and the device is ``cuda``; a warning says where Ray is missing for that.

    Args:
        address: as of :class:`autodiffusion._sampling.cluster.Cluster`, and so ``timeout``.

    Raises:
        InputError: Ray is asked for and not installed or not reached, or a worker cannot load the model.
    """
    if count is None and address is None:
        count = torch.cuda.device_count() if recipe.options.get("device") == "cuda" else 1
        if count > 1 and find_spec("ray") is None:
            warnings.warn(
                f'one of {count} GPUs is used; for all of them pip install "autodiffusion[cluster]"', stacklevel=2
            )
            count = 1
    if count == 1 and address is None and timeout is None:
        yield None
        return
    with Cluster(recipe, count, address, timeout) as workers:
        yield workers


def crew_of(settings: Settings) -> AbstractContextManager[Workers | None]:
    """The workers that a search's settings ask for."""
    recipe = Recipe(settings.model, settings.model_dump(include=OF_MODEL), settings.features, max(1, settings.threads))
    return crew(recipe, settings.workers, settings.ray_address, settings.timeout)


def at_work(job: Job, out: Path, workers: Workers | None) -> AbstractContextManager[Workers | None]:
    """Who samples for the search in ``out``: those at work already, those that its settings ask for, or nobody else."""
    if workers is not None or finished(out):
        return nullcontext(workers)
    Study.check(out, job.settings)  # or they would be started for nothing
    return crew_of(job.settings)


def keeping(job: Job, study: Study, workers: Workers | None) -> tuple[Job, Unfinished]:
    """The job with blocks that the study keeps until they are in its scores, sampled by ``workers`` or this process."""
    kept = Unfinished(workers or job.evaluator.workers, study.folder / FOLDER, lambda: len(study.events))
    return job.sampled_by(kept), kept
