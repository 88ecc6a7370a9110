"""Names become metrics."""

from __future__ import annotations

from autodiffusion._names import resolve
from autodiffusion._references.reference import Reference
from autodiffusion.metrics._base import Metric
from autodiffusion.metrics.kl import KL


def build(name: str, reference: Reference) -> Metric | KL:
    """The metric of this name against ``reference``.

    Raises:
        InputError: an unknown metric, one that is no :class:`Metric`, or a reference that lacks what it needs.
    """
    made: Metric | KL = resolve("metrics", name)(reference)
    return made
