"""The named grids: time steps that people use without a search. ``uniform:4`` names one of four steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from autodiffusion.errors import InputError, nearest
from autodiffusion.schedule import Floats, NoiseSchedule


def uniform(steps: int, schedule: NoiseSchedule) -> Floats:
    """Multiples of T // steps from 0: DDIM's spacing, ``leading`` in diffusers."""
    return np.arange(steps, dtype=np.float64)[::-1] * (len(schedule) // steps)


def linspace(steps: int, schedule: NoiseSchedule) -> Floats:
    """Evenly from T - 1 to 0, both included."""
    return np.asarray(np.linspace(len(schedule) - 1, 0, steps), dtype=np.float64)


def trailing(steps: int, schedule: NoiseSchedule) -> Floats:
    """T - 1 and down from it by T / steps, rounded (Lin et al. 2024, table 2)."""
    return np.asarray(np.round(np.arange(len(schedule), 0, -len(schedule) / steps)[:steps]) - 1, dtype=np.float64)


def quadratic(steps: int, schedule: NoiseSchedule) -> Floats:
    """Squares of an even grid up to 0.8 T, dense near clean data (Song et al. 2021, appendix D.2)."""
    return np.asarray(np.floor(np.linspace(np.sqrt(0.8 * len(schedule)), 0, steps) ** 2), dtype=np.float64)


def log_snr(steps: int, schedule: NoiseSchedule) -> Floats:
    """Even in log-SNR from T - 1 to 0 (DPM-Solver, Lu et al. 2022, section 4.1)."""
    return schedule.time_at(np.linspace(schedule.log_snr(len(schedule) - 1), schedule.log_snr(0), steps))


def karras(steps: int, schedule: NoiseSchedule, rho: float = 7) -> Floats:
    """Even in the ``rho``-th root of noise over signal (Karras et al. 2022, equation 5)."""
    first, last = (np.exp(-schedule.log_snr(t) / rho) for t in (len(schedule) - 1, 0))
    return schedule.time_at(-rho * np.log(np.linspace(first, last, steps)))


def beta(steps: int, schedule: NoiseSchedule, a: float = 0.6, b: float = 0.6) -> Floats:
    """Quantiles of Beta(0.6, 0.6) over the time range, dense at both ends (Lee et al. 2024)."""
    from scipy.stats import beta as distribution

    return np.asarray(distribution.ppf(1 - np.linspace(0, 1, steps), a, b)) * (len(schedule) - 1)


GRIDS: dict[str, Callable[[int, NoiseSchedule], Floats]] = {
    f.__name__: f for f in (uniform, linspace, trailing, quadratic, log_snr, karras, beta)
}
"""Every named grid: a function of the number of steps and the schedule that gives times in falling order."""


def grid(name: str, steps: int, schedule: NoiseSchedule, *, continuous: bool = False) -> tuple[float, ...]:
    """The times of a named grid, strictly decreasing, in [0, T - 1].

    Whole numbers unless ``continuous``; what rounding makes equal is moved apart by as little as possible.

    Raises:
        InputError: an unknown name, or ``steps`` outside 1 to T.
    """
    if name not in GRIDS:
        raise InputError(f"grid '{name}' is unknown {nearest(name, GRIDS)}")
    check_steps(steps, schedule)
    times = GRIDS[name](steps, schedule)
    if continuous and np.all(np.diff(times) < -1e-9):
        return tuple(float(t) for t in np.clip(times, 0, len(schedule) - 1))
    return tuple(float(t) for t in spread(np.round(times), len(schedule)))


def check_steps(steps: int, schedule: NoiseSchedule) -> None:
    """Raises :class:`InputError` unless 1 <= ``steps`` <= T."""
    if not 1 <= steps <= len(schedule):
        raise InputError(f"steps = {steps} is out of range; this model has 1 to {len(schedule)} time steps")


def spread(positions: ArrayLike, count: int, gap: int = 1) -> Floats:
    """Whole positions in [0, count - 1], each at least ``gap`` below the one before, close to those given.

    Needs ``(len(positions) - 1) * gap < count``. Positions that already fit come back unchanged.
    """
    # measured from a staircase of the smallest gaps, "at least gap apart" is "not increasing"
    staircase = np.arange(len(np.atleast_1d(positions)), dtype=np.float64)[::-1] * gap
    offsets = np.asarray(positions, dtype=np.float64) - staircase
    limit = count - 1 - staircase[0]
    return np.minimum.accumulate(np.clip(offsets, 0, limit)) + staircase


def parse(text: str) -> tuple[str, int]:
    """``karras:6`` as its name and number of steps.

    Raises:
        InputError: not of that form, or an unknown name.
    """
    name, _, number = text.partition(":")
    if name not in GRIDS:
        raise InputError(f"grid '{name}' is unknown {nearest(name, GRIDS)}")
    if not number.isdecimal():
        raise InputError(f"grid '{text}' has no number of steps; write {name}:4")
    return name, int(number)
