"""Ancestral sampling with Euler steps (k-diffusion)."""

from __future__ import annotations

from dataclasses import dataclass

from autodiffusion._errors import InputError
from autodiffusion.solvers.ddim import DDIM


@dataclass(frozen=True)
class EulerAncestral(DDIM):
    """An Euler step in sigma / alpha to less noise than the stop has, and fresh noise for the rest, as in k-diffusion.

    It equals DDIM with the same eta (Song et al. 2021, equation 16), and with 1, the default, DDPM's sampler.

    Attributes:
        eta: how much of the ancestral noise is drawn; in [0, 1]. Each step may have its own.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"solver euler_ancestral: eta = {self.eta} lies outside 0 to 1")


solver = EulerAncestral
