"""Layer, and the rules by which a network's blocks are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from autodiffusion._errors import InputError
from autodiffusion._names import modules


@dataclass(frozen=True)
class Layer:
    """A part of a network that a plan may leave out.

    Attributes:
        number: place in execution order, input to output, from 0.
        name: the module's path in the network.
        kind: what it is, e.g. ``resnet`` or ``attention``.
        macs: multiply-accumulates that leaving it out saves for one sample. What its bypass still costs, such as a
            shortcut's convolution, is not among them.
    """

    number: int
    name: str
    kind: str
    macs: int


def _always(module: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """How blocks of one class are left out.

    Attributes:
        cls: the class as ``package.Class``, e.g. ``diffusers.ResnetBlock2D``, wherever in the package it is, so that
            the package need not be imported. Classes derived from it count as well.
        kind: what :class:`Layer` says it is.
        bypass: ``(module, *args, **kwargs) -> output``: what the block passes on when it is left out. It is called as
            the block would be and gives what the block would with its residual branches at zero: the same number of
            tensors of the same shapes.
        fits: tells of a block of the class whether it can be left out.
    """

    cls: str
    kind: str
    bypass: Callable[..., Any]
    fits: Callable[[nn.Module], bool] = _always


_registered: dict[type[nn.Module], Rule] = {}


def register(cls: type[nn.Module], kind: str, bypass: Callable[..., Any]) -> None:
    """Makes blocks of a class of your own known, before the layers of a model that has them are first asked for.

    Args:
        cls: the class; if it was registered before, this replaces it, and it comes before the package's own rules.
        kind: what lists of layers call it, e.g. ``resnet``.
        bypass: ``(module, *args, **kwargs) -> output``, see :class:`Rule`.

    Raises:
        InputError: ``cls`` is no class of modules, ``kind`` is no text or ``bypass`` cannot be called.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InputError(f"layer rule: {cls!r} is not a class of torch modules; give the class of the block")
    if not isinstance(kind, str) or not kind:
        raise InputError(f"layer rule for {cls.__name__}: kind {kind!r} is not a name; give one such as resnet")
    if not callable(bypass):
        raise InputError(
            f"layer rule for {cls.__name__}: the bypass {bypass!r} is not a function of the block's inputs"
        )
    _registered[cls] = Rule(_name(cls), kind, bypass)


def _name(cls: type) -> str:
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"


@cache
def _built_in() -> tuple[Rule, ...]:
    return tuple(rule for file in modules("layers").values() for rule in file.rules)


def rule_for(module: nn.Module) -> Rule | None:
    """The rule by which ``module`` can be left out: that of its nearest registered class, or the package's own."""
    bases = type(module).__mro__
    registered = next((_registered[base] for base in bases if base in _registered), None)
    if registered is not None:
        return registered
    names = {_name(base) for base in bases}
    return next((rule for rule in _built_in() if rule.cls in names and rule.fits(module)), None)
