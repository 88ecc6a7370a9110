"""Multistep sampling of latent consistency models (Luo et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autodiffusion._errors import InputError
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State
from autodiffusion.solvers._linear import towards

SIGMA_DATA = 0.5
"""The standard deviation of the data in the boundary scalings (Song et al. 2023, appendix C)."""


@dataclass(frozen=True)
class LCM(Solver):
    """Predict the clean data, add fresh noise, and so on (Song et al. 2023, algorithm 1); for distilled models.

    The consistency function is c_skip(t) x + c_out(t) x0, which is x at t = 0, with x0 from the predicted noise and
    the scalings of latent consistency models. The last move to clean data adds no noise.

    Attributes:
        timestep_scaling: times are multiplied by it in the scalings; above 0. The larger, the closer to x0 itself.
    """

    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        if not self.timestep_scaling > 0:
            raise InputError(f"solver lcm: timestep_scaling = {self.timestep_scaling} is not above 0")

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        _, x0 = self.both(predict, state.x, move.t)
        scaled = self.timestep_scaling * move.t
        norm = math.hypot(scaled, SIGMA_DATA)
        c_skip, c_out = (SIGMA_DATA / norm) ** 2, scaled / norm
        x = c_skip * state.x + c_out * x0
        if move.stop is not None:
            x = towards(self.schedule, x, noise(state.moves), move.stop)
        return replace(state, x=x, moves=state.moves + 1)


solver = LCM
