"""A plan's sigmas as text, for programs that take a list of them; what such a list leaves out of the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import NoiseSchedule

DIGITS = 7
"""Significant ones of a sigma: a float32's, which is what the other programs make of it."""
PLAIN = ("ddim", "euler")
"""Solvers that are Euler's method in sigma, so that every program which takes sigmas has them."""


def sigmas(plan: Plan, schedule: NoiseSchedule) -> list[float]:
    """Noise over signal at the plan's times and its end, ``sqrt((1 - alphas_cumprod) / alphas_cumprod)``; falling.

    That is sigma in Karras et al. 2022, k-diffusion, ComfyUI and diffusers' Euler. Of flow matching it is the noise's
    share there, 1 at the beginning. Clean data is 0.

    Raises:
        InputError: a time lies outside the schedule.
    """
    return [math.exp(schedule.log_level(t)) for t in (*plan.times, plan.end)]


def text(values: Sequence[float]) -> str:
    """``14.61464, 0.8920609, 0.0``: positive decimals, for ComfyUI's ManualSigmas reads ``1e-05`` as two numbers."""
    digits = (np.format_float_positional(value, precision=DIGITS, fractional=False, trim="0") for value in values)
    return ", ".join(digits)


def left_out(plan: Plan) -> str | None:
    """What of the plan no list of sigmas holds, in words; ``None`` where it is Euler's method at the plan's times."""
    options = [f"{name}={value}" for name, value in plan.solver_options.items() if value]
    numbers, layers = (sum(map(bool, held)) for held in (plan.params, [step.skip for step in plan.steps]))
    parts = []
    if plan.solver not in PLAIN or options:
        parts.append(f"solver {plan.solver}" + f" ({', '.join(options)})" * bool(options))
    if numbers:
        parts.append(f"the free numbers of {numbers} step{'s' * (numbers > 1)}")
    if layers:
        parts.append(f"the layers left out at {layers} step{'s' * (layers > 1)}")
    return ", ".join(parts) or None
