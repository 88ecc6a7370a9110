"""FlowSchedule: the noise schedule of flow matching, and where its shift sets the named grids."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from autodiffusion._errors import InputError, nearest
from autodiffusion._plans.schedule import Floats, NoiseSchedule

FLOOR = 1e-6
"""Least share of signal and of noise, for logarithms; that of diffusers' UniPC, where there is no signal."""

SHIFTS = {"exponential": math.exp, "linear": float}
"""diffusers' ``time_shift_type``: from mu, which depends on the resolution, to the shift."""


@dataclass(frozen=True, eq=False)
class FlowSchedule(NoiseSchedule):
    """Flow matching (Lipman et al. 2023; Esser et al. 2024): ``x_t = (1 - s) x_0 + s noise`` with ``s = t / T``.

    Time is what the network is asked with, in (0, T]; training steps are 1 to T. At T there is no signal. Shares of
    signal and of noise below 1e-6 count as that, so that log-SNRs are finite.

    Attributes:
        shift: of a grid, whose even share s becomes ``shift s / (1 + (shift - 1) s)`` (Esser et al. 2024, equation 23);
            above 0. It says where the named grids lie, not how much noise there is at a time.
        end: where an even grid ends that reaches the least noise, before it is shifted.
    """

    shift: float = 1.0
    end: float = 1.0

    predictions: ClassVar[tuple[str, ...]] = ("flow_prediction", "sample")
    pull: ClassVar[float] = 1.0
    continuous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shift < math.inf:
            raise InputError(f"shift = {self.shift:g} is not above 0; 1 is none")

    @classmethod
    def of(cls, steps: int = 1000, shift: float = 1.0, *, dynamic: bool = False) -> FlowSchedule:
        """Of ``steps`` training steps.

        Args:
            dynamic: the shift is that of a resolution. diffusers begins with trained steps that a shift which is always
                the same has moved already, so that it moves the end of an even grid twice: first here.

        Raises:
            InputError: fewer than 2 ``steps``, or a shift that is not above 0.
        """
        shares = np.clip(np.arange(1, steps + 1) / steps, FLOOR, 1 - FLOOR) if steps > 0 else np.zeros(0)
        schedule = cls((1 - shares) ** 2, shift)
        return schedule if dynamic else replace(schedule, end=float(schedule.shifted(1.0)))

    @classmethod
    def from_scheduler(cls, config: dict[str, Any], image_seq_len: int | None = None) -> FlowSchedule:
        """From the configuration of a diffusers scheduler for flow matching.

        Args:
            image_seq_len: of how many tokens the network sees an image, for a shift by resolution; without it the
                configuration's largest.

        Raises:
            InputError: a ``time_shift_type`` that diffusers does not have, time that runs backwards, or numbers that
                are out of range.
        """
        steps = int(config.get("num_train_timesteps", 1000))
        if config.get("invert_sigmas"):
            raise InputError("scheduler: invert_sigmas is set, so that its time runs from data to noise; it must not")
        if not config.get("use_dynamic_shifting"):
            shift = config.get("shift", config.get("flow_shift"))
            return cls.of(steps, 1.0 if shift is None else float(shift))
        kind = config.get("time_shift_type", "exponential")
        if kind not in SHIFTS:
            raise InputError(f"scheduler: time_shift_type '{kind}' is unknown {nearest(str(kind), SHIFTS)}")
        low, high = (int(config.get(f"{end}_image_seq_len", n)) for end, n in (("base", 256), ("max", 4096)))
        # calculate_shift of diffusers' pipelines; theirs of Stable Diffusion 3 has 1.16 where nothing is said
        least, most = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
        length = high if image_seq_len is None else image_seq_len
        return cls.of(steps, SHIFTS[kind](least + (most - least) * (length - low) / (high - low)), dynamic=True)

    @property
    def first(self) -> float:
        """1: at time 0 there is clean data."""
        return 1.0

    @cached_property
    def last(self) -> float:
        """T."""
        return float(len(self))

    @property
    def noisiest(self) -> float:
        """T - 1."""
        return self.last - 1

    @property
    def low(self) -> float:
        """The end of an even grid."""
        return self.end

    def shifted(self, times: ArrayLike) -> Floats:
        """Where a grid that is even in time lies: after the shift."""
        shares = np.asarray(times, dtype=np.float64) / len(self)
        return np.asarray(len(self) * self.shift * shares / (1 + (self.shift - 1) * shares))

    def sigma(self, t: float | None) -> float:
        """s."""
        if t is None:
            return 0.0
        self._check(t)
        share = t / self.last
        return share if FLOOR <= share <= 1 - FLOOR else min(max(share, FLOOR), 1 - FLOOR)

    def alpha(self, t: float | None) -> float:
        """1 - s."""
        return 1 - self.sigma(t)

    def log_alpha(self, t: float | None) -> float:
        """log(1 - s)."""
        return math.log1p(-self.sigma(t))

    def scale(self, t: float | None) -> float:
        """1: straight ways are straight in s, with the velocity ``noise - x_0`` as slope."""
        return 1.0

    def log_level(self, t: float | None) -> float:
        """log s, 0 at T."""
        return math.log(t / len(self)) if t else -math.inf

    def time_at_log_level(self, logs: ArrayLike) -> Floats:
        """The inverse of :meth:`log_level`."""
        return np.asarray(len(self) * np.exp(np.minimum(np.asarray(logs, dtype=np.float64), 0)))

    def log_snr(self, t: float | None) -> float:
        """log((1 - s) / s)."""
        sigma = self.sigma(t)
        return math.inf if sigma == 0 else math.log1p(-sigma) - math.log(sigma)

    def time_at(self, log_snr: ArrayLike) -> Floats:
        """The inverse of :meth:`log_snr`."""
        return np.asarray(len(self) * np.exp(-np.logaddexp(0, np.asarray(log_snr, dtype=np.float64))))


def is_flow(config: dict[str, Any], kind: str = "") -> bool:
    """Whether a diffusers scheduler of this configuration is of flow matching.

    Args:
        kind: its class, where the configuration does not say it.
    """
    named = "FlowMatch" in str(config.get("_class_name", kind))
    return named or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"
