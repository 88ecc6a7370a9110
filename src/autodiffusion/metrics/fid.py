"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017): the FID."""

from __future__ import annotations

import numpy as np

from autodiffusion.features import Features
from autodiffusion.metrics._base import Floats, Metric
from autodiffusion.reference import symmetric_root


class FID(Metric):
    """``|m - mu|^2 + tr(S) + tr(Sigma) - 2 tr((Sigma^1/2 S Sigma^1/2)^1/2)``.

    Of samples with mean m and covariance S (with N - 1) from a reference with mu and Sigma (Heusel et al. 2017,
    equation 6). It is biased upwards by an amount that falls with the number of samples: compare equal numbers only.
    float64 throughout, since float32 covariances are off in the first decimal.
    """

    better = "lower"
    needs = "features"

    def measure(self, features: Features) -> float:
        """The distance in the square of the features' unit, at least 0 up to rounding."""
        vectors = features.vectors.double().numpy()
        mean = vectors.mean(0)
        centred = (vectors - mean) / np.sqrt(len(vectors) - 1)
        root = self.reference.root
        if len(vectors) < vectors.shape[1]:
            # (centred @ root).T @ (centred @ root) is root S root, so the singular values of N rows are the roots of
            # its eigenvalues: less work than D of them, and no precision lost in squaring
            trace_of_root = float(np.linalg.svd(centred @ root, compute_uv=False).sum())
        else:
            trace_of_root = _trace_of_root(root, centred.T @ centred)
        traces = float(np.square(centred).sum()) + float(np.trace(self.reference.sigma))
        return float(np.square(mean - self.reference.mu).sum()) + traces - 2 * trace_of_root


def frechet_distance(mu1: Floats, sigma1: Floats, mu2: Floats, sigma2: Floats) -> float:
    """The squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson and Landau 1982).

    Args:
        mu1, mu2: means, float64 ``[D]``.
        sigma1, sigma2: covariances, float64 ``[D, D]``, symmetric and positive semidefinite.
    """
    traces = float(np.trace(sigma1) + np.trace(sigma2))
    return float(np.square(mu1 - mu2).sum()) + traces - 2 * _trace_of_root(symmetric_root(sigma1), sigma2)


def _trace_of_root(root: Floats, sigma: Floats) -> float:
    """The trace of the square root of ``root sigma root``."""
    product = root @ sigma @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


metric = FID
