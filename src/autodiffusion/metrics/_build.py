"""Names become metrics."""

from __future__ import annotations

from typing import get_args

from autodiffusion._errors import InputError
from autodiffusion._names import resolve
from autodiffusion._references.reference import Reference
from autodiffusion.metrics._base import Better, Metric, Needs
from autodiffusion.metrics.kl import KL

BETTER, NEEDS = get_args(Better), get_args(Needs)


def build(name: str, reference: Reference) -> Metric | KL:
    """The metric of this name against ``reference``.

    Raises:
        InputError: an unknown metric, one that is no :class:`Metric` or does not say what it needs and which direction
            is better, or a reference that lacks what it needs.
    """
    kind = resolve("metrics", name)
    for attribute, known in (("better", BETTER), ("needs", NEEDS)):
        said = getattr(kind, attribute, None)
        if said not in known:
            raise InputError(f"metric {name}: {attribute} = {said!r} is none of {', '.join(known)}")
    made: Metric | KL = kind(reference)
    return made
