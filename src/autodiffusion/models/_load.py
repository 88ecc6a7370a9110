"""From the name of a model to a Model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autodiffusion._errors import InputError, nearest, short
from autodiffusion._names import known, own, resolve
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.models._model import Model
from autodiffusion.models.diffusers._folder import network_of

SCHEDULES: dict[str, Callable[[], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "cosine": NoiseSchedule.cosine,
    "flow": NoiseSchedule.flow,
}
THREADS = 64
"""That any machine may be asked for; one with many cores for four times as many as it has."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    name: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    guidance_scale: float | None = None,
    classes: int | None = None,
    null_class: int | None = None,
    schedule: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    classifier: str | os.PathLike[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    captions: str | os.PathLike[str] | None = None,
) -> Model:
    """The model called ``name``: of a family, the folder or hub name of a diffusers UNet or of a pipeline of Stable
    Diffusion or Flux, a single file of Stable Diffusion 1, 2 or XL, or ``package.module:factory``.

    A family may have presets: ``adm/imagenet64`` is one of ``adm``.

    Args:
        device: where it runs, e.g. ``cuda``.
        dtype: of the network: ``float32``, ``float16`` or ``bfloat16``.
        guidance_scale: see :class:`Model`; this and the next two replace what an own factory set.
        classes: see :class:`Model`.
        null_class: see :class:`Model`.
        schedule: ``linear``, ``scaled_linear``, ``cosine`` or ``flow`` (1,000 steps), for a UNet without a scheduler
            beside it.
        checkpoint: file of weights, for families that are held in such.
        classifier: file of weights, for guidance by a classifier.
        model_options: the family's own options, by name; of Stable Diffusion 3 and Flux ``height`` and ``width``.
        captions: file of what a text-to-image model is asked to show.

    Raises:
        InputError: there is no such model, its files cannot be read, or the options do not fit it.
    """
    name = os.fspath(name)
    if schedule is not None and schedule not in SCHEDULES:
        raise InputError(f"schedule '{schedule}' is unknown {nearest(schedule, SCHEDULES)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype '{dtype}' is unknown {nearest(str(dtype).removeprefix('torch.'), DTYPES)}")
    try:
        torch.zeros(1, device=device).cpu()  # there and back: the meta device has no numbers to give back
    except (RuntimeError, AssertionError) as error:
        reason = short(str(error).splitlines()[0].partition(". ")[0])
        raise InputError(f"device '{device}' cannot be used ({reason}); cpu always can") from None
    made: Callable[..., Model]
    given: dict[str, Any] = {"device": device, "dtype": DTYPES[dtype]}
    family, slash, preset = name.partition("/")
    if ":" in name:
        made = partial(_own, name)
    elif family in known("models") and (not slash or _takes(resolve("models", family), "preset")):
        made = resolve("models", family)
        given |= {"preset": preset} if slash else {}
    else:
        made = _of_diffusers(name)
    options = {
        "guidance_scale": guidance_scale,
        "classes": classes,
        "null_class": null_class,
        "schedule": SCHEDULES[schedule]() if schedule else None,
        "checkpoint": checkpoint,
        "classifier": classifier,
        "model_options": model_options or None,
        "captions": captions,
    }
    for key, value in options.items():
        if value is not None:
            if not _takes(made, key):
                option = "--" + key.removesuffix("s" if key == "model_options" else "").replace("_", "-")
                raise InputError(f"model '{name}' takes no {option}; leave it out")
            given[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return made(**given)


def use_threads(count: int) -> None:
    """Lets torch use ``count`` threads of the CPU; 0 leaves it as it is.

    Raises:
        InputError: so many that a process may end of it.
    """
    most = max(THREADS, 4 * (os.cpu_count() or 1))
    if count > most:
        raise InputError(f"threads = {count} is more than {most}; give at most that, or 0 to leave it to torch")
    if count:
        torch.set_num_threads(count)


def _takes(made: Callable[..., Model], option: str) -> bool:
    return option in inspect.signature(made).parameters


def _of_diffusers(name: str) -> Callable[..., Model]:
    """What loads this file, folder or hub name: the class of its network says it.

    Raises:
        InputError: there is no network, or one of a class that no file in the room is for.
    """
    from autodiffusion.models import diffusers

    if Path(name).is_file():  # which has no configuration that could say it
        return partial(resolve(diffusers.ROOM, "stable_diffusion"), name)
    found = network_of(name)
    kind, files = str(found[0].get("_class_name")), diffusers.by_network()
    if kind not in files:
        raise InputError(f"model '{name}': its network is a {kind}; this version samples {', '.join(sorted(files))}")
    made = resolve(diffusers.ROOM, files[kind])
    return partial(made, name, found=found) if _takes(made, "found") else partial(made, name)


def _own(
    name: str,
    *,
    device: str,
    dtype: torch.dtype,
    guidance_scale: float | None = None,
    classes: int | None = None,
    null_class: int | None = None,
) -> Model:
    made: object = own(name, "model")
    given: dict[str, Any] = {"guidance_scale": guidance_scale, "classes": classes, "null_class": null_class}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        model = made() if callable(made) else made
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"model '{name}': calling it failed ({reason})") from error
    if not isinstance(model, Model):
        raise InputError(f"model '{name}': gave a {type(model).__name__}; it must return an autodiffusion.Model")
    if isinstance(model.network, torch.nn.Module):
        model.network.to(device, dtype).eval()
        given |= {"device": device, "dtype": dtype}
    elif (device, dtype) not in {("cpu", torch.float32), (model.device, model.dtype)}:
        raise InputError(
            f"model '{name}': its network is a function, which --device and --dtype cannot move; move what it calls "
            f"and give Model(..., device=..., dtype=...)"
        )
    model = replace(model, name=name if model.name == "own" else model.name, **given)
    if isinstance(model.classifier, torch.nn.Module):
        model.classifier.to(model.device, model.dtype).eval()
    if isinstance(model.decoder, torch.nn.Module):  # which gets float32
        model.decoder.to(model.device).eval()
    return model
