"""DDIM (Song et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autodiffusion.errors import InputError
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State


@dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. 2021, equation 12, from any time to any earlier one.

    Attributes:
        eta: 0 is deterministic, 1 has the noise of ancestral sampling (DDPM); in [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"solver ddim: eta = {self.eta} lies outside 0 to 1")

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        epsilon, x0 = self.both(predict, state.x, move.t)
        alpha, sigma = self.schedule.alpha(move.t), self.schedule.sigma(move.t)
        alpha_next, sigma_next = self.schedule.alpha(move.stop), self.schedule.sigma(move.stop)
        # equation 16: the part of sigma_next that is drawn anew
        drawn = self.eta * sigma_next / sigma * math.sqrt(max(0.0, 1 - (alpha / alpha_next) ** 2))
        x = alpha_next * x0 + math.sqrt(max(0.0, sigma_next**2 - drawn**2)) * epsilon
        if drawn > 0:
            x = x + drawn * noise(state.moves)
        return replace(state, x=x, moves=state.moves + 1)


solver = DDIM
