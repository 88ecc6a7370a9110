"""What ``bench.free_numbers`` works with: plans as vectors, Adam on times and numbers, cells of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autodiffusion._evaluation.evaluate import derive_seed
from autodiffusion._plans.grids import NAMED, grid
from autodiffusion._plans.plan import Plan
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.models._model import Model
from autodiffusion.solvers._base import build, solve
from autodiffusion.strategies.ladder import Asking, Ladder
from bench._gradient import differentiable, falling

TEACHER, POOL, BATCH, RATE = 50, 200, 50, 0.1
"""Uniform DDIM steps of the teacher, its samples, those of one step of Adam, and its rate."""

Vector = NDArray[np.float64]


class Turning(Ladder):
    """Goes from its start to the numbers at once, without refining the times alone before."""

    def _refine(self, what: str = "times", step: float | None = None) -> Asking:
        if what != "times":
            yield from super()._refine(what, step)


@dataclass(frozen=True)
class Box:
    """Plans of a space as vectors: the times, if they move, and the numbers, each in units of the ladder's first step.

    Attributes:
        start: where the times stay if they don't move.
    """

    space: SearchSpace
    start: Plan
    times: bool

    @cached_property
    def units(self) -> Vector:
        numbers = [Ladder.number_step * (number.high - number.low) for _, number in self.space.numbers]
        return np.array([Ladder.step * self.space.times[-1]] * self._moved + numbers)

    @property
    def bounds(self) -> Vector:
        """``[dimensions, 2]``."""
        numbers = [[number.low, number.high] for _, number in self.space.numbers]
        return np.array([[0, self.space.times[-1]]] * self._moved + numbers) / self.units[:, None]

    @property
    def _moved(self) -> int:
        return self.space.steps if self.times else 0

    def vector(self, plan: Plan) -> Vector:
        return np.concatenate([self.space.positions(plan)[: self._moved], self.space.values(plan)]) / self.units

    def plan(self, vector: Vector) -> Plan:
        """The nearest plan of the space."""
        times, numbers = np.split(vector * self.units, [self._moved])
        return self.space.plan(times if self.times else self.space.positions(self.start), numbers)


def gradient(model: Model, space: SearchSpace, start: Plan | None, budget: int, seed: int) -> tuple[list[Plan], int]:
    """Adam on the squared distance in pixels to the teacher's samples, from a plan or, without one, from the named grid
    that has the least distance.

    Times and averaging are as in ``bench.ideas``. A forward and backward pass counts as 3 network evaluations.

    Returns:
        The plan found and the start, and what it took in network evaluations times samples.
    """
    last, noise = int(space.times[-1]), model.noise(range(POOL), derive_seed(seed, "gradient"))
    left = budget - POOL * TEACHER
    with torch.no_grad():
        target = _draw(model, Plan.of("ddim", grid("uniform", TEACHER, model.schedule)), noise)
        if start is None:
            left -= POOL * space.steps * len(NAMED)
            grids = [space.named(name, model.schedule) for name in NAMED]
            start = min(grids, key=lambda plan: float((_draw(model, plan, noise) - target).square().mean()))
    logits = torch.tensor(np.log(np.maximum(-np.diff([last, *start.times, 0]), 1)), requires_grad=True)
    numbers = torch.tensor(space.values(start), requires_grad=True)
    keys = [(step, number.name) for step, number in space.numbers]
    adam, order = torch.optim.Adam([logits, numbers], lr=RATE), torch.Generator().manual_seed(seed)
    iterations = max(0, left // (3 * BATCH * space.steps))
    kept = []
    for iteration in range(iterations):
        batch = torch.randperm(POOL, generator=order)[:BATCH]
        drawn = differentiable(
            model, noise[batch], falling(logits, last), dict(zip(keys, numbers.unbind(), strict=True))
        )
        adam.zero_grad()
        (drawn - target[batch]).square().mean().backward()
        adam.step()
        if iteration >= iterations // 2:
            kept.append(torch.cat([falling(logits.detach(), last), numbers.detach()]))
    spent = budget - left + iterations * 3 * BATCH * space.steps
    if not kept:
        return [start], spent
    times, values = np.split(torch.stack(kept).mean(0).numpy(), [space.steps])
    return [space.plan(times, values), start], spent


def _draw(model: Model, plan: Plan, noise: Tensor) -> Tensor:
    solver = build(plan.solver, model.schedule, plan.solver_options)
    return solve(solver, lambda x, t: model.predict(x, t, None), noise, plan.times, params=plan.params)


def cell(rows: Sequence[dict[str, Any]]) -> str:
    """The median over seeds, the least and the greatest, and the cost's median; empty without rows."""
    if not rows:
        return ""
    fids, spent = [row["fid"] for row in rows], median(row["evaluations"] for row in rows) / 1000
    return f"{median(fids):.3g} [{min(fids):.3g}, {max(fids):.3g}] ({spent:,.0f}k)"
