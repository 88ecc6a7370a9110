"""What solvers in the half-log-SNR lambda share: checks, the order of each move, and one exponential step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.solvers._base import Move, combine
from autodiffusion.solvers._linear import lagrange

Weigh: TypeAlias = Callable[[float, Sequence[float]], Sequence[float]]
"""(signed width of the step in lambda, places of the predictions in units of it, the first 0) -> their weights."""

FEW = 15
"""Below this many steps the last moves of multistep DPM-Solver and DEIS are of lower order, as in the authors' code."""


def check_order(name: str, order: int) -> None:
    """Raises :class:`InputError` unless the order is 1, 2 or 3."""
    if order not in (1, 2, 3):
        raise InputError(f"solver {name}: order = {order} is not 1, 2 or 3")


def check_falling(name: str, schedule: NoiseSchedule, moves: Sequence[Move]) -> None:
    """Raises :class:`InputError` where times do not fall, or are so close that their log-SNRs are equal in float64."""
    for move in moves:
        if schedule.log_snr(move.t) >= schedule.log_snr(move.stop):
            where = f"from t = {move.t} to {move.stop}"
            raise InputError(f"solver {name}: log-SNR does not rise {where}; give falling times further apart")


def with_orders(
    name: str, schedule: NoiseSchedule, moves: Sequence[Move], order: int, lower_final: bool
) -> tuple[Move, ...]:
    """The moves with the order of each: it grows by one a move; with ``lower_final`` it falls so at the end.

    The polynomial in lambda has no finite integral up to clean data, so a move to there is of order 1.

    Raises:
        InputError: as :func:`check_falling`.
    """
    check_falling(name, schedule, moves)
    ordered = []
    for i, move in enumerate(moves):
        here = min(order, i + 1, len(moves) - i if lower_final else order)
        ordered.append(replace(move, order=1 if move.stop is None else here))
    return tuple(ordered)


def exponential_step(
    schedule: NoiseSchedule,
    x: Tensor,
    used: Sequence[tuple[float, Tensor]],
    stop: float,
    data: bool,
    weigh: Weigh,
) -> Tensor:
    """The sample at ``stop``, a time, from ``x`` at the time of the first of the predictions used.

    Args:
        used: predictions with their times, of the noise or, with ``data``, of the clean data.
    """
    times, predictions = zip(*used, strict=True)
    return combine(step_weights(schedule, times, stop, data, weigh), (x, *predictions))


def step_weights(
    schedule: NoiseSchedule, times: Sequence[float], stop: float, data: bool, weigh: Weigh
) -> tuple[float, ...]:
    """What :func:`exponential_step` gives the sample, and each of the predictions at ``times``.

    x / alpha changes by the integral of -exp(-lambda) epsilon over lambda, x / sigma by that of exp(lambda) x0: one
    formula, with alpha and sigma exchanged and the sign of the width.
    """
    start = times[0]
    width = schedule.log_snr(stop) - schedule.log_snr(start)
    places = [(schedule.log_snr(t) - schedule.log_snr(start)) / width for t in times]
    scale, other, signed = schedule.alpha, schedule.sigma, width
    if data:
        scale, other, signed = other, scale, -width
    return (scale(stop) / scale(start), *(-other(stop) * weight for weight in weigh(signed, places)))


def exact(width: float, places: Sequence[float]) -> list[float]:
    """The weights that integrate the polynomial in lambda through the predictions."""
    return lagrange(places, [math.factorial(k) * tail(k + 1, width) for k in range(len(places))])


def tail(k: int, z: float) -> float:
    """``exp(z)`` without the first ``k`` terms of its series, divided by ``z ** (k - 1)``."""
    if abs(z) < 0.5:  # where the difference would cancel
        return sum(z**n / math.factorial(n + k - 1) for n in range(1, 16))
    value = math.expm1(z)
    for n in range(1, k):
        value = value / z - 1 / math.factorial(n)
    return value
