"""One plan's figures on fresh noise, by whatever names its reference and feature network have."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from autodiffusion._errors import InputError
from autodiffusion._evaluation.confirm import Row, confirm
from autodiffusion._evaluation.evaluate import BATCH_SIZE, derive_seed
from autodiffusion._plans.plan import Plan
from autodiffusion._report import check_new, save_each
from autodiffusion._sampling.blocks import Workers
from autodiffusion._sampling.sampling import nfe, sample_blocks
from autodiffusion._search.inputs import check_source, find_reference, prepare
from autodiffusion._views.progress import Quiet
from autodiffusion.features import Extractor
from autodiffusion.models._model import Model


def named(metric: str | Sequence[str]) -> list[str]:
    """The names of metrics in a list, or in a text with commas between them."""
    return [name.strip() for name in metric.split(",") if name.strip()] if isinstance(metric, str) else list(metric)


def evaluate(
    plan: Plan,
    model: Model,
    metric: str | Sequence[str] = "fid",
    reference: str | Path | None = None,
    features: str | Extractor | None = None,
    samples: int = 2000,
    seed: int = 0,
    *,
    images: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Quiet | None = None,
    workers: AbstractContextManager[Workers | None] | None = None,
    name: str = "plan",
) -> Row:
    """Scores a plan on noise that no search has seen, with 95 % bootstrap intervals: ``autodiffusion evaluate``.

    Args:
        model: the reference and the features are its own where they are not given.
        metric: one or several, as a list or with commas between them.
        reference: a folder of images, an ``.npz`` file, or ``teacher:100``.
        features: the name of a feature network, or one.
        samples: how many, 2 or more. Compare figures of as many only.
        seed: of the noise; the same one gives the same figures as a search's final table.
        images: a new or empty folder for the images that are scored, one PNG each, ``00000.png`` and so on. They are
            sampled once more for it.
        batch_size: samples at a time; the figures do not depend on it, beyond float rounding.
        workers: who samples, by default this process.
        name: of the plan in the row.

    Returns:
        ``row.scores["fid"].value`` with ``low`` and ``high``; ``row.problem`` says so where samples are not finite.

    Raises:
        InputError: the plan does not fit the model, a name or the reference cannot be used, or samples are too few.
    """
    if samples < 2:
        raise InputError(f"evaluate: samples = {samples} is less than 2; give more")
    progress, evaluations = progress or Quiet(), nfe(plan, model)
    if images is not None:
        check_new(Path(images))
        if model.decoder is None and model.shape[0] not in (1, 3):
            raise InputError(
                f"{images}: images of {model.shape[0]} channels cannot be written; leave --save-images out"
            )
    evaluator, source = prepare(model, features, None if reference is None else str(reference), batch_size, samples)
    names = named(metric)
    found = check_source(source, evaluator, names, progress)
    with workers or nullcontext() as elsewhere:
        evaluator = replace(evaluator, elsewhere=elsewhere)
        found = found or find_reference(source, evaluator, progress)
        progress.phase("evaluate", evaluations * samples)
        [row] = confirm(evaluator, found, {name: plan}, names, samples, seed, progress.tick)
    if images is not None and not row.problem:
        progress.phase("images", evaluations * samples)
        noise = derive_seed(seed, "confirm")
        sample_blocks(partial(save_each, Path(images)), model, plan, samples, noise, batch_size, progress.tick)
    return row
