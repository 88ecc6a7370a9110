"""Names become metrics."""

from __future__ import annotations

from autodiffusion.errors import InputError
from autodiffusion.metrics._base import Metric
from autodiffusion.metrics.kl import KL
from autodiffusion.names import resolve
from autodiffusion.reference import Reference


def build(name: str, reference: Reference) -> Metric | KL:
    """The metric of this name against ``reference``.

    Raises:
        InputError: an unknown metric, one that is no :class:`Metric`, or a reference that lacks what it needs.
    """
    made = resolve("metrics", name)
    if not (isinstance(made, type) and issubclass(made, Metric | KL)):
        raise InputError(f"metric '{name}': is not a class derived from autodiffusion.metrics.Metric; derive it")
    return made(reference)
