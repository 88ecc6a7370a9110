"""Heun in sigma / alpha, of flow matching in sigma (Karras et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State
from autodiffusion.solvers._linear import towards, transfer


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method of order 2 on d(x / alpha) / d(sigma / alpha) = epsilon (Karras et al. 2022, algorithm 1).

    Of flow matching it is on dx / dsigma = epsilon - x0, as in diffusers' ``FlowMatchHeunDiscreteScheduler``.
    A move asks the network where it starts and, after an Euler step, where it ends: two evaluations. A move to clean
    data is the Euler step alone, with one.
    """

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        return tuple(
            move if move.stop is None else replace(move, ask=(move.t, move.stop), order=2)
            for move in super().moves(times, end)
        )

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        epsilon, x0 = self.both(predict, state.x, move.t)
        x = towards(self.schedule, x0, epsilon, move.stop)
        if move.stop is not None:
            mean = (self.schedule.slope(epsilon, x0) + self.slope(predict, x, move.stop)) / 2
            x = transfer(self.schedule, state.x, mean, move.t, move.stop)
        return replace(state, x=x, moves=state.moves + 1)


solver = Heun
