"""NoiseSchedule: how much of a sample is signal and how much noise, at any real time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autodiffusion._errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A variance-preserving schedule: ``x_t = alpha(t) x_0 + sigma(t) noise``, ``alpha**2 + sigma**2 = 1``.

    Time is counted in the model's own training steps, 0 (little noise) to T - 1 (mostly noise), and may be any real
    number between: log alpha is interpolated linearly, as DPM-Solver does (Lu et al. 2022, appendix D.4), whose
    continuous time s in (0, 1] is ``t = s T - 1`` here. ``None`` stands for clean data: alpha 1, sigma 0.

    Attributes:
        alphas_cumprod: squared alpha at each training step, float64 ``[T]``, in (0, 1), strictly decreasing.
    """

    alphas_cumprod: Floats

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample")
    """What networks trained with it predict. The first is what solvers work with: the slope of :meth:`scale`."""
    pull: ClassVar[float] = 0.0
    """How much of the clean data that slope takes away: it is ``epsilon - pull x_0``."""
    continuous: ClassVar[bool] = False
    """Whether the network takes any real time, and not the training steps alone."""

    def __post_init__(self) -> None:
        values = np.array(self.alphas_cumprod, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2:
            raise InputError(f"alphas_cumprod: shape {values.shape} is not [T] with T of at least 2")
        if not np.all(np.isfinite(values)) or values.max() >= 1 or values.min() <= 0:
            raise InputError("alphas_cumprod: values must lie in (0, 1)")
        if np.any(np.diff(values) >= 0):
            raise InputError("alphas_cumprod: values must strictly decrease with time")
        values.setflags(write=False)
        object.__setattr__(self, "alphas_cumprod", values)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def first(self) -> float:
        """The training step with the least noise."""
        return 0.0

    @property
    def last(self) -> float:
        """The training step with the most noise, where samples begin."""
        return float(len(self) - 1)

    @property
    def noisiest(self) -> float:
        """The last training step whose log-SNR means something."""
        return self.last

    @property
    def low(self) -> float:
        """Where an even grid of times ends that reaches the least noise, before :meth:`shifted`."""
        return self.first

    def shifted(self, times: ArrayLike) -> Floats:
        """Where a grid that is even in time lies: the same times."""
        return np.asarray(times, dtype=np.float64)

    @cached_property
    def _log_alphas(self) -> Floats:
        return np.asarray(0.5 * np.log(self.alphas_cumprod))

    def log_alpha(self, t: float | None) -> float:
        """log alpha at time ``t`` in [0, T - 1]; 0 for clean data.

        Raises:
            InputError: ``t`` lies outside the schedule.
        """
        if t is None:
            return 0.0
        self._check(t)
        i = int(t)
        here = float(self._log_alphas[i])
        return here if t == i else (float(self._log_alphas[i + 1]) - here) * (t - i) + here

    def _check(self, t: float) -> None:
        if not 0 <= t <= self.last:
            raise InputError(f"t = {t:g} lies outside the model's time steps {self.first:g} to {self.last:g}")

    def alpha(self, t: float | None) -> float:
        """The signal's share of the sample at time ``t``."""
        return math.exp(self.log_alpha(t))

    def sigma(self, t: float | None) -> float:
        """The noise's share of the sample at time ``t``."""
        return math.sqrt(-math.expm1(2 * self.log_alpha(t)))

    def scale(self, t: float | None) -> float:
        """What a sample is divided by for straight ways from noise to data to be straight in ``sigma / scale``.

        The slope there, d(x / scale) / d(sigma / scale), is the first of :attr:`predictions`: here epsilon, for
        ``x / alpha = x_0 + (sigma / alpha) epsilon``.
        """
        return self.alpha(t)

    def slope(self, epsilon: Tensor, x0: Tensor) -> Tensor:
        """That slope, of the way from this noise to this clean data."""
        return epsilon - self.pull * x0 if self.pull else epsilon

    def log_level(self, t: float | None) -> float:
        """The logarithm of what k-diffusion, ComfyUI and diffusers call sigma, ``sigma / scale``."""
        return -self.log_snr(t)

    def time_at_log_level(self, logs: ArrayLike) -> Floats:
        """The inverse of :meth:`log_level`, for one value or many; what lies beyond the schedule's ends is clipped."""
        return self.time_at(-np.asarray(logs, dtype=np.float64))

    def log_snr(self, t: float | None) -> float:
        """Half the logarithm of the signal-to-noise ratio, ``log(alpha / sigma)``: DPM-Solver's lambda."""
        log_alpha = self.log_alpha(t)
        return math.inf if log_alpha == 0 else log_alpha - 0.5 * math.log(-math.expm1(2 * log_alpha))

    def time_at(self, log_snr: ArrayLike) -> Floats:
        """The inverse of :meth:`log_snr`, for one value or many; what lies beyond the schedule's ends is clipped."""
        lambdas = np.asarray(log_snr, dtype=np.float64)
        log_alphas = -0.5 * np.logaddexp(0, -2 * lambdas)
        return np.interp(-log_alphas, -self._log_alphas, np.arange(len(self), dtype=np.float64))

    @classmethod
    def linear(cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> NoiseSchedule:
        """Betas uniform from ``start`` to ``end`` (Ho et al. 2020; ADM's LSUN models)."""
        return cls.from_betas(np.linspace(start, end, steps))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> NoiseSchedule:
        """Square roots of the betas uniform (latent diffusion, Stable Diffusion)."""
        return cls.from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
        """Nichol and Dhariwal 2021, equation 17, betas cut at ``max_beta``."""
        s = np.arange(steps + 1) / steps
        signal = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls.from_betas(np.minimum(1 - signal[1:] / signal[:-1], max_beta))

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> NoiseSchedule:
        """From the variances added at each step, ``[T]``, in (0, 1)."""
        return cls(np.asarray(np.cumprod(1 - np.asarray(betas, dtype=np.float64)), dtype=np.float64))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NoiseSchedule:
        """From the configuration of a diffusers scheduler (``scheduler_config.json``) of a variance-preserving model.

        Raises:
            InputError: a ``beta_schedule`` that is none of diffusers' three for such models.
        """
        steps = int(config.get("num_train_timesteps", 1000))
        if config.get("trained_betas") is not None:
            schedule = cls.from_betas(config["trained_betas"])
        else:
            kind = config.get("beta_schedule", "linear")
            bounds = {"start": config.get("beta_start", 1e-4), "end": config.get("beta_end", 0.02)}
            if kind == "linear":
                schedule = cls.linear(steps, **bounds)
            elif kind == "scaled_linear":
                schedule = cls.scaled_linear(steps, **bounds)
            elif kind == "squaredcos_cap_v2":
                schedule = cls.cosine(steps)
            else:
                known = ("linear", "scaled_linear", "squaredcos_cap_v2")
                raise InputError(f"scheduler: beta_schedule '{kind}' is unknown {nearest(str(kind), known)}")
        return schedule.with_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """No signal left at T - 1 (Lin et al. 2024, algorithm 1), but for what :meth:`without_zero` leaves."""
        roots = np.sqrt(self.alphas_cumprod)
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        return NoiseSchedule.without_zero(roots**2)

    @classmethod
    def without_zero(cls, alphas_cumprod: ArrayLike) -> NoiseSchedule:
        """From ``alphas_cumprod`` whose last value may be 0, which logarithms cannot have, nor solvers.

        Solvers find clean data as ``(x - sigma epsilon) / alpha``, in float32. Too small an alpha leaves nothing there
        of what a network says that predicts v or the data itself. A last value of 0 becomes that of diffusers' Euler,
        2**-24, or a quarter of the one before where that is less.
        """
        values = np.array(alphas_cumprod, dtype=np.float64)
        if values.ndim == 1 and len(values) > 1 and values[-1] == 0:
            values[-1] = min(2.0**-24, values[-2] / 4)
        return cls(values)

    @staticmethod
    def flow(steps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """Flow matching (:class:`autodiffusion._plans.flow.FlowSchedule`), whose named grids are shifted by ``shift``.

        Stable Diffusion 3 has a shift of 3.

        Raises:
            InputError: fewer than 2 ``steps``, or a shift that is not above 0.
        """
        from autodiffusion._plans.flow import FlowSchedule

        return FlowSchedule.of(steps, shift)


def unfit_for_plans(config: Any, kind: str) -> str:
    """Why no plan can take the place of a diffusers scheduler of class ``kind``; empty where one may.

    What runs from data to noise is told by its name, for its configuration is that of the other direction.
    """
    if "Inverse" in kind:
        return f"runs from data to noise, which no plan does; give {kind.replace('Inverse', '')} in its place"
    if config.get("timestep_type") == "continuous":
        return (
            "has timestep_type = continuous, and plans have a model's discrete time steps; give one that has them too"
        )
    return ""
