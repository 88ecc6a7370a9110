"""The named grids: time steps that people use without a search. ``uniform:4`` names one of four steps.

A grid of K steps is K times; a plan of them ends in clean data, which diffusers writes as a last sigma of 0. Grids that
go by sigma (diffusers' and k-diffusion's: noise over signal, or of flow matching the noise's share) have a time where
the schedule has that much of it. T - 1 stands for the last training step, 0 for the first; of flow matching these are T
and 1, and its grids are made even and then shifted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from autodiffusion._errors import InputError, nearest
from autodiffusion._plans.schedule import Floats, NoiseSchedule

Made = TypeVar("Made")


def uniform(steps: int, schedule: NoiseSchedule) -> Floats:
    """Multiples of T // steps from 0: DDIM's spacing, ``leading`` in diffusers.

    Of flow matching, where at 0 there is nothing left to do, those of T / steps up to T: Flux's.
    """
    if schedule.continuous:
        return trailing(steps, schedule)
    return np.arange(steps, dtype=np.float64)[::-1] * (len(schedule) // steps)


def linspace(steps: int, schedule: NoiseSchedule) -> Floats:
    """Evenly from T - 1 to 0, both included. Of flow matching diffusers' own, Stable Diffusion 3's."""
    return schedule.shifted(np.linspace(schedule.last, schedule.low, steps))


def trailing(steps: int, schedule: NoiseSchedule) -> Floats:
    """T - 1 and down from it by T / steps, rounded (Lin et al. 2024, table 2)."""
    times = np.arange(len(schedule), 0, -len(schedule) / steps)[:steps]
    return schedule.shifted(times) if schedule.continuous else np.round(times) - 1


def quadratic(steps: int, schedule: NoiseSchedule) -> Floats:
    """Squares of an even grid up to 0.8 T, dense near clean data (Song et al. 2021, appendix D.2).

    Of flow matching up to T, for below it there is signal in a sample.
    """
    if schedule.continuous:
        return schedule.shifted(np.linspace(np.sqrt(schedule.last), np.sqrt(schedule.low), steps) ** 2)
    return np.asarray(np.floor(np.linspace(np.sqrt(0.8 * len(schedule)), 0, steps) ** 2), dtype=np.float64)


def log_snr(steps: int, schedule: NoiseSchedule) -> Floats:
    """Even in log-SNR from T - 1 to 0 (DPM-Solver, Lu et al. 2022, section 4.1).

    So is diffusers' ``use_lu_lambdas``, which differs in how it rounds times. Of flow matching from T - 1 on, the last
    training step with a signal.
    """
    first, last = (schedule.log_snr(float(t)) for t in schedule.shifted([schedule.noisiest, schedule.low]))
    return schedule.time_at(np.linspace(first, last, steps))


def exponential(steps: int, schedule: NoiseSchedule) -> Floats:
    """Even in the logarithm of sigma: diffusers' ``use_exponential_sigmas``."""
    return schedule.time_at_log_level(np.linspace(*_log_levels(schedule), steps))


def karras(steps: int, schedule: NoiseSchedule, rho: float = 7) -> Floats:
    """Even in the ``rho``-th root of sigma (Karras et al. 2022, equation 5).

    Its noise is that of diffusers' ``use_karras_sigmas``. Times differ by up to one step: theirs are interpolated in
    log sigma, ours in log alpha, as the schedule is.
    """
    first, last = (np.exp(log_level / rho) for log_level in _log_levels(schedule))
    return schedule.time_at_log_level(rho * np.log(np.linspace(first, last, steps)))


def beta(steps: int, schedule: NoiseSchedule) -> Floats:
    """Quantiles of Beta(0.6, 0.6) over the time range, dense at both ends (Lee et al. 2024).

    The paper draws time steps so. diffusers' ``use_beta_sigmas`` takes quantiles of noise: :func:`beta_sigmas`.
    """
    return schedule.shifted(schedule.low + _beta_quantiles(steps) * (schedule.last - schedule.low))


def beta_sigmas(steps: int, schedule: NoiseSchedule) -> Floats:
    """Quantiles of Beta(0.6, 0.6) over the range of sigma: diffusers' ``use_beta_sigmas``.

    Most of that range is noise beyond what a picture shows through, on the cosine schedule nearly all of it.
    """
    most, least = (float(np.exp(log_level)) for log_level in _log_levels(schedule))
    return schedule.time_at_log_level(np.log(least + _beta_quantiles(steps) * (most - least)))


def _log_levels(schedule: NoiseSchedule) -> tuple[float, float]:
    """The logarithms of the largest and the smallest sigma of a grid."""
    first, last = (schedule.log_level(float(t)) for t in schedule.shifted([schedule.last, schedule.low]))
    return first, last


def _beta_quantiles(steps: int) -> Floats:
    """Of Beta(0.6, 0.6), from 1 to 0, ``[steps]``."""
    from scipy.stats import beta as distribution

    return np.asarray(distribution.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6), dtype=np.float64)


ALIGNED: dict[str, tuple[float, ...]] = {
    "ays_sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Noise over signal at the eleven nodes of ten steps: Align Your Steps (Sabour et al. 2024) for Stable Diffusion 1.5,
XL and Video, as printed at research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html. diffusers' ``AysSchedules``
has 0 for the last."""


def aligned(levels: tuple[float, ...], steps: int, schedule: NoiseSchedule) -> Floats:
    """A list of :data:`ALIGNED` in ``steps`` steps: the nodes but the last, where clean data stands instead.

    Numbers of steps other than the list's own are interpolated linearly in the logarithm, as on the authors' page. On
    another noise schedule than its model's the list keeps its noise over signal, so it may begin below T - 1. What lies
    beyond the schedule at either end of the list becomes the schedule's own end.

    Raises:
        InputError: the schedule ends before the second or behind the last but one of the levels.
    """
    most, least = (float(np.exp(-schedule.log_snr(t))) for t in (schedule.noisiest, schedule.first))
    if not least < levels[-2] < levels[1] < most:
        raise InputError(
            f"Align Your Steps' list with noise over signal of {levels[1]:g} to {levels[-2]:g} does not fit a noise "
            f"schedule of {most:.4g} to {least:.4g}; take another grid"
        )
    logs = np.log([min(levels[0], most), *levels[1:-1], max(levels[-1], least)])
    own = np.arange(len(levels)) / (len(levels) - 1)
    ratios = np.exp(np.interp(np.arange(steps) / steps, own, logs))
    return schedule.time_at(-np.log(ratios))


NAMED: dict[str, Callable[[int, NoiseSchedule], Floats]] = {
    **{f.__name__: f for f in (uniform, linspace, trailing, quadratic, log_snr, karras, beta)},
    "exponential": exponential,
    "lu": log_snr,
    "beta_sigmas": beta_sigmas,
    **{name: partial(aligned, levels) for name, levels in ALIGNED.items()},
}
"""Every named grid: a function of the number of steps and the schedule that gives times in falling order. Some do not
fit every noise schedule. A search begins with those that do, so that one more makes it another search."""


def grid(name: str, steps: int, schedule: NoiseSchedule, *, continuous: bool = False) -> tuple[float, ...]:
    """The times of a named grid, strictly decreasing, within the schedule's training steps.

    Whole numbers unless ``continuous`` or the schedule is so; what rounding makes equal is moved apart by as little as
    possible.

    Raises:
        InputError: an unknown name, ``steps`` outside 1 to T, or a list that does not fit the schedule.
    """
    if name not in NAMED:
        raise InputError(f"grid '{name}' is unknown {nearest(name, NAMED)}")
    check_steps(steps, schedule)
    times = NAMED[name](steps, schedule)
    first = schedule.first
    if (continuous or schedule.continuous) and np.all(np.diff(times) < -1e-9):
        return tuple(float(t) for t in np.clip(times, first, schedule.last))
    return tuple(float(t) for t in spread(np.round(times) - first, len(schedule)) + first)


def fitting(make: Callable[[str], Made]) -> dict[str, Made]:
    """What ``make`` makes of the named grids, by their names, without those that it refuses as they do not fit.

    Raises:
        InputError: it refuses uniform steps, which fit whatever has so many.
    """
    found = {"uniform": make("uniform")}
    for name in NAMED:
        with suppress(InputError):
            found[name] = make(name)
    return found


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
    if name not in NAMED:
        raise InputError(f"grid '{name}' is unknown {nearest(name, NAMED)}")
    if not number.isdecimal():
        raise InputError(f"grid '{text}' has no number of steps; write {name}:4")
    return name, int(number)
