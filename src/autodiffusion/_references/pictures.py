"""Real images from folders and from ``.npz`` files, of one size and 8 bits a channel."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._npz import MAX_BYTES, Arrays
from autodiffusion.features import Extractor

KEYS = ("images", "arr_0")
"""What the array of images may be called."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


class Pictures:
    """Real images in a file beside the statistics of more of them: read, and shown to the network, when asked for."""

    def __init__(self, arrays: Arrays, extractor: Extractor) -> None:
        self._arrays, self._extractor = arrays, extractor

    @cached_property
    def images(self) -> Tensor:
        """uint8 ``[N, C, H, W]``.

        Raises:
            InputError: the array does not hold images, or cannot be read.
        """
        return pixels(self._arrays)

    @cached_property
    def vectors(self) -> Tensor:
        """Their features, float32 ``[N, D]``."""
        return self._extractor(self.images).vectors


def pixels(arrays: Arrays) -> Tensor:
    """The uint8 images of an ``.npz`` file, ``[N, C, H, W]``."""
    key = next((key for key in KEYS if key in arrays.shapes), None)
    if key is None:
        found = ", ".join(sorted(arrays.shapes)) or "nothing"
        raise InputError(f"{arrays.path}: holds {found}; it must have images, arr_0, features, or mu and sigma")
    shape, dtype = arrays.shapes[key], arrays.types[key]
    if dtype != np.uint8 or len(shape) != 4:
        raise InputError(f"{arrays.path}: array '{key}' is {dtype} {list(shape)}; images must be uint8 [N, H, W, C]")
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        raise InputError(
            f"{arrays.path}: array '{key}' {list(shape)} does not show which axis holds 1 or 3 channels; "
            "give [N, H, W, C] or [N, C, H, W]"
        )
    pixels = torch.from_numpy(arrays.read(key))
    return pixels if first else pixels.permute(0, 3, 1, 2).contiguous()


def folder(path: Path) -> Tensor:
    """The images below a folder, in the order of their paths, with the channels and size of the first."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise InputError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)}); give a folder that does")
    with _opened(files[0]) as image:
        width, height = image.size
        mode = "L" if image.mode in GREY_MODES else "RGB"
    channels = len(mode)
    if len(files) * channels * height * width > MAX_BYTES:
        raise InputError(
            f"{path}: its {len(files)} images take more than {MAX_BYTES >> 30} GiB; give fewer, or their statistics"
        )
    pixels = np.empty((len(files), height, width, channels), np.uint8)
    for i, file in enumerate(files):
        with _opened(file) as image:
            if image.size != (width, height):
                raise InputError(
                    f"{file}: is {image.size[0]}x{image.size[1]} where {files[0].name} is {width}x{height}; "
                    "resize the images to one size"
                )
            try:
                pixels[i] = np.asarray(image.convert(mode)).reshape(height, width, channels)
            except Exception as error:  # a damaged image fails in its format's own way
                raise _unreadable(file, error) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _opened(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
    except Exception as error:  # as above
        raise _unreadable(file, error) from error
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise InputError(f"{file}: has pixels of mode {image.mode}; convert the images to 8 bits a channel")
    return image


def _unreadable(file: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{file}: is not a readable image ({reason}); remove or replace it")
