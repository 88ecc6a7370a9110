"""What linear solvers share: one straight step, and the weights that integrate a polynomial through predictions."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

from torch import Tensor

from autodiffusion.schedule import NoiseSchedule

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""For each order the weights of the predictions, newest first, on evenly spaced times."""


def towards(schedule: NoiseSchedule, x0: Tensor, epsilon: Tensor, stop: float | None) -> Tensor:
    """The sample at ``stop`` that consists of this clean data and this noise."""
    return schedule.alpha(stop) * x0 + schedule.sigma(stop) * epsilon


def transfer(schedule: NoiseSchedule, x: Tensor, slope: Tensor, t: float, stop: float | None) -> Tensor:
    """From ``x`` at ``t`` to ``stop`` along this slope: one step of DDIM, straight in sigma / scale."""
    foot = (x - schedule.sigma(t) * slope) / schedule.scale(t)
    return schedule.scale(stop) * foot + schedule.sigma(stop) * slope


def ratio(schedule: NoiseSchedule, t: float | None) -> float:
    """The variable in which that way is straight."""
    return schedule.sigma(t) / schedule.scale(t)


def lagrange(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights of values at ``places`` in the integral of the polynomial through them.

    Args:
        places: different ones.
        moments: the integrals of the powers 0, 1, ... of the variable, as many as places.
    """
    weights = []
    for i, place in enumerate(places):
        # the polynomial that is 1 here and 0 at the other places; its coefficients, the constant first
        coefficients = [1.0]
        for j, other in enumerate(places):
            if j != i:
                terms = zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)
                coefficients = [(lower - other * same) / (place - other) for lower, same in terms]
        weights.append(sum(map(mul, coefficients, moments)))
    return weights
