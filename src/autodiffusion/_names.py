"""Names become objects: a name is a file in a room, ``package.module:attribute`` is a user's own.

Adding a solver, a metric, a strategy, a feature network or a model family is adding one file to its room. The file's
name is the name on the command line (``_pp`` stands for ``++``), and it assigns what it offers to the
room's noun: ``solvers/ddim.py`` ends in ``solver = DDIM``. Files that begin with an underscore are helpers.

A class whose attribute ``colon`` names one of its options takes that option after its name: ``optuna:GPSampler`` is
the strategy ``optuna`` with ``sampler=GPSampler``.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from autodiffusion._errors import InputError, nearest

NOUNS = {
    "solvers": "solver",
    "metrics": "metric",
    "strategies": "strategy",
    "features": "extractor",
    "models": "model",
    "models.diffusers": "model",
}
"""Each room and the attribute that its files define."""

BASES = {"solvers": "Solver", "metrics": "Metric", "strategies": "Strategy"}
"""Rooms whose objects are classes, and what those derive from."""


def known(room: str) -> list[str]:
    """The names that a room's files define, sorted."""
    return list(_files(room))


@cache
def _files(room: str) -> tuple[str, ...]:
    package = importlib.import_module(f"autodiffusion.{room}")
    files = (module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)
    return tuple(sorted(name.replace("_pp", "++") for name in files if not name.startswith("_")))


def modules(room: str) -> dict[str, ModuleType]:
    """The files of a room, imported, by their names."""
    return {name: _module(room, name) for name in known(room)}


def _module(room: str, name: str) -> ModuleType:
    return importlib.import_module(f"autodiffusion.{room}.{name.replace('++', '_pp')}")


def resolve(room: str, name: str) -> Any:
    """The object that ``name`` stands for in ``room``.

    Raises:
        InputError: no such file, module or attribute, the module of the user's own failed to import, or what it offers
            is of another kind.
    """
    noun = NOUNS[room]
    if ":" in name:
        made = own(name, noun)
        if room in BASES:
            base = getattr(importlib.import_module(f"autodiffusion.{room}"), BASES[room])
            if not (isinstance(made, type) and issubclass(made, base)):
                raise InputError(
                    f"{noun} '{name}': is not a class derived from autodiffusion.{room}.{base.__name__}; derive it"
                )
        return made
    if name not in known(room):
        raise InputError(f"{noun} '{name}' is unknown {nearest(name, known(room))}, or give package.module:attribute")
    return getattr(_module(room, name), noun)


def own(name: str, noun: str) -> Any:
    """The attribute that ``package.module:attribute`` names."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{noun} '{name}': is not package.module:attribute")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        top = module_name.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        remedy = f"; run the command where {top} lies, or put that folder on PYTHONPATH" if missing else ""
        raise InputError(f"{noun} '{name}': importing {module_name} failed ({reason}){remedy}") from error
    if not hasattr(module, attribute):
        raise InputError(f"{noun} '{name}': module {module_name} has no attribute '{attribute}'")
    return getattr(module, attribute)


def with_options(room: str, name: str, options: Mapping[str, Any], *required: Any) -> Any:
    """Builds what ``name`` stands for from its required arguments and ``options``, which are checked by name and type.

    The further parameters that have a default are the options; the type of the default is the type of the option.

    Raises:
        InputError: an unknown name or option, or an option of another type.
    """
    cls, options = _chosen(room, name, options, len(required))
    return cls(*required, **options)


def check_named(room: str, name: str, options: Mapping[str, Any], required: int) -> None:
    """Raises :class:`InputError` for a name or options that :func:`with_options` would refuse.

    Args:
        required: how many arguments it would be given.
    """
    _chosen(room, name, options, required)


def _chosen(room: str, name: str, options: Mapping[str, Any], required: int) -> tuple[Any, Mapping[str, Any]]:
    """What ``name`` stands for and its options, checked by name and type."""
    what = f"{NOUNS[room]} {name}"
    file, _, word = name.partition(":")
    option = getattr(resolve(room, file), "colon", None) if word and file in known(room) else None
    if option is not None:
        if option in options:
            raise InputError(f"{what}: option {option} = {options[option]!r} is given a second time; leave it out")
        name, options = file, {**options, option: word}
    cls = resolve(room, name)
    parameters = list(inspect.signature(cls).parameters.values())[required:]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    check_options(what, defaults, options)
    return cls, options


def check_options(what: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises :class:`InputError` unless each option is among the defaults by name, and of the default's type."""
    for key, value in options.items():
        if key not in defaults:
            raise InputError(f"{what}: option '{key}' is unknown {nearest(key, defaults)}")
        wanted = type(defaults[key])
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits or (wanted is float and not math.isfinite(value)):
            raise InputError(f"{what}: option {key} = {value!r} is not a {wanted.__name__}")
