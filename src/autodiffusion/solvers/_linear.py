"""What linear solvers share: one straight step, and the weights that integrate a polynomial through predictions."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

from torch import Tensor

from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.solvers._base import Move, Predict, Solver

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
    if schedule.scale(t) == schedule.scale(stop):  # of flow matching
        return x.add(slope, alpha=schedule.sigma(stop) - schedule.sigma(t))
    foot = (x - schedule.sigma(t) * slope) / schedule.scale(t)
    return schedule.scale(stop) * foot + schedule.sigma(stop) * slope


def straight(solver: Solver, predict: Predict, x: Tensor, move: Move) -> Tensor:
    """The sample after a step of deterministic DDIM."""
    if solver.clip:  # to data that cannot be found again from the noise where there is no signal
        epsilon, x0 = solver.both(predict, x, move.t)
        return towards(solver.schedule, x0, epsilon, move.stop)
    return transfer(solver.schedule, x, solver.slope(predict, x, move.t), move.t, move.stop)


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
