"""PLMS (Liu et al. 2022), as latent diffusion samples with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State, combine
from autodiffusion.solvers._linear import ADAMS_BASHFORTH, transfer


@dataclass(frozen=True)
class PLMS(Solver):
    """Linear multistep on the predicted noise (Liu et al. 2022, section 3), moved along as DDIM does.

    Of flow matching it is on the predicted velocity.

    The first move is a pseudo improved Euler step, with two evaluations of the network; the order then grows to 4. The
    weights are those of evenly spaced times on any list of times, as in latent diffusion, whose results these are.
    """

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        first, *others = super().moves(times, end)
        # with a single step there is no later time to ask at; latent diffusion then asks at the same one again
        euler = replace(first, ask=(first.t, times[1] if others else first.t))
        return (euler, *(replace(move, order=min(i, 4)) for i, move in enumerate(others, 2)))

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        newest = self.slope(predict, state.x, move.t)
        history = (*state.history, (move.t, newest))
        if move.order == 1:
            ahead = transfer(self.schedule, state.x, newest, move.t, move.stop)
            slope = (newest + self.slope(predict, ahead, move.ask[1])) / 2
        else:
            slope = combine(ADAMS_BASHFORTH[move.order], (prediction for _, prediction in reversed(history)))
        x = transfer(self.schedule, state.x, slope, move.t, move.stop)
        return replace(state, x=x, moves=state.moves + 1, history=history[-3:])


solver = PLMS
