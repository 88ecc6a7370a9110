"""Reference: what generated images are compared with, from image folders, arrays, features or published statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._npz import Arrays
from autodiffusion._references.pictures import KEYS, Pictures, folder, pixels
from autodiffusion.features import Extractor, Features

Floats = NDArray[np.float64]

FORMAT = "autodiffusion.reference/1"
MADE_WITH = "inception"
"""The features of guided-diffusion's reference batches."""


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
        spatial: mean and covariance of the spatial features, for ``sfid``, where the network has them.
        pictures: real images that lie beside published statistics, for metrics that need more than these.
    """

    mu: Floats
    sigma: Floats
    vectors: Tensor | None = None
    images: Tensor | None = None
    extractor: str | None = None
    name: str = "reference"
    spatial: Reference | None = None
    pictures: Pictures | None = None

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
        vectors = self.vectors
        if vectors is None and self.pictures is not None:
            vectors = self.pictures.vectors
        have = 0 if vectors is None else len(vectors)
        if vectors is None or have < minimum:
            raise InputError(
                f"reference {self.name}: the {metric} metric needs {minimum} or more vectors of real images, "
                f"it has {have}; give a folder of images or an .npz of features"
            )
        return vectors

    def need_images(self, metric: str) -> Tensor:
        """The real images, uint8 ``[N, C, H, W]``, for a metric that looks at them itself.

        Raises:
            InputError: the reference has none.
        """
        if self.images is not None:
            return self.images
        if self.pictures is None:
            raise InputError(
                f"reference {self.name}: the {metric} metric needs real images, and it has none; "
                "give a folder of images"
            )
        return self.pictures.images

    def need_spatial(self, metric: str) -> Reference:
        """Mean and covariance of the spatial features, as a reference.

        Raises:
            InputError: there are none.
        """
        if self.spatial is None:
            raise InputError(
                f"reference {self.name}: the {metric} metric needs spatial features (mu_s and sigma_s), and it has "
                "none; give a reference batch of guided-diffusion, or images with the inception features"
            )
        return self.spatial

    def complete(self) -> Reference:
        """With what lies beside published statistics read and shown to the network, to be saved with them."""
        if self.pictures is None:
            return self
        return replace(self, images=self.pictures.images, vectors=self.pictures.vectors, pictures=None)

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
        spatial = None
        if features.spatial is not None:
            spatial = Reference(*_statistics(features.spatial), extractor=extractor, name=f"{name} (spatial)")
        mu, sigma = _statistics(features.vectors)
        return Reference(mu, sigma, features.vectors, images, extractor, name, spatial)

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
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mu, "sigma_s": self.spatial.sigma}
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(partial, path)


Begin = Callable[[int], Callable[[int], None]]
"""Told how many images there are; gives what is told how many more are done."""


def _statistics(vectors: Tensor) -> tuple[Floats, Floats]:
    """Mean ``[D]`` and covariance ``[D, D]``, with N - 1, of ``[N, D]`` features."""
    values = vectors.double().numpy()
    mean = values.mean(0)
    centred = values - mean
    return mean, centred.T @ centred / (len(values) - 1)


def load(
    source: Path | str, extractor: Extractor, shape: Sequence[int] | None = None, begin: Begin | None = None
) -> Reference:
    """The reference that ``source`` holds, for features of ``extractor``.

    Args:
        source: a folder of images (png, jpg, jpeg, webp, bmp; sub-folders too; all of one size), or an ``.npz`` file
            with uint8 images (``arr_0`` as guided-diffusion writes them, ``[N, H, W, C]``, or ``images``; channels may
            come first where that is clear), with ``features`` ``[N, D]``, with the statistics ``mu`` and ``sigma`` (as
            of pytorch-fid, clean-fid and guided-diffusion), or what :meth:`Reference.save` wrote. Images beside
            statistics are read only when a metric needs them. A file with ``mu_s`` and ``sigma_s`` as well is a
            reference batch of guided-diffusion, and belongs to the ``inception`` features.
        extractor: computes the features of images. Statistics and features must have been made with the same network.
        shape: ``[C, H, W]`` of the generated images, to find the number of features of a network that does not tell.
        begin: told of how many images the features are computed; gives what is told of their progress.

    Raises:
        InputError: the source cannot be read, holds none of these, is damaged or larger than 8 GiB, or was made with
            another feature network.
    """
    path = Path(source)
    if os.path.isdir(path):  # pathlib's fails on names that are too long
        images = folder(path)
        return Reference.of(_features(images, extractor, begin), extractor.name, images, path.name)
    if not os.path.isfile(path):
        raise InputError(f"{path}: does not exist; give a folder of images or an .npz file")
    arrays = Arrays(path)
    if "format" in arrays.shapes:
        reference = _own(arrays)
        shape = shape if reference.images is None else reference.images.shape[1:]
    elif "mu" in arrays.shapes and "sigma" in arrays.shapes:
        reference = _published(arrays, extractor)
    elif "features" in arrays.shapes:
        vectors = torch.from_numpy(arrays.numbers("features", 2, np.float32))
        reference = Reference.of(Features(vectors), None, name=path.stem)
    else:
        images = pixels(arrays)
        reference = Reference.of(_features(images, extractor, begin), extractor.name, images, path.stem)
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


def _features(images: Tensor, extractor: Extractor, begin: Begin | None) -> Features:
    return extractor(images, begin(len(images)) if begin else None)


def _published(arrays: Arrays, extractor: Extractor) -> Reference:
    """Statistics, with the images beside them and the spatial statistics where there are any."""
    spatial = _spatial(arrays, arrays.path.stem)
    pictures = Pictures(arrays, extractor) if set(KEYS) & set(arrays.shapes) else None
    made_with = None if spatial is None else MADE_WITH
    mu, sigma = arrays.numbers("mu", 1), arrays.numbers("sigma", 2)
    return Reference(mu, sigma, None, None, made_with, arrays.path.stem, spatial, pictures)


def _spatial(arrays: Arrays, name: str) -> Reference | None:
    """The statistics of spatial features, if they are there."""
    if not {"mu_s", "sigma_s"} <= set(arrays.shapes):
        return None
    return Reference(arrays.numbers("mu_s", 1), arrays.numbers("sigma_s", 2), name=f"{name} (spatial)")


def _own(arrays: Arrays) -> Reference:
    """What :meth:`Reference.save` wrote."""
    written = arrays.text("format")
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
    made_with = arrays.text("extractor") if "extractor" in arrays.shapes else None
    name = arrays.text("name")
    return replace(reference, extractor=made_with, name=name, spatial=_spatial(arrays, name))
