"""The inception score (Salimans et al. 2016)."""

from __future__ import annotations

import math

import torch

from autodiffusion.errors import InputError
from autodiffusion.features import Features
from autodiffusion.metrics._base import Metric
from autodiffusion.reference import Reference


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
        assert features.logits is not None
        if len(features) < self.splits:
            raise InputError(f"metric inception_score: {len(features)} samples cannot be cut into {self.splits} parts")
        log_given = features.logits.double().log_softmax(1)
        scores = []
        for part in log_given.tensor_split(self.splits):
            log_marginal = part.logsumexp(0) - math.log(len(part))
            divergence = (part.exp() * (part - log_marginal)).sum(1)
            scores.append(float(torch.exp(divergence.mean())))
        return sum(scores) / len(scores)


metric = InceptionScore
