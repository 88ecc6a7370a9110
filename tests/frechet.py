"""The Frechet distance by its definition, for tests of what works it out in other ways."""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


def frechet_distance(mu1: Floats, sigma1: Floats, mu2: Floats, sigma2: Floats) -> float:
    """The squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson and Landau 1982).

    Args:
        mu1, mu2: means, float64 ``[D]``.
        sigma1, sigma2: covariances, float64 ``[D, D]``, symmetric and positive semidefinite.
    """
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    crossed = np.sqrt(np.linalg.eigvalsh(root @ sigma2 @ root).clip(min=0)).sum()
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * crossed)
