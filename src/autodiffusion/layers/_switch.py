"""The switch: blocks left out for as long as a context lasts.

A block is left out by giving it, in place, a class derived from its own that does the bypass. Its weights, hooks and
attributes stay where they are, so nothing can be left behind. torch.compile guards on the class of every module that it
goes through: each set of blocks gets a graph of its own, and a set that was seen before finds its graph again.

A ``forward`` set on the block would not reach past a block that is compiled by itself, or whose ``forward`` another
library has set; diffusers.hooks leaves its registry and a ``forward`` of the block's own behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class LeftOut:
    """Marks the classes of blocks that are left out just now."""


_classes: dict[tuple[type[nn.Module], Callable[..., Any]], type[nn.Module]] = {}


def _left_out(cls: type[nn.Module], bypass: Callable[..., Any]) -> type[nn.Module]:
    """The class derived from ``cls`` that does ``bypass``; always the same one, so that compiled graphs find it."""
    if (cls, bypass) not in _classes:
        # the call, so that hooks and a compiled call of the block's own do not come first; forward as well, because
        # torch.compile(block) has taken hold of the call that was there
        body = {"__call__": bypass, "forward": bypass, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _classes[cls, bypass] = type(cls.__name__, (cls, LeftOut), body)
    return _classes[cls, bypass]


@contextmanager
def left_out(blocks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Leaves these blocks out, each by its bypass, until the end. One that is left out already is left alone."""
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module, bypass in blocks:
            if not isinstance(module, LeftOut):
                changed.append((module, type(module)))
                module.__class__ = _left_out(type(module), bypass)
        yield
    finally:
        for module, cls in changed:
            module.__class__ = cls


@contextmanager
def put_back(network: nn.Module) -> Iterator[None]:
    """Undoes what contexts around this one leave out of ``network``, until the end."""
    changed = [(module, type(module)) for module in network.modules() if isinstance(module, LeftOut)]
    for module, cls in changed:
        module.__class__ = cls.__bases__[0]
    try:
        yield
    finally:
        for module, cls in changed:
            module.__class__ = cls
