"""What every feature network is: a module, a name and a way to hand it images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autodiffusion._errors import InputError
from autodiffusion._names import resolve

PARTS = ("features", "logits", "spatial features")
"""What a network may return, in this order."""


@dataclass(frozen=True, eq=False)
class Features:
    """What a feature network sees in some images.

    Attributes:
        vectors: one a row, float32 ``[N, D]``.
        logits: unnormalized log-probabilities of classes, float32 ``[N, C]``, where the network has them.
        spatial: features that say where in the image they are, for ``sfid``, where the network has them: float16
            ``[N, S]``, whose rounding is far below what any number of samples can tell.
    """

    vectors: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> Features:
        """The rows of these numbers, in this order; numbers may repeat."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        logits, spatial = (None if part is None else part[rows] for part in (self.logits, self.spatial))
        return Features(self.vectors[rows], logits, spatial)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """One after the other; logits and spatial features only if every part has them."""

        def joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
            there = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(there) if len(there) == len(tensors) else None

        logits, spatial = joined([part.logits for part in parts]), joined([part.spatial for part in parts])
        return Features(torch.cat([part.vectors for part in parts]), logits, spatial)


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature network, ready for images.

    Attributes:
        module: from images ``[B, C, H, W]``, float32 in [-1, 1] (uint8 if it has ``wants_uint8 = True``), to features
            ``[B, ...]``, which are flattened, to ``(features, logits [B, C])`` or to ``(features, logits, spatial
            [B, ...])``. If it has an integer ``dimension``, that is the number of features of one image.
        name: identifies the network; references made with it remember the name.
        device: where it runs.
        batch_size: how many images it gets at a time; features do not depend on it, beyond float rounding.
    """

    module: nn.Module
    name: str = "own"
    device: str = "cpu"
    batch_size: int = 256
    _shapes: set[torch.Size] = field(default_factory=set, init=False, repr=False)
    """Of images that it has taken."""

    def __post_init__(self) -> None:
        self.module.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, tick: Callable[[int], None] | None = None) -> Features:
        """The features of uint8 images ``[N, C, H, W]``, on the CPU.

        Args:
            tick: told how many more images are done, now and then.

        Raises:
            InputError: images of another type or shape than the network takes, or a result that is not as described.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise InputError(
                f"features '{self.name}': images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}"
            )
        parts = []
        for batch in torch.split(images, self.batch_size):
            parts.append(self._batch(batch))
            if tick:
                tick(len(batch))
        return Features.cat(parts)

    def _batch(self, images: Tensor) -> Features:
        batch = images.to(self.device)
        if not getattr(self.module, "wants_uint8", False):
            batch = batch.float() / 127.5 - 1
        try:
            output = self.module(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            # torch.AcceleratorError, before torch 2.8 a RuntimeError, is the device's fault, and what fails on images
            # of a shape that was taken before may pass
            if "CUDA error" in reason or images.shape[1:] in self._shapes:
                raise
            raise InputError(
                f"features '{self.name}': images of shape {list(images.shape[1:])} do not fit the network ({reason})"
            ) from error
        self._shapes.add(images.shape[1:])
        parts = output if isinstance(output, tuple) and len(output) in (2, 3) else (output,)
        named = dict(zip(PARTS, parts, strict=False))
        for what, value in named.items():
            if value is None and what == "logits":
                continue
            if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != len(images):
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"features '{self.name}': the module's {what} for {len(images)} images are {shape}; "
                    f"return a tensor [{len(images)}, ...], (features, logits) or (features, logits, spatial)"
                )
        logits, spatial = named.get("logits"), named.get("spatial features")
        return Features(
            named["features"].flatten(1).float().cpu(),
            None if logits is None else logits.flatten(1).float().cpu(),
            None if spatial is None else spatial.flatten(1).half().cpu(),
        )

    def dimension(self, shape: Sequence[int] | None = None) -> int | None:
        """How many features an image has: as the module says, or as a black image of ``shape`` ``[C, H, W]`` shows.

        ``None`` if neither is there to tell.
        """
        said = getattr(self.module, "dimension", None)
        if isinstance(said, int):
            return said
        if shape is None:
            return None
        return self(torch.zeros(1, *shape, dtype=torch.uint8)).vectors.shape[1]


def load(name: str, device: str = "cpu") -> Extractor:
    """The feature network of this name, or a user's ``package.module:attribute``, on ``device``.

    Raises:
        InputError: an unknown name, a network whose package or weights are missing, an attribute that is neither an
            ``nn.Module`` nor makes one without arguments, or a device that is not there.
    """
    made = resolve("features", name)
    if not isinstance(made, nn.Module | Extractor) and callable(made):
        try:
            made = made()
        except InputError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"features '{name}': making the network without arguments failed ({reason})") from error
    if isinstance(made, nn.Module):
        made = Extractor(made)
    if not isinstance(made, Extractor):
        raise InputError(
            f"features '{name}': is a {type(made).__name__}; give a torch.nn.Module or a function that returns one"
        )
    try:
        return replace(made, name=name, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's, for a device that is unknown or not there
        raise InputError(f"device '{device}' cannot be used ({str(error).splitlines()[0]}); cpu always can") from None
