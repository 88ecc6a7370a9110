"""Euler in sigma / alpha, of flow matching in sigma (Karras et al. 2022; k-diffusion)."""

from __future__ import annotations

from dataclasses import dataclass

from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State
from autodiffusion.solvers._linear import straight


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's step of d(x / alpha) / d(sigma / alpha) = epsilon (Karras et al. 2022, algorithm 1).

    Of flow matching it is Euler's step of dx / dsigma = epsilon - x0. It equals deterministic DDIM (Song et al. 2021,
    equation 13), and is here for its name.
    """

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        return State(straight(self, predict, state.x, move), state.moves + 1)


solver = Euler
