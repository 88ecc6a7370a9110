"""Sampling many plans on the same noise: what two plans share at their beginning is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from autodiffusion.errors import InputError
from autodiffusion.models import Model
from autodiffusion.models._model import LABELS
from autodiffusion.plan import Plan, tidy
from autodiffusion.solvers import Move, Solver, State, build

Tick: TypeAlias = Callable[[int], None]
"""Called with the number of network evaluations just made, for a progress bar."""


@dataclass
class Cost:
    """What was spent, in network evaluations times samples: exact, and the same on every machine.

    Attributes:
        evaluations: made.
        saved: not made because plans shared a beginning.
    """

    evaluations: int = 0
    saved: int = 0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.evaluations - other.evaluations, self.saved - other.saved)


@dataclass(frozen=True)
class Stretch:
    """One move of a plan with everything that decides its result; plans with equal first stretches share them."""

    solver: Solver
    name: str
    move: Move
    skip: frozenset[int]

    @property
    def order(self) -> tuple[Any, ...]:
        """A key that sorts plans so that shared beginnings stand next to each other, earliest times first."""
        stop = -1.0 if self.move.stop is None else self.move.stop
        return (-self.move.t, sorted(self.skip), self.name, -stop, self.move.ask, self.move.order)


def stretches(plan: Plan, model: Model) -> tuple[Stretch, ...]:
    """The plan as its solver will walk it.

    Raises:
        InputError: an unknown solver or option, or a time outside the model's schedule.
    """
    solver = build(plan.solver, model.schedule, plan.solver_options)
    moves = solver.moves(plan.times, plan.end)
    if len(moves) != len(plan.steps):
        raise InputError(
            f"solver {plan.solver} makes {len(moves)} moves of {len(plan.steps)} steps; it needs one a step"
        )
    last = len(model.schedule) - 1
    for t in plan.times:
        if t > last:
            raise InputError(f"t = {tidy(t)} lies outside the time steps of {model.name}, 0 to {last}")
        if not solver.continuous and not t.is_integer():
            raise InputError(f"t = {t} is not whole, and solver {plan.solver} takes the model's own time steps only")
    name = f"{plan.solver} {plan.solver_options}"
    return tuple(Stretch(solver, name, move, step.skip) for move, step in zip(moves, plan.steps, strict=True))


def nfe(plan: Plan, model: Model) -> int:
    """Network evaluations for one sample of the plan."""
    return sum(len(stretch.move.ask) for stretch in stretches(plan, model))


@torch.inference_mode()
def walk(
    model: Model, plans: Sequence[Plan], indices: Sequence[int], seed: int, cost: Cost, tick: Tick | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Samples every plan for the samples ``indices``, and yields (place in ``plans``, x ``[len(indices), *shape]``).

    All plans begin in the same noise and conditions. They come sorted, so that one state a step of the current plan is
    all that is kept, with what the network last said there: a plan that goes on from it elsewhere need not ask again.
    """
    noise, condition = model.noise(indices, seed), model.condition(indices, seed)
    paths = [stretches(plan, model) for plan in plans]
    trail: list[Stretch] = []
    states = [State(noise)]
    said: list[tuple[float, frozenset[int], Tensor] | None] = [None]

    def fresh(number: int) -> Tensor:
        return model.noise(indices, seed, stream=LABELS + 1 + number)

    def go_on(stretch: Stretch) -> None:
        def predict(x: Tensor, t: float) -> Tensor:
            last = said[-1]
            if x is states[-1].x and last is not None and last[:2] == (t, stretch.skip):
                cost.saved += len(x)
                return last[2]
            cost.evaluations += len(x)
            if tick:
                tick(len(x))
            answer = model.predict(x, t, condition)
            if x is states[-1].x:
                said[-1] = (t, stretch.skip, answer)
            return answer

        with model.without(stretch.skip):
            state = stretch.solver.step(predict, states[-1], stretch.move, fresh)
        trail.append(stretch)
        states.append(state)
        said.append(None)

    for place in sorted(range(len(plans)), key=lambda i: [stretch.order for stretch in paths[i]]):
        path = paths[place]
        shared = 0
        while shared < min(len(trail), len(path)) and trail[shared] == path[shared]:
            cost.saved += len(path[shared].move.ask) * len(indices)
            shared += 1
        del trail[shared:], states[shared + 1 :], said[shared + 1 :]
        for stretch in path[shared:]:
            go_on(stretch)
        yield place, states[-1].x


def sample(
    model: Model, plan: Plan, count: int, seed: int = 0, batch_size: int = 128, tick: Tick | None = None
) -> Tensor:
    """Images 0 to ``count`` - 1 of ``plan``: uint8 ``[count, C, H, W]`` on the CPU. Image i depends on (seed, i)."""
    images = []
    for block in blocks(count, batch_size):
        for _, x in walk(model, [plan], block, seed, Cost(), tick):
            images.append(model.decode(x))
    return torch.cat(images)


def blocks(count: int, size: int) -> list[range]:
    """The samples 0 to ``count`` - 1 in noise blocks of at most ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
