"""Recall of generated samples (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

import numpy as np

from autodiffusion._references.reference import Reference
from autodiffusion.features import Features
from autodiffusion.metrics._base import Indices, Metric
from autodiffusion.metrics._manifold import NEIGHBOURS, covered, radii


class Recall(Metric):
    """The share of the reference's vectors that lie in the manifold of the samples (equation 2): how much is covered.

    Depends on the number of samples; compare equal numbers only.
    """

    better = "higher"
    needs = "features"
    minimum = NEIGHBOURS + 1

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self._real = reference.need_vectors("recall", 1).double().numpy()

    def measure(self, features: Features) -> float:
        """The share, in [0, 1]."""
        vectors = features.vectors.double().numpy()
        return float(covered(self._real, vectors, radii(vectors)).mean())

    @staticmethod
    def draw(random: np.random.Generator, count: int) -> Indices:
        """Half of the samples, without replacement: what is drawn twice would be its own neighbour at distance 0.

        Values of halves spread as those of whole sets do (the delete-d jackknife, Shao and Wu 1989, with d = N / 2).
        """
        return random.permutation(count)[: max(count // 2, Recall.minimum)]


metric = Recall
