"""Sampling many plans on the same noise: what two plans share at their beginning is computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan, tidy
from autodiffusion._sampling.memory import in_blocks
from autodiffusion.models._model import LABELS, Model
from autodiffusion.solvers import Move, Solver, State
from autodiffusion.solvers._base import Guided, build

T = TypeVar("T")
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

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.evaluations + other.evaluations, self.saved + other.saved)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.evaluations - other.evaluations, self.saved - other.saved)


@dataclass(frozen=True)
class Stretch:
    """One move of a plan with everything that decides its result; plans with equal first stretches share them."""

    solver: Solver
    name: str
    move: Move
    skip: frozenset[int]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal for stretches that do the same; sorts plans so that shared beginnings stand next to each other."""
        stop = -1.0 if self.move.stop is None else self.move.stop
        return (
            -self.move.t,
            tuple(sorted(self.skip)),
            self.name,
            -stop,
            self.move.ask,
            self.move.order,
            self.move.numbers,
        )


Keys: TypeAlias = tuple[tuple[Any, ...], ...]
"""The keys of a plan's first stretches: its beginning."""


@dataclass
class Point:
    """Where a beginning leads on one block of noise.

    Attributes:
        state: the solver's.
        said: what the network last said there, with the time and the layers left out for which it said it.
    """

    state: State
    said: tuple[float, frozenset[int], Tensor | Guided] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds; states along a way have many in common."""
        state, said = self.state, self.said
        held = [state.x, *(prediction for _, prediction in state.history)]
        held += [] if state.start is None else [state.start]
        if said:
            held += said[2] if isinstance(said[2], Guided) else [said[2]]
        return held


class Beginnings:
    """Points that plans on one block of noise have passed, for plans that begin alike.

    Attributes:
        limit: bytes that may stay between two plans, besides the points of the last; what was used longest ago goes
            first.
        condition: what the block's samples are asked to show.
    """

    def __init__(self, noise: Tensor, condition: Tensor | None, limit: int = 0) -> None:
        self.limit, self.condition = limit, condition
        self._points: OrderedDict[Keys, Point] = OrderedDict({(): Point(State(noise))})

    def furthest(self, keys: Keys) -> tuple[int, Point]:
        """The longest part of a beginning that has been walked: its length and where it leads."""
        length = max(n for n in range(len(keys) + 1) if keys[:n] in self._points)
        for n in range(length + 1):
            if keys[:n] in self._points:
                self._points.move_to_end(keys[:n])
        return length, self._points[keys[:length]]

    def keep(self, keys: Keys, point: Point) -> None:
        """Adds the point to which ``keys`` lead."""
        self._points[keys] = point

    def trim(self, keys: Keys | None = None) -> None:
        """Forgets what is over the limit, but nothing on the way of ``keys``; without a way all but the noise."""
        way = {()} if keys is None else {keys[:n] for n in range(len(keys) + 1)}
        counted, total = set[int](), 0
        latest = list(reversed(self._points))
        # the way first, then what was used last; what several points hold takes memory once
        for place in sorted(latest, key=lambda place: place not in way):
            new = {id(tensor): tensor.nbytes for tensor in self._points[place].tensors if id(tensor) not in counted}
            counted.update(new)
            total += sum(new.values())
            if total > self.limit and place not in way:
                del self._points[place]
            elif total > self.limit and keys is None:
                self._points[place].said = None

    def keep_only(self, ways: Iterable[Keys]) -> None:
        """Forgets what does not lie on any of these ways, and what the network said: that depends on who came last."""
        kept = {()} | {keys[:n] for keys in ways for n in range(len(keys) + 1)}
        for old in [old for old in self._points if old not in kept]:
            del self._points[old]
        for point in self._points.values():
            point.said = None


def stretches(plan: Plan, model: Model) -> tuple[Stretch, ...]:
    """The plan as its solver will walk it.

    Raises:
        InputError: an unknown solver or option, a time outside the model's schedule, or a layer that it does not have.
    """
    solver = build(plan.solver, model.schedule, plan.solver_options)
    moves = solver.path(plan.times, plan.end, plan.params)
    if len(moves) != len(plan.steps):
        raise InputError(
            f"solver {plan.solver} makes {len(moves)} moves of {len(plan.steps)} steps; it needs one a step"
        )
    first, last = model.schedule.first, model.schedule.last
    for t in plan.times:
        if not first <= t <= last:
            raise InputError(
                f"t = {tidy(t)} lies outside the time steps of {model.name}, {tidy(first)} to {tidy(last)}"
            )
        if not (solver.continuous or model.schedule.continuous) and not t.is_integer():
            raise InputError(f"t = {t} is not whole, and solver {plan.solver} takes the model's own time steps only")
    skip: frozenset[int] = frozenset().union(*(step.skip for step in plan.steps))
    if skip:
        model.check(skip)
    name = f"{plan.solver} {plan.solver_options}"
    return tuple(Stretch(solver, name, move, step.skip) for move, step in zip(moves, plan.steps, strict=True))


def nfe(plan: Plan, model: Model) -> int:
    """Network evaluations for one sample of the plan."""
    return sum(len(stretch.move.ask) for stretch in stretches(plan, model))


@torch.inference_mode()
def walk(
    model: Model,
    plans: Sequence[Plan],
    indices: Sequence[int],
    seed: int,
    cost: Cost,
    tick: Tick | None = None,
    begun: Beginnings | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Samples every plan for the samples ``indices``, and yields (place in ``plans``, x ``[len(indices), *shape]``).

    All plans begin in the same noise and conditions. They come sorted, so that one state a step of the current plan is
    all that has to be kept, with what the network last said there: a plan that goes on from it elsewhere need not ask
    again.

    Args:
        begun: of :func:`begin` for the same model, samples and seed: what earlier calls walked is not walked again.
    """
    begun = begun or begin(model, indices, seed)
    paths = [stretches(plan, model) for plan in plans]
    keys = [tuple(stretch.key for stretch in path) for path in paths]

    def fresh(number: int) -> Tensor:
        return model.noise(indices, seed, stream=LABELS + 1 + number)

    def go_on(point: Point, stretch: Stretch) -> Point:
        def predict(x: Tensor, t: float) -> Tensor | Guided:
            if x is point.state.x and point.said is not None and point.said[:2] == (t, stretch.skip):
                cost.saved += len(x)
                return point.said[2]
            cost.evaluations += len(x)
            if tick:
                tick(len(x))
            slope, shift = model.predict(x, t, begun.condition), model.guide(x, t, begun.condition)
            answer = slope if shift is None else Guided(slope, shift)
            if x is point.state.x:
                point.said = (t, stretch.skip, answer)
            return answer

        with model.without(stretch.skip):
            return Point(stretch.solver.step(predict, point.state, stretch.move, fresh))

    for place in sorted(range(len(plans)), key=lambda i: keys[i]):
        path, beginning = paths[place], keys[place][:-1]
        length, point = begun.furthest(beginning)
        cost.saved += sum(len(stretch.move.ask) for stretch in path[:length]) * len(indices)
        for n in range(length, len(path)):
            point = go_on(point, path[n])
            if n + 1 < len(path):
                begun.keep(beginning[: n + 1], point)
        begun.trim(beginning)
        yield place, point.state.x


def begin(model: Model, indices: Sequence[int], seed: int, limit: int = 0) -> Beginnings:
    """What all plans have in common on a block of noise, to be kept between calls of :func:`walk`.

    Args:
        limit: bytes that the states of earlier plans may take.
    """
    return Beginnings(model.noise(indices, seed), model.condition(indices, seed), limit)


def sample(
    model: Model, plan: Plan, count: int, seed: int = 0, batch_size: int = 128, tick: Tick | None = None
) -> Tensor:
    """Images 0 to ``count`` - 1 of ``plan``: uint8 ``[count, C, H, W]`` on the CPU. Image i depends on (seed, i).

    Args:
        batch_size: how many are made at a time; fewer where memory does not suffice for that.

    Raises:
        InputError: ``count`` or ``batch_size`` below 1, ``seed`` below 0, or a plan that the model cannot follow.
    """
    if count < 1:
        raise InputError(f"sample: count = {count} is less than 1; give how many images to make")
    if batch_size < 1 or seed < 0:
        raise InputError(f"sample: batch_size = {batch_size}, seed = {seed}; give at least 1 and at least 0")
    return torch.cat(sample_blocks(lambda _, images: images, model, plan, count, seed, batch_size, tick))


def sample_blocks(
    use: Callable[[range, Tensor], T],
    model: Model,
    plan: Plan,
    count: int,
    seed: int,
    batch_size: int,
    tick: Tick | None = None,
) -> list[T]:
    """What ``use`` makes of images 0 to ``count`` - 1, block by block, given their numbers and the images as of
    :func:`sample`.
    """

    def drawn(block: range) -> T:
        [(_, x)] = walk(model, [plan], block, seed, Cost(), tick)
        return use(block, model.decode(x))

    return in_blocks(drawn, count, batch_size)


def blocks(count: int, size: int) -> list[range]:
    """The samples 0 to ``count`` - 1 in noise blocks of at most ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
