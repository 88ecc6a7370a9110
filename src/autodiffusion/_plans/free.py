"""FreeNumber: what a solver leaves open for a step, to be searched like the times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autodiffusion._errors import InputError, nearest


@dataclass(frozen=True)
class FreeNumber:
    """A real number that a solver leaves open for a step.

    Attributes:
        name: under which a plan's step holds it.
        low: least value.
        high: greatest value.
        plain: the value of a step that says nothing; within the bounds.
    """

    name: str
    low: float
    high: float
    plain: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.high - self.low < math.inf and self.low <= self.plain <= self.high):
            bounds = f"{self.plain} plain, {self.low} to {self.high}"
            raise InputError(f"free number '{self.name}': {bounds}; give rising finite bounds and a plain value within")


OfSteps = tuple[tuple[FreeNumber, ...], ...]
"""What is left open for each step of a plan."""


def values(free: OfSteps, params: Sequence[Mapping[str, float]]) -> tuple[tuple[float, ...], ...]:
    """The free numbers of each step, plain where ``params`` say nothing.

    Raises:
        InputError: a name that the step does not have, or a value out of range.
    """
    for i, (numbers, given) in enumerate(zip(free, params, strict=True)):
        bounds = {number.name: number for number in numbers}
        for name, value in given.items():
            where = f"steps[{i}].params"
            if not bounds:
                raise InputError(f"{where}: '{name}' is unknown; the solver leaves nothing open for this step")
            if name not in bounds:
                raise InputError(f"{where}: '{name}' is unknown {nearest(name, bounds)}")
            number = bounds[name]
            if not (math.isfinite(value) and number.low <= value <= number.high):
                raise InputError(f"{where}.{name} = {value} lies outside {number.low:g} to {number.high:g}")
    return tuple(
        tuple(given.get(number.name, number.plain) for number in numbers)
        for numbers, given in zip(free, params, strict=True)
    )
