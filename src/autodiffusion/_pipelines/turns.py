"""Whose turn it is on a network: which layers its next call leaves out, where several pipelines may share it.

Its class is changed for all of them, and the scheduler that waits for an answer says what is left out. A class and no
hook, because torch.compile takes hooks into its graph.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakMethod

import torch
from torch import Tensor, nn

Asking: TypeAlias = Callable[[Tensor | float | None], AbstractContextManager[None]]
"""Makes the context for a call of the network at this time, in which layers are left out; a method."""

_turns: WeakKeyDictionary[nn.Module, WeakMethod[Asking]] = WeakKeyDictionary()
"""Of the scheduler that waits for an answer of this network. It holds the network: held itself, neither would go."""

_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many pipelines follow plans with layers on this network."""


def take(network: nn.Module, asking: Asking) -> None:
    """The next calls of ``network`` are made in the contexts of ``asking``."""
    _turns[network] = WeakMethod(asking)


def end(network: nn.Module, asking: Asking) -> None:
    """They no longer are, unless another has taken the turn meanwhile."""
    if _turns.get(network) == WeakMethod(asking):
        del _turns[network]


def _switching(cls: type[nn.Module]) -> type[nn.Module]:
    """The class derived from ``cls`` whose calls leave out what the plan says."""

    def call(network: Any, *args: Any, **kwargs: Any) -> Any:
        turn = _turns.get(network)
        asking = None if turn is None else turn()
        if asking is None:
            return cls.__call__(network, *args, **kwargs)
        with asking(_time(network, args, kwargs)):
            return cls.__call__(network, *args, **kwargs)

    body = {"__call__": call, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), body)


def _time(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The time of a call, which diffusers calls ``timestep``; ``None`` where the network does not."""
    if "timestep" in kwargs:
        return kwargs["timestep"]
    own: Any = getattr(network, "_orig_mod", network)  # of one that torch.compile wraps
    place = _place(type(own).forward)
    return args[place] if place is not None and place < len(args) else None


@lru_cache(maxsize=64)
def _place(forward: Callable[..., Any]) -> int | None:
    """At which place among its arguments a class's ``forward`` takes the time."""
    names = list(inspect.signature(forward).parameters)[1:]
    return names.index("timestep") if "timestep" in names else None


def same_time(at: Tensor | float, expected: float) -> bool:
    """Whether a call at time ``at``, ``[B]`` or one number, is at the one expected, to the rounding of its dtype."""
    given = torch.as_tensor(at).flatten()[0]
    rounding = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
    return math.isclose(float(given), expected, rel_tol=2 * rounding)


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
