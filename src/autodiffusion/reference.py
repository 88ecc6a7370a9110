"""Reference: what generated images are compared with, from image folders, arrays, features or published statistics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from autodiffusion.errors import InputError
from autodiffusion.features import Extractor, Features
from autodiffusion.npz import MAX_BYTES, Arrays

Floats = NDArray[np.float64]

FORMAT = "autodiffusion.reference/1"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


def symmetric_root(sigma: Floats) -> Floats:
    """The symmetric square root of a covariance ``[D, D]``; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


@dataclass(frozen=True, eq=False)
class Reference:
    """What metrics compare with.

    Attributes:
        mu: mean of the features, float64 ``[D]``.
        sigma: their covariance with N - 1, float64 ``[D, D]``.
        vectors: features of real images, float32 ``[N, D]``; published statistics have none.
        images: real images, uint8 ``[N, C, H, W]``.
        extractor: the name of the feature network that made it, where known.
        name: how messages and reports call it.
    """

    mu: Floats
    sigma: Floats
    vectors: Tensor | None = None
    images: Tensor | None = None
    extractor: str | None = None
    name: str = "reference"

    def __post_init__(self) -> None:
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)):
            raise InputError(
                f"{self.name}: mu {list(self.mu.shape)} and sigma {list(self.sigma.shape)} are not [D] and [D, D]"
            )
        parts = [("mu", torch.from_numpy(self.mu)), ("sigma", torch.from_numpy(self.sigma)), ("vectors", self.vectors)]
        for what, values in parts:
            if values is not None and not bool(torch.isfinite(values).all()):
                raise InputError(f"{self.name}: {what} holds NaN or infinite values; make the reference again")
        if self.vectors is not None and self.vectors.shape[1:] != (len(self.mu),):
            raise InputError(f"{self.name}: vectors {list(self.vectors.shape)} are not [N, {len(self.mu)}] as mu says")

    @cached_property
    def root(self) -> Floats:
        """The symmetric square root of ``sigma``: computed once, used by every Frechet distance."""
        return symmetric_root(self.sigma)

    def need_vectors(self, metric: str, minimum: int = 2) -> Tensor:
        """The features of single images, for a metric that statistics do not suffice for.

        Raises:
            InputError: the reference has fewer than ``minimum``, or none.
        """
        have = 0 if self.vectors is None else len(self.vectors)
        if self.vectors is None or have < minimum:
            raise InputError(
                f"reference {self.name}: the {metric} metric needs {minimum} or more vectors of real images, "
                f"it has {have}; give a folder of images or an .npz of features"
            )
        return self.vectors

    @staticmethod
    def of(
        features: Features, extractor: str | None, images: Tensor | None = None, name: str = "reference"
    ) -> Reference:
        """The reference of real images with these features.

        Raises:
            InputError: fewer than two images, or features that are not finite.
        """
        if len(features) < 2:
            raise InputError(f"{name}: {len(features)} images have no covariance; give 2 or more")
        vectors = features.vectors.double().numpy()
        mean = vectors.mean(0)
        centred = vectors - mean
        sigma = centred.T @ centred / (len(vectors) - 1)
        return Reference(mean, sigma, features.vectors, images, extractor, name)

    def save(self, path: Path | str, *, half: bool = False) -> None:
        """Writes the reference to ``path`` (``.npz``) in one piece: a reader never sees half of it.

        Args:
            half: store the vectors as float16, which :func:`load` turns back to float32.
        """
        path = Path(path)
        arrays: dict[str, Any] = {"format": FORMAT, "name": self.name, "mu": self.mu, "sigma": self.sigma}
        if self.extractor is not None:
            arrays["extractor"] = self.extractor
        if self.vectors is not None:
            arrays["vectors"] = (self.vectors.half() if half else self.vectors).numpy()
        if self.images is not None:
            arrays["images"] = self.images.numpy()
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(partial, path)


def load(source: Path | str, extractor: Extractor, shape: Sequence[int] | None = None) -> Reference:
    """The reference that ``source`` holds, for features of ``extractor``.

    Args:
        source: a folder of images (png, jpg, jpeg, webp, bmp; sub-folders too; all of one size), or an ``.npz`` file
            with uint8 images (``arr_0`` as guided-diffusion writes them, ``[N, H, W, C]``, or ``images``; channels may
            come first where that is clear), with ``features`` ``[N, D]``, with the statistics ``mu`` and ``sigma`` (as
            of pytorch-fid, clean-fid and guided-diffusion, whose images are then left alone), or what
            :meth:`Reference.save` wrote.
        extractor: computes the features of images. Statistics and features must have been made with the same network.
        shape: ``[C, H, W]`` of the generated images, to find the number of features of a network that does not tell.

    Raises:
        InputError: the source cannot be read, holds none of these, is damaged or larger than 8 GiB, or was made with
            another feature network.
    """
    path = Path(source)
    if path.is_dir():
        images = _folder(path)
        return Reference.of(extractor(images), extractor.name, images, path.name)
    if not path.is_file():
        raise InputError(f"{path}: does not exist; give a folder of images or an .npz file")
    arrays = Arrays(path)
    if "format" in arrays.shapes:
        reference = _own(arrays)
        shape = shape if reference.images is None else reference.images.shape[1:]
    elif "mu" in arrays.shapes and "sigma" in arrays.shapes:
        reference = Reference(arrays.numbers("mu", 1), arrays.numbers("sigma", 2), name=path.stem)
    elif "features" in arrays.shapes:
        vectors = torch.from_numpy(arrays.numbers("features", 2, np.float32))
        reference = Reference.of(Features(vectors), None, name=path.stem)
    else:
        images = _pixels(arrays)
        reference = Reference.of(extractor(images), extractor.name, images, path.stem)
    if reference.extractor not in (None, extractor.name):
        raise InputError(
            f"{path}: was made with features '{reference.extractor}', not '{extractor.name}'; "
            f"choose features '{reference.extractor}' or make the reference again from images"
        )
    dimension = extractor.dimension(shape)
    if dimension not in (None, len(reference.mu)):
        raise InputError(
            f"{path}: has {len(reference.mu)} features an image and features '{extractor.name}' {dimension}; "
            "make the reference again from images"
        )
    return reference


def _own(arrays: Arrays) -> Reference:
    """What :meth:`Reference.save` wrote."""
    written = str(arrays.read("format"))
    if written != FORMAT:
        raise InputError(f"{arrays.path}: has format '{written}', not '{FORMAT}'; make the reference again")
    vectors = images = None
    if "vectors" in arrays.shapes:
        vectors = torch.from_numpy(arrays.numbers("vectors", 2, np.float32))
    if "images" in arrays.shapes:
        if arrays.types["images"] != np.uint8 or len(arrays.shapes["images"]) != 4:
            raise InputError(f"{arrays.path}: array 'images' is not uint8 [N, C, H, W]; make the reference again")
        images = torch.from_numpy(arrays.read("images"))
    reference = Reference(arrays.numbers("mu", 1), arrays.numbers("sigma", 2), vectors, images, None, arrays.path.stem)
    made_with = str(arrays.read("extractor")) if "extractor" in arrays.shapes else None
    return replace(reference, extractor=made_with, name=str(arrays.read("name")))


def _pixels(arrays: Arrays) -> Tensor:
    """The uint8 images of an ``.npz`` file, ``[N, C, H, W]``."""
    key = next((key for key in ("images", "arr_0") if key in arrays.shapes), None)
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


def _folder(path: Path) -> Tensor:
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
