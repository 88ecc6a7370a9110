"""PLMS (Liu et al. 2022), as latent diffusion samples with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State, combine

ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""For each order the weights of the predictions, newest first, on evenly spaced times."""


@dataclass(frozen=True)
class PLMS(Solver):
    """Linear multistep on the predicted noise (Liu et al. 2022, section 3), moved along as DDIM does.

    The first move is a pseudo improved Euler step, with two evaluations of the network; the order then grows to 4. The
    weights are those of evenly spaced times on any list of times, as in latent diffusion, whose results these are.
    """

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        first, *others = super().moves(times, end)
        # with a single step there is no later time to ask at; latent diffusion then asks at the same one again
        euler = replace(first, ask=(first.t, times[1] if others else first.t))
        return (euler, *(replace(move, order=min(i, 4)) for i, move in enumerate(others, 2)))

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        newest = self.epsilon(predict, state.x, move.t)
        history = (*state.history, (move.t, newest))
        if move.order == 1:
            ahead = self.epsilon(predict, self._transfer(state.x, newest, move), move.ask[1])
            epsilon = (newest + ahead) / 2
        else:
            epsilon = combine(ADAMS_BASHFORTH[move.order], (prediction for _, prediction in reversed(history)))
        return replace(state, x=self._transfer(state.x, epsilon, move), moves=state.moves + 1, history=history[-3:])

    def _transfer(self, x: Tensor, epsilon: Tensor, move: Move) -> Tensor:
        """From the move's start to its end along this noise: one DDIM step."""
        alpha, sigma = self.schedule.alpha(move.t), self.schedule.sigma(move.t)
        alpha_next, sigma_next = self.schedule.alpha(move.stop), self.schedule.sigma(move.stop)
        return alpha_next * ((x - sigma * epsilon) / alpha) + sigma_next * epsilon


solver = PLMS
