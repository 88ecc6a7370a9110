"""DEIS (Zhang and Chen 2023), multistep, orders 1 to 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State
from autodiffusion.solvers._linear import towards
from autodiffusion.solvers._log_snr import FEW, check_order, exact, exponential_step, with_orders


@dataclass(frozen=True)
class DEIS(Solver):
    """Exponential integrator with a polynomial through the noise that was predicted last (Zhang and Chen 2023).

    The polynomial is one in log(sigma / alpha), as diffusers' ``logrho``, and is integrated exactly. Multistep
    DPM-Solver has the same polynomial, but approximates the integral of its slope in order 2, and takes half of that
    of its curvature in order 3. A move to clean data is of order 1.

    Attributes:
        order: 1, 2 or 3; order 1 is DDIM.
        lower_order_final: lower the order by one a move towards the end, for fewer than 15 times.
    """

    order: int = 2
    lower_order_final: bool = True

    continuous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_order("deis", self.order)

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        lower = self.lower_order_final and len(times) < FEW
        return with_orders("deis", self.schedule, super().moves(times, end), self.order, lower)

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        epsilon, x0 = self.both(predict, state.x, move.t)
        used = ((move.t, epsilon), *reversed(state.history))[: move.order]
        kept = (*state.history, (move.t, epsilon))[-max(self.order - 1, 1) :]
        if move.stop is None:
            x = x0
        elif move.order == 1:  # by x0, which x and the noise do not tell where there is no signal
            x = towards(self.schedule, x0, epsilon, move.stop)
        else:
            x = exponential_step(self.schedule, state.x, used, move.stop, False, exact)
        return State(x, state.moves + 1, kept)


solver = DEIS
