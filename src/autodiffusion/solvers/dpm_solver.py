"""DPM-Solver (Lu et al. 2022a), multistep and singlestep, orders 1 to 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from autodiffusion.errors import InputError, nearest
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State, combine

METHODS = ("multistep", "singlestep")
FEW = 15
"""Below this many steps the last multistep moves are of lower order, as in the authors' code."""


@dataclass(frozen=True)
class DPMSolver(Solver):
    """Exponential integrator in the half-log-SNR lambda, for the predicted noise (Lu et al. 2022a, section 3).

    Each time is one evaluation of the network. A move to clean data is always of order 1, whose limit is the predicted
    clean data; the limits of the others are infinite.

    Attributes:
        order: 1, 2 or 3; order 1 is DDIM.
        method: ``multistep`` uses the predictions of earlier moves (Lu et al. 2022b, algorithm 2). ``singlestep`` takes
            the times in blocks of ``order``: the first of a block is its start, the others are the points between, at
            any place (r1 and r2 in Lu et al. 2022a); order 3 is reached if the last is at 2/3 of the block in lambda.
        lower_order_final: lower the order towards the end: ``multistep`` by one a move for fewer than 15 times,
            ``singlestep`` by never ending in a whole block.
    """

    order: int = 2
    method: str = "multistep"
    lower_order_final: bool = True

    continuous: ClassVar[bool] = True
    predicts_data: ClassVar[bool] = False
    """Whether the integrated prediction is the clean data, as in DPM-Solver++, or the noise."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InputError(f"solver {self._name}: order = {self.order} is not 1, 2 or 3")
        if self.method not in METHODS:
            raise InputError(
                f"solver {self._name}: method '{self.method}' is unknown {nearest(str(self.method), METHODS)}"
            )

    @property
    def _name(self) -> str:
        return "dpm_solver++" if self.predicts_data else "dpm_solver"

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        """One move a step, with the order that the method has there.

        Raises:
            InputError: two times do not fall, or are so close that their log-SNRs are equal in float64.
        """
        moves = super().moves(times, end)
        for move in moves:
            if self.schedule.log_snr(move.t) >= self.schedule.log_snr(move.stop):
                where = f"from t = {move.t} to {move.stop}"
                raise InputError(
                    f"solver {self._name}: log-SNR does not rise {where}; give falling times further apart"
                )
        orders = self._orders(len(moves), clean=end is None)
        return tuple(replace(move, order=order) for move, order in zip(moves, orders, strict=True))

    def _orders(self, count: int, clean: bool) -> list[int]:
        """The order of each move; in a singlestep method also its place in its block, from 1."""
        if self.method == "singlestep":
            orders = [i % self.order + 1 for i in range(count)]
            lower = self.lower_order_final and orders[-1] == self.order
        else:
            orders = [min(self.order, i + 1) for i in range(count)]
            lower = False
            if self.lower_order_final and count < FEW:
                orders = [min(order, count - i) for i, order in enumerate(orders)]
        return [*orders[:-1], 1] if clean or lower else orders

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        epsilon, x0 = self.both(predict, state.x, move.t)
        newest = (move.t, x0 if self.predicts_data else epsilon)
        if self.method == "multistep":
            start, used = state.x, (newest, *reversed(state.history))[: move.order]
            kept = (*state.history, newest)[-max(self.order - 1, 1) :]
        elif move.order == 1 or state.start is None:
            start, used = state.x, (newest,)
            kept = used
        else:
            start, used = state.start, (*state.history, newest)
            kept = used
        x = x0 if move.stop is None else self._integrate(start, used, move.stop)
        return State(x, state.moves + 1, kept, start if self.method == "singlestep" else None)

    def _integrate(self, x: Tensor, used: Sequence[tuple[float, Tensor]], stop: float) -> Tensor:
        """The sample at ``stop`` from ``x`` at the time of the first of the predictions used."""
        start = used[0][0]
        width = self.schedule.log_snr(stop) - self.schedule.log_snr(start)
        places = [(self.schedule.log_snr(t) - self.schedule.log_snr(start)) / width for t, _ in used]
        # x / alpha changes by the integral of -exp(-lambda) epsilon, x / sigma by that of exp(lambda) x0:
        # one formula, with alpha and sigma exchanged and the sign of the width
        scale, other = self.schedule.alpha, self.schedule.sigma
        if self.predicts_data:
            scale, other, width = other, scale, -width
        weights = (scale(stop) / scale(start), *(-other(stop) * w for w in self._weights(width, places)))
        return combine(weights, (x, *(prediction for _, prediction in used)))

    def _weights(self, width: float, places: Sequence[float]) -> list[float]:
        """The weights of predictions at ``places``, in units of ``width``, the first of them 0."""
        first = tail(1, width)
        if len(places) == 1:
            return [first]
        second = first / 2 if len(places) == 2 else tail(2, width)
        if len(places) == 2 or self.method == "singlestep":
            # the slope from the start to the last point: the midpoint variant of order 2, and DPM-Solver-3 of the paper
            slope = second / places[-1]
            return [first - slope, *(0.0 for _ in places[2:]), slope]
        # Newton's divided differences. The curvature counts half of what it does in the integral of the parabola
        # through the points: so it is in the authors' code and in diffusers, whose results these are
        _, near, far = places
        curved = (tail(3, width) - near * second) / far
        straight, bent = (second - curved) / near, curved / (far - near)
        return [first - straight, straight - bent, bent]


def tail(k: int, z: float) -> float:
    """``exp(z)`` without the first ``k`` terms of its series, divided by ``z ** (k - 1)``."""
    if abs(z) < 0.5:  # where the difference would cancel
        return sum(z**n / math.factorial(n + k - 1) for n in range(1, 16))
    value = math.expm1(z)
    for n in range(1, k):
        value = value / z - 1 / math.factorial(n)
    return value


solver = DPMSolver
