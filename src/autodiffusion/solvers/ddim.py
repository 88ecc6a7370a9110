"""DDIM (Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autodiffusion._errors import InputError
from autodiffusion._plans.free import FreeNumber, OfSteps
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State
from autodiffusion.solvers._linear import straight


@dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. 2021, equation 12, from any time to any earlier one.

    Attributes:
        eta: 0 is deterministic, 1 has the noise of ancestral sampling (DDPM); in [0, 1]. Each step may have its own.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"solver ddim: eta = {self.eta} lies outside 0 to 1")

    def free(self, steps: int, clean: bool = True) -> OfSteps:
        return ((FreeNumber("eta", 0, 1, self.eta),),) * steps

    def with_numbers(self, moves: tuple[Move, ...], numbers: Sequence[tuple[float, ...]]) -> tuple[Move, ...]:
        # a move that says nothing has the option's eta
        return tuple(
            replace(move, numbers=etas[: etas != (self.eta,)]) for move, etas in zip(moves, numbers, strict=True)
        )

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        eta = move.numbers[0] if move.numbers else self.eta
        if eta == 0:
            return State(straight(self, predict, state.x, move), state.moves + 1)
        epsilon, x0 = self.both(predict, state.x, move.t)
        alpha, sigma = self.schedule.alpha(move.t), self.schedule.sigma(move.t)
        alpha_next, sigma_next = self.schedule.alpha(move.stop), self.schedule.sigma(move.stop)
        # equation 16: the part of sigma_next that is drawn anew; where alpha**2 + sigma**2 is not 1 as well
        added = math.sqrt(max(0.0, sigma**2 - (alpha / alpha_next * sigma_next) ** 2))
        drawn = eta * sigma_next / sigma * added
        x = alpha_next * x0 + math.sqrt(max(0.0, sigma_next**2 - drawn**2)) * epsilon
        if drawn > 0:
            x = x + drawn * noise(state.moves)
        return replace(state, x=x, moves=state.moves + 1)


solver = DDIM
