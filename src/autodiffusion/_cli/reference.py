"""``autodiffusion reference SOURCE --out FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autodiffusion._cli._options import (
    Batch,
    Captions,
    Checkpoint,
    Classes,
    Classifier,
    Device,
    Dtype,
    Features,
    Guidance,
    ModelOption,
    NullClass,
    Schedule,
    Threads,
    check_writable,
    load_model,
)
from autodiffusion._errors import InputError


def reference_command(
    source: Annotated[
        str, typer.Argument(help="folder of images, .npz of images, features or statistics, or teacher:100")
    ],
    out: Annotated[Path, typer.Option(help="file to write, .npz")],
    model: Annotated[str | None, typer.Option(help="whose feature network is used; needed for teacher:100")] = None,
    features: Features = None,
    guidance_scale: Guidance = None,
    checkpoint: Checkpoint = None,
    classifier: Classifier = None,
    captions: Captions = None,
    model_option: ModelOption = None,
    classes: Classes = None,
    null_class: NullClass = None,
    schedule: Schedule = None,
    batch_size: Batch = 128,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
) -> None:
    """Computes the features and statistics that samples are compared with, once, into one file."""
    from autodiffusion._references.reference import load as load_reference
    from autodiffusion._search.inputs import find_reference, prepare, reading
    from autodiffusion._views.progress import Progress
    from autodiffusion.features._base import load as load_features

    if out.suffix != ".npz":
        raise InputError(f"{out}: must end in .npz")
    check_writable(out)
    if model is None:
        if source.startswith("teacher:"):
            raise InputError(f"reference '{source}' needs --model, whose samples it is made of")
        with Progress() as progress:
            found = load_reference(source, load_features(features or "inception", device), begin=reading(progress))
    else:
        loaded = load_model(locals())
        evaluator, _ = prepare(loaded, features, source, batch_size)
        with Progress() as progress:
            found = find_reference(source, evaluator, progress)
    found = found.complete()
    found.save(out)
    kept = "statistics only" if found.vectors is None else f"features of {len(found.vectors):,} images"
    print(f"{out}: {len(found.mu)} dimensions, {kept}")
