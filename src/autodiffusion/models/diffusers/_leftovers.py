"""What training programs leave in a checkpoint beside its weights, read without running any code of theirs."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

LEFT = (
    "pytorch_lightning.",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.",
)
"""How the names of such objects begin: callbacks of PyTorch Lightning, with which Stable Diffusion was trained, and the
numbers of numpy that they keep."""


class Leftover:
    """Stands in for such an object: is made of anything, and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@contextmanager
def leftovers(file: Path) -> Iterator[None]:
    """Within it ``torch.load(weights_only=True)`` takes :data:`LEFT` objects of this file for :class:`Leftover`.

    The names are read, never imported or called. All other objects than tensors are refused as ever.
    """
    names: list[str] = []
    if zipfile.is_zipfile(file) and hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # torch 2.6
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    found: list[Any] = [(Leftover, name) for name in names if name.startswith(LEFT)]
    with torch.serialization.safe_globals(found) if found else nullcontext():
        yield
