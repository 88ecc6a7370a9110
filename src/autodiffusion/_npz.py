"""Arrays from files that somebody else made: types and sizes are looked at before anything is read."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from autodiffusion._errors import InputError, short

MAX_BYTES = 8 * 2**30
"""The largest array that is read."""

SUSPECT_BYTES, RATIO = 64 * 2**20, 200
"""An array of more bytes than that must not be so many times as large as it is in the file."""


class Arrays:
    """The arrays of an ``.npz`` file: types and shapes first, values only on request, and never an object.

    Attributes:
        path: the file.
        shapes: of each array, by its key.
        types: likewise.

    Raises:
        InputError: the file is damaged or holds objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, np.dtype[Any]] = {}
        try:
            with zipfile.ZipFile(path) as file:
                for member in file.infolist():
                    with file.open(member) as stream:
                        self._note(member, stream)
        except InputError:
            raise
        except Exception as error:  # a damaged file fails in zipfile, zlib or numpy in a dozen ways
            raise self._damaged(error) from error

    def _note(self, member: zipfile.ZipInfo, stream: IO[bytes]) -> None:
        key = member.filename.removesuffix(".npy")
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise InputError(f"{self.path}: array '{key}' has named fields; give plain arrays")
        if version == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(stream)
        else:
            shape, _, dtype = npy.read_array_header_2_0(stream)
        if dtype.hasobject:
            raise InputError(
                f"{self.path}: array '{key}' holds Python objects, which are never loaded; give plain arrays"
            )
        if member.file_size > SUSPECT_BYTES and member.file_size > RATIO * member.compress_size:
            raise InputError(
                f"{self.path}: array '{key}' would be {member.file_size >> 20} MiB, out of "
                f"{member.compress_size >> 10} KiB; no real array is, write it uncompressed if this one is"
            )
        if math.prod(shape) * dtype.itemsize + stream.tell() != member.file_size:
            raise ValueError(f"array '{key}' is not as long as it says")
        self.shapes[key], self.types[key] = shape, dtype

    def _damaged(self, error: Exception) -> InputError:
        reason = short(str(error)) or type(error).__name__
        return InputError(f"{self.path}: is not a complete .npz file ({reason}); write or download it again")

    def read(self, key: str) -> NDArray[Any]:
        """The array ``key``, if it is not too large.

        Raises:
            InputError: no such array, larger than 8 GiB, or damaged.
        """
        if key not in self.shapes:
            raise InputError(f"{self.path}: has no array '{key}' (it has: {', '.join(sorted(self.shapes)) or 'none'})")
        if math.prod(self.shapes[key]) * self.types[key].itemsize > MAX_BYTES:
            raise InputError(
                f"{self.path}: array '{key}' of shape {list(self.shapes[key])} takes more than {MAX_BYTES >> 30} GiB; "
                "give fewer images, or their statistics mu and sigma"
            )
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return np.asarray(file[key])
        except Exception as error:  # as above: a checksum, a compression fault, an end too early
            raise self._damaged(error) from error

    def text(self, key: str) -> str:
        """The text ``key``.

        Raises:
            InputError: as :meth:`read`, and for anything but one short text.
        """
        if key in self.shapes and (self.types[key].kind != "U" or self.shapes[key] or self.types[key].itemsize > 4000):
            raise InputError(f"{self.path}: '{key}' is not a short text; make the file again")
        return str(self.read(key))

    def numbers(self, key: str, dimensions: int, dtype: type[np.floating[Any]] = np.float64) -> NDArray[Any]:
        """The real array ``key`` with this number of dimensions, as ``dtype``.

        Raises:
            InputError: as :meth:`read`, and for other types or numbers of dimensions.
        """
        if key in self.shapes and (self.types[key].kind not in "fiu" or len(self.shapes[key]) != dimensions):
            raise InputError(
                f"{self.path}: array '{key}' is {self.types[key]} {list(self.shapes[key])}; "
                f"it must hold numbers in {dimensions} dimension{'s'[: dimensions - 1]}"
            )
        return self.read(key).astype(dtype)
