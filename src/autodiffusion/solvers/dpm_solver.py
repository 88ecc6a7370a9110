"""DPM-Solver (Lu et al. 2022a), multistep and singlestep, orders 1 to 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from autodiffusion._errors import InputError, nearest
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State
from autodiffusion.solvers._linear import towards
from autodiffusion.solvers._log_snr import FEW, check_falling, check_order, exponential_step, tail, with_orders

METHODS = ("multistep", "singlestep")


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
        check_order(self._name, self.order)
        if self.method not in METHODS:
            raise InputError(
                f"solver {self._name}: method '{self.method}' is unknown {nearest(str(self.method), METHODS)}"
            )

    @property
    def _name(self) -> str:
        return "dpm_solver++" if self.predicts_data else "dpm_solver"

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        """One move a step, with the order that the method has there; in a singlestep method its place in its block.

        Raises:
            InputError: two times do not fall, or are so close that their log-SNRs are equal in float64.
        """
        moves = super().moves(times, end)
        if self.method == "multistep":
            lower = self.lower_order_final and len(moves) < FEW
            return with_orders(self._name, self.schedule, moves, self.order, lower)
        check_falling(self._name, self.schedule, moves)
        orders = [i % self.order + 1 for i in range(len(moves))]
        if end is None or (self.lower_order_final and orders[-1] == self.order):
            orders[-1] = 1
        return tuple(replace(move, order=order) for move, order in zip(moves, orders, strict=True))

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
        if move.stop is None:
            x = x0
        elif move.order == 1 and not self.predicts_data:  # by x0, which x and the noise do not tell without a signal
            x = towards(self.schedule, x0, epsilon, move.stop)
        else:
            x = exponential_step(self.schedule, start, used, move.stop, self.predicts_data, self._weights)
        return State(x, state.moves + 1, kept, start if self.method == "singlestep" else None)

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


solver = DPMSolver
