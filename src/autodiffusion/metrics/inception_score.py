"""The inception score (Salimans et al. 2016)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._references.reference import Reference
from autodiffusion.features import Features
from autodiffusion.metrics._base import Floats, Metric


class InceptionScore(Metric):
    """``exp(E_x KL(p(y|x) || p(y)))`` with p(y) the mean over the samples: sure of each image and diverse over all.

    Between 1 and the number of classes. Compares with nothing, so the reference is not looked at.

    Attributes:
        splits: the samples are cut, in order, into this many parts whose scores are averaged. Papers have 10, and quote
            the spread of the parts as an error; 1, all samples together, is the better estimate and the default.
    """

    better = "higher"
    needs = "logits"

    def __init__(self, reference: Reference, splits: int = 1) -> None:
        super().__init__(reference)
        if splits < 1:
            raise InputError(f"metric inception_score: splits = {splits} is not 1 or more")
        self.splits = splits

    def measure(self, features: Features) -> float:
        """The mean score of the parts."""
        return float(torch.stack([part.mean().exp() for part in self._divergences(features)]).mean())

    def pseudovalues(self, features: Features) -> Floats:
        """One for each sample, by its influence: p(y) is where the mean divergence from it is least.

        So a sample counts only by its own divergence, and not by how it moves p(y).
        """
        if not self.fits(features):
            return np.full(len(features), self.worst)
        parts = self._divergences(features)
        scores = torch.stack([part.mean().exp() for part in parts])
        weights = [len(features) / (self.splits * len(part)) for part in parts]
        influence = [w * score * (part - part.mean()) for w, score, part in zip(weights, scores, parts, strict=True)]
        return np.asarray((scores.mean() + torch.cat(influence)).numpy())

    def _divergences(self, features: Features) -> list[Tensor]:
        """``KL(p(y|x) || p(y))`` of each sample of each part."""
        if len(features) < self.splits:
            raise InputError(f"metric inception_score: {len(features)} samples cannot be cut into {self.splits} parts")
        divergences = []
        for part in self.part(features).double().log_softmax(1).tensor_split(self.splits):
            log_marginal = part.logsumexp(0) - math.log(len(part))
            divergences.append((part.exp() * (part - log_marginal)).sum(1))
        return divergences


metric = InceptionScore
