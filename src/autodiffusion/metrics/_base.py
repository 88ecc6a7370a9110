"""What every metric is, and the interval around its value."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._references.reference import Reference
from autodiffusion.features import Features

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

Better: TypeAlias = Literal["lower", "higher"]
Needs: TypeAlias = Literal["features", "logits", "spatial", "errors"]
"""What of the samples a value is made from."""
ENOUGH = 100
"""Resamples of which the usual quantiles will do."""
GROUPS = 20
"""Parts that are left out in turn by :meth:`Metric.pseudovalues` where a metric has nothing better."""


@dataclass(frozen=True)
class Interval:
    """A value and the bounds between which it lies with some confidence, ``low <= high``."""

    value: float
    low: float
    high: float


class Criterion(ABC):
    """What all metrics share.

    Attributes:
        better: which direction is.
        needs: what of the samples the value is made from.
        reference: what they are compared with.
    """

    better: ClassVar[Better]
    needs: ClassVar[Needs]

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    @property
    def worst(self) -> float:
        """The value of samples that are not even finite."""
        return math.inf if self.better == "lower" else -math.inf


class Metric(Criterion):
    """A number from the features of generated images.

    A subclass says ``better`` and ``needs`` and how to ``measure``.
    """

    minimum: ClassVar[int] = 2
    """The fewest samples that have a value."""

    @abstractmethod
    def measure(self, features: Features) -> float:
        """The value of finite features of enough samples, in float64 throughout."""

    def value(self, features: Features) -> float:
        """The value of ``features``; :attr:`worst` if any of them is not finite.

        Raises:
            InputError: too few samples, no logits where they are needed, or features of another length than the
                reference's.
        """
        return self.measure(features) if self.fits(features) else self.worst

    def pseudovalues(self, features: Features) -> Floats:
        """Numbers, one for each sample or group of samples, that show how far the value moves from one to the next.

        Float64 ``[G]``, and their mean is the value up to rounding. With a and b of two plans' samples of the same
        noise, ``std(a - b, ddof=1) / sqrt(G)`` estimates the standard error of the difference of the two values, and
        ``std(a, ddof=1) / sqrt(G)`` that of one. G depends on the number of samples alone. All are :attr:`worst` if any
        feature is not finite.

        The jackknife (Tukey 1958; Miller 1974): G = 20 groups of neighbours, or one for each of fewer samples, are left
        out in turn. Its pseudo-values ``G value - (G - 1) value_without_g`` are moved by a constant so that the value
        is their mean. A subclass that knows each sample's influence gives one number a sample. What is made from
        nearest neighbours, as ``recall`` is, changes in jumps; its standard error is up to twice too large.

        Raises:
            InputError: as :meth:`value`, or too few samples to leave any out.
        """
        finite, count = self.fits(features), len(features)
        if count == self.minimum:
            raise InputError(
                f"metric {type(self).__name__}: of {count} samples none can be left out; give {count + 1} or more"
            )
        groups = min(count, max(GROUPS, math.ceil(count / (count - self.minimum))))  # those left have a value
        if not finite:
            return np.full(groups, self.worst)
        at, group = self.resampled(features), np.arange(count) * groups // count
        without = np.array([at(np.flatnonzero(group != g)) for g in range(groups)])
        return np.asarray(self.measure(features) + (groups - 1) * (without.mean() - without))

    def extrapolated(self, features: Features) -> Floats:
        """Pseudo-values of what the value tends to with ever more samples; their mean is its estimate.

        For a first look at plans that lie far apart, where a bias that differs from plan to plan outweighs the noise
        that an extrapolation adds. The pseudo-values of the value itself where a metric has no bias to speak of.

        Raises:
            InputError: as :meth:`pseudovalues`.
        """
        return self.pseudovalues(features)

    def interval(self, features: Features, resamples: int = 200, seed: int = 0, level: float = 0.95) -> Interval:
        """See :func:`interval`. A subclass that knows its own sampling error may do better than the bootstrap."""
        if not self.fits(features):
            return Interval(self.worst, self.worst, self.worst)
        at, value = self.resampled(features), self.measure(features)
        return bootstrap(at, len(features), value, resamples, seed, level, self.draw)

    def resampled(self, features: Features) -> Callable[[Indices], float]:
        """The value of the samples of any list of numbers; a subclass may share work between the lists."""
        return lambda indices: self.measure(features.take(indices))

    @staticmethod
    def draw(random: np.random.Generator, count: int) -> Indices:
        """The numbers of one resample of ``count`` samples: as many, with replacement."""
        return random.integers(count, size=count)

    def fits(self, features: Features) -> bool:
        """Whether all features are finite.

        Raises:
            InputError: they do not fit at all, as :meth:`value` says.
        """
        if len(features) < self.minimum:
            raise InputError(
                f"metric {type(self).__name__}: {len(features)} samples are too few; give {self.minimum} or more"
            )
        part = self.part(features)
        given, known = part.shape[1], len(self.reference.mu)
        if self.needs != "logits" and given != known:
            raise InputError(
                f"metric {type(self).__name__}: the samples have {given} features and reference {self.reference.name} "
                f"has {known}; make the reference with the same feature network"
            )
        return bool(torch.isfinite(part).all())

    def part(self, features: Features) -> Tensor:
        """What of the features the value is made from, as ``needs`` says: ``[N, ...]``.

        Raises:
            InputError: the feature network has no such thing.
        """
        if self.needs == "features":
            return features.vectors
        part, returned = features.logits, "(features, logits)"
        if self.needs == "spatial":
            part, returned = features.spatial, "(features, logits, spatial), as inception does"
        if part is None:
            what = "logits" if self.needs == "logits" else "spatial features"
            raise InputError(
                f"metric {type(self).__name__}: the feature network has no {what}; use one that returns {returned}"
            )
        return part


def interval(metric: Metric, features: Features, resamples: int = 200, seed: int = 0, level: float = 0.95) -> Interval:
    """The metric's value and an interval for the sampling of the generated images; the reference counts as exact.

    A bootstrap: samples are drawn with replacement, as many as there are, ``resamples`` times. The distribution of the
    resampled values is moved so that its mean is the value itself, and the interval runs between its quantiles. The
    move matters: what is biased at finite sizes, as the Frechet distance is, is biased once more in a resample, by
    about as much again, and plain percentile intervals can then exclude the very value they are to surround. What
    remains is an interval for the metric *at this number of samples*, with the bias that its value has there.
    Two metrics depart from this where a sample drawn twice would do harm: ``kid`` has a standard error instead, and
    ``recall`` draws halves.

    Args:
        features: of the generated images.
        resamples: number of resamples, 2 or more.
        seed: of the resampling; equal seeds give equal intervals.
        level: confidence, in (0, 1).

    Raises:
        InputError: as :meth:`Metric.value`.
    """
    return metric.interval(features, resamples, seed, level)


def bootstrap(
    at: Callable[[Indices], float],
    count: int,
    value: float,
    resamples: int,
    seed: int,
    level: float,
    draw: Callable[[np.random.Generator, int], Indices] = Metric.draw,
) -> Interval:
    """The interval around ``value`` from ``at(indices)``, the value of a resample of ``count`` numbers.

    Raises:
        InputError: ``resamples`` below 2 or ``level`` outside (0, 1).
    """
    if resamples < 2 or not 0 < level < 1:
        raise InputError(f"interval: {resamples} resamples at level {level:g}; give 2 or more and a level in (0, 1)")
    random = np.random.default_rng(seed)
    values = np.array([at(draw(random, count)) for _ in range(resamples)])
    # of few values the usual quantiles lie within the true ones: of 40, 95 % intervals of a mean would hold 89 %
    method: Literal["linear", "weibull"] = "linear" if resamples >= ENOUGH else "weibull"
    low, high = np.quantile(values + (value - values.mean()), [(1 - level) / 2, (1 + level) / 2], method=method)
    return Interval(value, float(low), float(high))
