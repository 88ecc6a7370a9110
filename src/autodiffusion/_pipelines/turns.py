"""Whose turn it is on a network: which layers its next call leaves out, where several pipelines may share it.

Its class is changed for all of them, and the scheduler that waits for an answer says what is left out. A class and no
hook, because torch.compile takes hooks into its graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import nn

Asking: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Makes the context for a call of the network, in which layers are left out."""

_turns: WeakKeyDictionary[nn.Module, Asking] = WeakKeyDictionary()
"""Of the scheduler that waits for an answer of this network."""

_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many pipelines follow plans with layers on this network."""


def take(network: nn.Module, asking: Asking) -> None:
    """The next calls of ``network`` are made in the contexts of ``asking``."""
    _turns[network] = asking


def end(network: nn.Module, asking: Asking) -> None:
    """They no longer are, unless another has taken the turn meanwhile."""
    if _turns.get(network) == asking:
        del _turns[network]


def _switching(cls: type[nn.Module]) -> type[nn.Module]:
    """The class derived from ``cls`` whose calls leave out what the plan says."""

    def call(network: Any, *args: Any, **kwargs: Any) -> Any:
        asking = _turns.get(network)
        if asking is None:
            return cls.__call__(network, *args, **kwargs)
        with asking():
            return cls.__call__(network, *args, **kwargs)

    body = {"__call__": call, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), body)


def connect(network: nn.Module) -> None:
    """Lets plans leave out layers of ``network``, until as many calls of :func:`disconnect`."""
    if network not in _users:
        network.__class__ = _switching(type(network))
    _users[network] = _users.get(network, 0) + 1


def disconnect(network: nn.Module) -> None:
    """Undoes one :func:`connect`."""
    _users[network] -= 1
    if not _users[network]:
        del _users[network]
        network.__class__ = type(network).__bases__[0]
