"""Metrics: from the features of samples to a number. One file a metric; each ends in ``metric = ITS_CLASS``.

A metric sees no plans and no models. All but one compare features of generated images with a reference
(:class:`Metric`); ``kl`` judges a model's denoising of real images instead and has its own form.
"""

from __future__ import annotations

from autodiffusion.metrics._base import Interval, Metric

__all__ = ["Interval", "Metric"]
