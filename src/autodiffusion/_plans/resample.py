"""From a plan to one of another number of steps: the same curve of times, read off at other places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autodiffusion._errors import InputError
from autodiffusion._names import with_options
from autodiffusion._plans.free import OfSteps, values
from autodiffusion._plans.grids import spread
from autodiffusion._plans.plan import MAX_STEPS, Plan, tidy
from autodiffusion._plans.schedule import NoiseSchedule


def resample(plan: Plan, steps: int, least: float = 0.0) -> Plan:
    """The plan with another number of steps: a good start, not searched itself; its own number gives it back.

    Old step i of K stands at u = i / K and the end at u = 1, clean data as time ``least``. A monotone cubic (Fritsch
    and Carlson 1980) goes through them, and new step j of K' takes its time at u = j / K'. So the first time and the
    end stay. Where the last step stands at time ``least`` itself, or below, it stays too, and the others are set on the
    way to it. Times that were all whole are rounded, and moved apart where that makes them equal.

    The layers to leave out a new step takes from the old one nearest in u. So it does with each number that the solver
    leaves open for it, from the nearest for which that number was open.

    Args:
        least: the model's least time, below which no new step is set: 0 of diffusion, 1 of flow matching.

    Raises:
        InputError: ``steps`` is less than 1, or more than fit between the first time and the end; or the plan's steps
            hold numbers that its solver does not have there.
    """
    from scipy.interpolate import PchipInterpolator

    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps = {steps} is out of range; a plan has 1 to {MAX_STEPS} steps")
    if steps == len(plan.steps):
        return plan
    first, end = plan.times[0], min(least, plan.times[-1]) if plan.end is None else plan.end
    whole = all(t.is_integer() for t in plan.times)
    lowest = math.ceil(end) if plan.end is None else math.floor(end) + 1
    if whole and steps > first - lowest + 1:
        raise InputError(
            f"steps = {steps} do not fit; from {tidy(first)} down to {lowest} there are {tidy(first - lowest + 1)} "
            "whole times"
        )
    # nothing lies between a last step at the least time and clean data: it is the node at u = 1, of old and new
    at_zero = plan.end is None and math.isclose(plan.times[-1], end)
    nodes = plan.times if at_zero else (*plan.times, end)
    before, after = len(nodes) - 1, max(1, steps - at_zero)
    u = np.arange(steps) / after
    times = np.where(u < 1, PchipInterpolator(np.arange(len(nodes)) / before, nodes)(u), nodes[-1])
    if whole:
        times = spread(np.round(times) - lowest, int(first) - lowest + 1) + lowest
    if not np.all(np.diff([*times, -1 if plan.end is None else end]) < 0):
        raise InputError(f"steps = {steps} do not fit; times so close together cannot be told apart")
    origin = {"resampled": {"from": plan.digest, "steps": len(plan.steps)}}
    chosen = []
    for j, t in enumerate(times):
        nearest = min((2 * j * before + after - 1) // (2 * after), len(plan.steps) - 1)  # of two, the earlier
        chosen.append(plan.steps[nearest].model_copy(update={"t": float(t)}))
    resampled = plan.model_copy(update={"steps": tuple(chosen), "origin": origin})
    if not any(plan.params):
        return resampled
    return resampled.tuned(_numbers(plan, steps, before, after)).with_origin(**origin)


def _numbers(plan: Plan, steps: int, before: int, after: int) -> list[dict[str, float]]:
    """The free numbers of each new step; old step i stands at u = i / ``before``, new step j at j / ``after``."""
    # found by its name, for strategies resample too and see no solvers; what is open depends on no schedule
    solver: Any = with_options("solvers", plan.solver, plan.solver_options, NoiseSchedule.linear(MAX_STEPS + 1))
    clean, params = plan.end is None, plan.params
    old: OfSteps = solver.free(len(params), clean)
    new: OfSteps = solver.free(steps, clean)
    values(old, params)
    places: dict[str, list[int]] = {}
    for i, numbers in enumerate(old):
        for number in numbers:
            places.setdefault(number.name, []).append(i)
    known = {name: np.array(where) for name, where in places.items()}
    found: list[dict[str, float]] = [{} for _ in range(steps)]
    for j, numbers in enumerate(new):
        for number in numbers:
            if number.name in known:
                where = known[number.name]
                said = params[where[np.abs(where * after - j * before).argmin()]]  # of two, the earlier
                if number.name in said:
                    found[j][number.name] = min(max(said[number.name], number.low), number.high)
    return found
