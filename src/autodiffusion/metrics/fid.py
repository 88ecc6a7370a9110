"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017): the FID."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from torch import Tensor

from autodiffusion.features import Features
from autodiffusion.metrics._base import Floats, Indices, Metric, Needs


class FID(Metric):
    """``|m - mu|^2 + tr(S) + tr(Sigma) - 2 tr((Sigma^1/2 S Sigma^1/2)^1/2)``.

    Of samples with mean m and covariance S (with N - 1) from a reference with mu and Sigma (Heusel et al. 2017,
    equation 6). It is biased upwards by an amount that falls with the number of samples: compare equal numbers only.
    float64 throughout, since float32 covariances are off in the first decimal.
    """

    better = "lower"
    needs: ClassVar[Needs] = "features"

    def measure(self, features: Features) -> float:
        """The distance in the square of the features' unit, at least 0 up to rounding."""
        mean, centred = _centred(self.part(features))
        return self._distance(mean, centred, _trace_of_root(self._gram(centred)))

    def pseudovalues(self, features: Features) -> Floats:
        """One for each sample x, by its influence (infinitesimal jackknife, Efron 1982), at about a value's cost.

        The influence is the value's derivative by the sample's weight. As ``d tr(P^1/2) = tr(P^-1/2 dP) / 2``, it is
        ``2 (m - mu).(x - m) + N / (N - 1) (|x - m|^2 - |P^-1/4 Sigma^1/2 (x - m)|^2)`` up to a constant, with
        ``P = Sigma^1/2 S Sigma^1/2``, inverted on its range. With no more samples than features the standard errors
        tend to be too large: that of a difference by up to a third, that of one value by up to a half.
        """
        count = len(features)
        if not self.fits(features):
            return np.full(count, self.worst)
        mean, centred = _centred(self.part(features))
        eigenvalues, vectors = np.linalg.eigh(self._gram(centred))
        roots = np.sqrt(eigenvalues.clip(min=0))
        # with centred @ root = U s V^T the last term is U^2 @ s; the vectors are U or, of the other gram matrix, V
        if count < len(mean):
            last = np.square(vectors) @ roots
        else:
            kept = eigenvalues > len(mean) * np.finfo(np.float64).eps * eigenvalues.max()
            last = np.square(centred @ (self.reference.root @ vectors[:, kept])) @ (1 / roots[kept])
        influence = 2 * np.sqrt(count - 1) * (centred @ (mean - self.reference.mu))
        influence += count * (np.square(centred).sum(1) - last)
        return np.asarray(self._distance(mean, centred, float(roots.sum())) + influence - influence.mean())

    def extrapolated(self, features: Features) -> Floats:
        """Of ``2 FID_N - FID_N/2``, the mean over both halves: the bias falls as 1 / N (Chong and Forsyth 2020)."""
        half = len(features) // 2
        if half < self.minimum or not self.fits(features):
            return self.pseudovalues(features)
        halves = [features.take(range(half)), features.take(range(half, len(features)))]
        return np.asarray(2 * self.pseudovalues(features) - np.concatenate([*map(self.pseudovalues, halves)]))

    def resampled(self, features: Features) -> Callable[[Indices], float]:
        """The distance of the samples of any list of numbers, from weights of the samples where these are many."""
        vectors = self.part(features).double().numpy()
        if len(vectors) < vectors.shape[1]:
            return super().resampled(features)
        root, middle = self.reference.root, vectors.mean(0)
        rows = vectors - middle

        def at(indices: Indices) -> float:
            count = len(indices)
            weights = np.bincount(indices, minlength=len(rows)) / count
            shift = weights @ rows
            sigma = ((rows * weights[:, None]).T @ rows - np.outer(shift, shift)) * (count / (count - 1))
            traces = float(np.trace(sigma)) + float(np.trace(self.reference.sigma))
            distance = float(np.square(middle + shift - self.reference.mu).sum())
            return distance + traces - 2 * _trace_of_root(root @ sigma @ root)

        return at

    def _gram(self, centred: Floats) -> Floats:
        """``Sigma^1/2 S Sigma^1/2`` or, if it is smaller, the ``[N, N]`` matrix with the same eigenvalues but zeros."""
        root = self.reference.root
        if len(centred) < len(root):
            # singular values of this would keep more digits of the smallest, by about 1e-8 of the largest each; that
            # is far below a FID's noise, and they take twice as long
            scaled = centred @ root
            return np.asarray(scaled @ scaled.T)
        return root @ (centred.T @ centred) @ root

    def _distance(self, mean: Floats, centred: Floats, trace_of_root: float) -> float:
        """The distance, once ``tr((Sigma^1/2 S Sigma^1/2)^1/2)`` is known."""
        traces = float(np.square(centred).sum()) + float(np.trace(self.reference.sigma))
        return float(np.square(mean - self.reference.mu).sum()) + traces - 2 * trace_of_root


def _centred(samples: Tensor) -> tuple[Floats, Floats]:
    """The mean m ``[D]`` and a matrix A ``[N, D]`` of samples less m, such that ``A^T A`` is their covariance."""
    vectors = samples.double().numpy()
    mean = vectors.mean(0)
    return mean, (vectors - mean) / np.sqrt(len(vectors) - 1)


def _trace_of_root(product: Floats) -> float:
    """The trace of a positive semidefinite matrix's root; eigenvalues that rounding made negative count as 0."""
    # what rounding made asymmetric does no harm: only the lower half is read
    return float(np.sqrt(np.linalg.eigvalsh(product).clip(min=0)).sum())


metric = FID
