"""Whose turn it is on a network: which layers its next call leaves out, where several pipelines may share it.

Its class is changed for all of them, and the scheduler that waits for an answer says what is left out. A class and no
hook, because torch.compile takes hooks into its graph.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, lru_cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakMethod

import torch
from torch import Tensor, nn

Asking: TypeAlias = Callable[[Tensor | float | None], AbstractContextManager[None]]
"""Makes the context for a call of the network at this time, in which layers are left out; a method."""

PLAIN = "_autodiffusion_plain"
"""Where a class that was made here has the network's own."""

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


def reaches(component: Any, network: Any) -> bool:
    """Whether a call of a pipeline's ``component`` is one of ``network``: it is that, or was compiled of it since."""
    return component is network or getattr(component, "_orig_mod", None) is network


@cache
def _switching(cls: Any) -> type[nn.Module]:
    """The class derived from ``cls`` whose calls leave out what the plan says; one for each, for nothing ends it.

    A copy follows the plan of a copied pipeline; what is pickled is the network alone.
    """

    def call(network: Any, *args: Any, **kwargs: Any) -> Any:
        turn = _turns.get(network)
        asking = None if turn is None else turn()
        if asking is None:
            return cls.__call__(network, *args, **kwargs)
        with asking(_time(network, args, kwargs)):
            return cls.__call__(network, *args, **kwargs)

    body = {"__call__": call, "__reduce_ex__": _pickled, "__deepcopy__": _copied, PLAIN: cls}
    return type(cls.__name__, (cls,), body | {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _pickled(network: Any, protocol: Any) -> Any:
    with _plain(network):
        return network.__reduce_ex__(1)  # later ones want the class that the object has


def _copied(network: Any, memo: dict[int, Any]) -> Any:
    with _plain(network):
        made = copy.deepcopy(network, memo)
    made.__class__, _users[made] = type(network), _users.get(network, 1)
    return made


@contextmanager
def _plain(network: Any) -> Iterator[None]:
    """Gives a network its own class for a moment."""
    switched = type(network)
    network.__class__ = getattr(switched, PLAIN)
    try:
        yield
    finally:
        network.__class__ = switched


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
    cls: Any = type(network)
    if not hasattr(cls, PLAIN):
        network.__class__ = _switching(cls)
    _users[network] = _users.get(network, 0) + 1


def disconnect(network: nn.Module) -> None:
    """Undoes one :func:`connect`."""
    _users[network] = _users.get(network, 1) - 1
    if not _users[network]:
        del _users[network]
        network.__class__ = getattr(type(network), PLAIN)
