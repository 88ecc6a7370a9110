"""The kernel inception distance (Binkowski et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from autodiffusion._references.reference import Reference
from autodiffusion.features import Features
from autodiffusion.metrics._base import Floats, Interval, Metric

ROWS = 1024
"""Rows of a kernel matrix that are held at a time."""


def kernel(x: Floats, y: Floats) -> Floats:
    """``(x . y / D + 1)^3`` for all pairs of rows: ``[N, D]``, ``[M, D]`` -> ``[N, M]``."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


@dataclass(frozen=True)
class _Pairs:
    """Sums of ``h`` over all pairs of different samples, see :class:`KID`."""

    count: int
    rows: Floats
    squares: float

    @property
    def mean(self) -> float:
        return float(self.rows.sum()) / (self.count * (self.count - 1))

    @property
    def variance(self) -> float:
        n = self.count
        rows = self.rows - (n - 1) * self.mean
        return float(4 * np.square(rows).sum() - 2 * self._centred_squares) / (n * (n - 1) * (n - 2) * (n - 3))

    @property
    def standard_error(self) -> float:
        # Hoeffding: the variance is at least what h would add if it had no mean in either argument alone
        n = self.count
        least = 2 * self._centred_squares / (n * (n - 1)) ** 2
        return math.sqrt(max(self.variance, least))

    @property
    def _centred_squares(self) -> float:
        return max(0.0, self.squares - self.count * (self.count - 1) * self.mean**2)


class KID(Metric):
    """The unbiased squared maximum mean discrepancy for the kernel ``(x . y / D + 1)^3`` (equation 4).

    Taken over all pairs, in blocks, where the paper's code averages over random subsets: the same expectation, less
    noise and no random numbers. With the reference's vectors y counted as fixed it is a U-statistic of the samples
    x, the mean over pairs of ``h(x, x') = k(x, x') - mean_y k(x, y) - mean_y k(x', y) + mean_{y, y'} k(y, y')``.
    Unbiased, so it can be slightly negative.
    """

    better = "lower"
    needs = "features"
    minimum = 4

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self._real = reference.need_vectors("kid").double().numpy()

    def measure(self, features: Features) -> float:
        """The discrepancy, not multiplied by anything; tables often show a thousand times it."""
        return self._pairs(features).mean

    def standard_error(self, features: Features) -> float:
        """The standard deviation of the value over sets of samples of this size; the reference counts as fixed.

        From an unbiased estimate of the U-statistic's variance: the variance is E[U^2] - (E h)^2, and the mean of
        h(x1, x2) h(x3, x4) over four different samples estimates (E h)^2 without bias. With h centred, which changes
        nothing, it comes to ``(4 sum_i (sum_j h_ij)^2 - 2 sum_ij h_ij^2) / (n (n-1) (n-2) (n-3))``. Samples that are
        hardly distinct from the reference can push that below 0; it counts as at least ``2 Var(h) / (n (n-1))``,
        which is the whole variance when the two distributions are equal.
        """
        return self._pairs(features).standard_error

    def pseudovalues(self, features: Features) -> Floats:
        """One for each sample: those of the jackknife that leaves out one at a time, from the same sums as the value.

        For samples distributed like the reference their standard error is sqrt(2) times the true one.
        """
        if not self.fits(features):
            return np.full(len(features), self.worst)
        pairs = self._pairs(features)
        return np.asarray(pairs.mean + 2 * (pairs.rows - pairs.rows.mean()) / (pairs.count - 2))

    def interval(self, features: Features, resamples: int = 200, seed: int = 0, level: float = 0.95) -> Interval:
        """The value with a normal interval of its standard error, so that nothing is resampled.

        A resample holds samples more than once, and pairs of the same image are what an unbiased estimate leaves out.
        """
        if not self.fits(features):
            return Interval(self.worst, self.worst, self.worst)
        pairs = self._pairs(features)
        half = NormalDist().inv_cdf((1 + level) / 2) * pairs.standard_error
        return Interval(pairs.mean, pairs.mean - half, pairs.mean + half)

    @cached_property
    def _within_real(self) -> float:
        """The mean of the kernel over pairs of different real vectors."""
        count, total = len(self._real), 0.0
        for start in range(0, count, ROWS):
            block = kernel(self._real[start : start + ROWS], self._real)
            total += float(block.sum()) - float(np.trace(block, offset=start))
        return total / (count * (count - 1))

    def _pairs(self, features: Features) -> _Pairs:
        x = features.vectors.double().numpy()
        count = len(x)
        starts = range(0, count, ROWS)
        to_real = np.concatenate([kernel(x[start : start + ROWS], self._real).mean(1) for start in starts])
        rows, squares = np.empty(count), 0.0
        for start in starts:
            block = kernel(x[start : start + ROWS], x) - to_real[start : start + ROWS, None] - to_real
            block += self._within_real
            np.fill_diagonal(block[:, start:], 0)
            rows[start : start + ROWS] = block.sum(1)
            squares += float(np.square(block).sum())
        return _Pairs(count, rows, squares)


metric = KID
