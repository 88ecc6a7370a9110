"""Precision of generated samples (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

from autodiffusion._references.reference import Reference
from autodiffusion.features import Features
from autodiffusion.metrics._base import Indices, Metric
from autodiffusion.metrics._manifold import NEIGHBOURS, covered, radii


class Precision(Metric):
    """The share of samples that lie in the manifold of the reference's vectors (equation 2): how many look real.

    Depends on the number of vectors in the reference; compare equal numbers only.
    """

    better = "higher"
    needs = "features"

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self._real = reference.need_vectors("precision", NEIGHBOURS + 1).double().numpy()
        self._reach = radii(self._real)

    def measure(self, features: Features) -> float:
        """The share, in [0, 1]."""
        return float(covered(features.vectors.double().numpy(), self._real, self._reach).mean())

    def resampled(self, features: Features) -> Callable[[Indices], float]:
        """Whether a sample is covered does not depend on the others, so it is asked once."""
        inside = covered(features.vectors.double().numpy(), self._real, self._reach)
        return lambda indices: float(inside[indices].mean())


metric = Precision
