"""The KL terms of the variational bound: the paper's third performance estimate, kept to show why it fails."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._references.reference import Reference
from autodiffusion.metrics._base import Criterion, Floats, Interval, bootstrap


class KL(Criterion):
    """The sum over a plan's steps of ``KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, in bits per dimension of a real image.

    With the true posterior's variance in the model's steps each term is half the gain in signal-to-noise ratio times
    the squared error of the denoised image (Kingma et al. 2021, equations 13 and 14; Ho et al. 2020, the terms
    L_{t-1}). The bound's other two terms are left out: the prior's, and the decoder's from the last time to the data.
    It needs no samples, but real images in the reference.

    A low value says little about samples. Every step costs at most what it gains in signal, so the least is to gain
    nearly none: minimizing it puts all steps next to clean data, and samples drawn that way are still noise. Table 2
    of the AutoDiffusion paper has FIDs of 414 for 4, 6 and 10 steps alike.
    """

    better = "lower"
    needs = "errors"

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self.images: Tensor = reference.need_images("kl")
        """The real images, uint8 ``[N, C, H, W]``."""

    @property
    def available(self) -> int:
        """How many real images there are."""
        return len(self.images)

    def value(self, log_snr: ArrayLike, errors: ArrayLike) -> float:
        """Bits per dimension, the mean over images; infinite if any error is not finite.

        Args:
            log_snr: half log-SNR, ``log(alpha / sigma)``, at the steps in order and at the end: float64 ``[K + 1]``,
                finite and nowhere decreasing.
            errors: mean over dimensions of ``(x_0 - predicted x_0)^2``, images in [-1, 1], of each real image at each
                step: float64 ``[K, N]``.

        Raises:
            InputError: shapes or order other than these.
        """
        bits = self._bits(log_snr, errors)
        return float(bits.mean()) if np.isfinite(bits).all() else self.worst

    def interval(
        self, log_snr: ArrayLike, errors: ArrayLike, resamples: int = 200, seed: int = 0, level: float = 0.95
    ) -> Interval:
        """The value and a bootstrap interval over the real images; arguments as of :meth:`value` and ``interval``."""
        bits = self._bits(log_snr, errors)
        if not np.isfinite(bits).all():
            return Interval(self.worst, self.worst, self.worst)
        value = float(bits.mean())
        return bootstrap(lambda indices: float(bits[indices].mean()), len(bits), value, resamples, seed, level)

    def _bits(self, log_snr: ArrayLike, errors: ArrayLike) -> Floats:
        """The terms' sum for each image, ``[N]``."""
        half, squares = np.asarray(log_snr, dtype=np.float64), np.asarray(errors, dtype=np.float64)
        if half.ndim != 1 or squares.ndim != 2 or len(half) != len(squares) + 1 or not squares.size:
            raise InputError(
                f"metric kl: log_snr {list(half.shape)} and errors {list(squares.shape)} are not [K + 1] and [K, N]"
            )
        if not np.isfinite(half).all() or np.any(np.diff(half) < 0):
            raise InputError("metric kl: log_snr must be finite and must not decrease from step to step")
        if not np.isfinite(squares).all():
            return np.full(squares.shape[1], math.inf)
        return np.asarray(0.5 * np.diff(np.exp(2 * half)) @ squares / math.log(2))


metric = KL
