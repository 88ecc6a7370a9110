"""A general linear solver: every point is a weighted sum of the first noise and of what the network said so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._names import resolve
from autodiffusion._plans.free import FreeNumber, OfSteps, values
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State, build, combine


@dataclass(frozen=True)
class GeneralLinear(Solver):
    """The non-stationary form of the bespoke solvers of Shaul et al. (2024), for the predicted clean data.

    With z the first noise and x0_j what the network made of the point that it was asked at j-th, the next point is
    ``x = w_z z + sum_j w_j x0_j``, j up to the last. Every deterministic linear solver is of this form, and its weights
    follow from running it on symbols. The free numbers of a step are offsets from such a plain solver, for the point
    where the step ends; zero is that solver:

    - ``data1`` adds ``alpha (x0_i - x0_{i-1})``, i being the newest; ``data2`` has ``x0_{i-2}`` instead, and so on;
    - ``noise`` adds ``sigma (z - epsilon_i)``, epsilon_i being the noise that the newest x0 leaves in the point asked;
    - ``scale`` adds ``alpha x0_i``.

    alpha and sigma are those of the step's end. Before them come the plain solver's own free numbers, where a search
    would move those: on PFDiff, ``ask``. With ``clip`` the network's x0 is clipped, not the points.

    Attributes:
        plain: the solver that zero stands for: ddim, ipndm, dpm_solver++ ...
        order: its option of that name; 0 is its own default.
        memory: how many earlier predictions have a free number, at least 0.
        scale: whether the newest has one of its own.
    """

    plain: str = "ddim"
    order: int = 0
    memory: int = 1
    scale: bool = False

    searched = True

    def __post_init__(self) -> None:
        for name in ("order", "memory"):
            if getattr(self, name) < 0:
                raise InputError(f"solver gls: {name} = {getattr(self, name)} must not be negative")
        if issubclass(resolve("solvers", self.plain), GeneralLinear):
            raise InputError(f"solver gls: plain = {self.plain} is such a solver itself; give another")
        build(self.plain, self.schedule, {"order": self.order} if self.order else {})  # which checks the order

    @cached_property
    def _plain(self) -> Solver:
        return build(self.plain, self.schedule, {"order": self.order} if self.order else {})

    def free(self, steps: int, clean: bool = True) -> OfSteps:
        own = self._own(steps, clean)
        if not self._plain.searched:
            return own
        return tuple(theirs + ours for theirs, ours in zip(self._plain.free(steps, clean), own, strict=True))

    def _own(self, steps: int, clean: bool) -> OfSteps:
        """The offsets of each step."""
        asked = [len(move.ask) for move in self._plain.moves([float(t) for t in range(steps - 1, -1, -1)])]
        known, found = 0, []
        for i, asks in enumerate(asked):
            known += asks
            numbers = [FreeNumber(f"data{age}", -2, 3) for age in range(1, min(self.memory, known - 1) + 1)]
            numbers += [FreeNumber("noise", -2, 8)] * (i + 1 < steps or not clean)
            numbers += [FreeNumber("scale", -0.5, 0.5)] * self.scale
            found.append(tuple(numbers))
        return tuple(found)

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        return self.with_numbers(
            self._plain.moves(times, end), values(self.free(len(times), end is None), [{}] * len(times))
        )

    def with_numbers(self, moves: tuple[Move, ...], numbers: Sequence[tuple[float, ...]]) -> tuple[Move, ...]:
        plain, own = self._plain, self._own(len(moves), moves[-1].stop is None)
        firsts = [len(given) - len(ours) for given, ours in zip(numbers, own, strict=True)]
        bare = tuple(replace(move, numbers=()) for move in moves)
        if plain.searched:
            bare = plain.with_numbers(bare, [given[:first] for given, first in zip(numbers, firsts, strict=True)])
        offsets = tuple(
            tuple((number.name, value) for number, value in zip(ours, given[first:], strict=True))
            for ours, given, first in zip(own, numbers, firsts, strict=True)
        )
        weights = _weights(self, bare, offsets)
        return tuple(replace(move, numbers=found) for move, found in zip(bare, weights, strict=True))

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        start = state.x if state.start is None else state.start
        x, history, weights = state.x, state.history, move.numbers
        for i, t in enumerate(move.ask):
            if i > 0 or t != move.t:  # otherwise it is asked where the move begins
                x, weights = self._point(weights, start, history)
            history = (*history, (t, self.both(predict, x, t)[1]))
        x, _ = self._point(weights, start, history)
        return State(x, state.moves + 1, history, start)

    def _point(
        self, weights: tuple[float, ...], start: Tensor, history: tuple[tuple[float, Tensor], ...]
    ) -> tuple[Tensor, tuple[float, ...]]:
        """The sum with the first of the weights, and those that are left."""
        count = 1 + len(history)
        return combine(weights[:count], (start, *(x0 for _, x0 in history))), weights[count:]


@lru_cache(maxsize=4096)
def _weights(
    solver: GeneralLinear, moves: tuple[Move, ...], numbers: tuple[tuple[tuple[str, float], ...], ...]
) -> tuple[tuple[float, ...], ...]:
    """For each move the weights ``(w_z, w_0, ...)`` of its points in a row: where the network is asked, unless that is
    where the move begins, and where it ends.

    The plain solver walks on vectors of coefficients instead of samples.
    """
    schedule, plain = solver.schedule, solver._plain
    size = 1 + sum(len(move.ask) for move in moves)
    units = torch.eye(size, dtype=torch.float64)
    asked: list[tuple[float, Tensor]] = []

    def predict(x: Tensor, t: float) -> Tensor:
        asked.append((t, x))
        return (x - schedule.scale(t) * units[len(asked)]) / schedule.sigma(t)

    def no_noise(_: int) -> Tensor:
        raise InputError(f"solver gls: plain = {solver.plain} draws noise; give a deterministic solver")

    state, found = State(units[0]), []
    for move, given in zip(moves, numbers, strict=True):
        before = len(asked)
        state = plain.step(predict, state, move, no_noise)
        t, x = asked[-1]
        newest = units[len(asked)]
        epsilon = (x - schedule.alpha(t) * newest) / schedule.sigma(t)
        offsets = {
            "noise": schedule.sigma(move.stop) * (units[0] - epsilon),
            "scale": schedule.alpha(move.stop) * newest,
        }
        for age in range(1, len(asked)):
            offsets[f"data{age}"] = schedule.alpha(move.stop) * (newest - units[len(asked) - age])
        moved = state.x
        for name, value in given:
            moved = moved + value * offsets[name]
        state = replace(state, x=moved)
        first = before + (move.ask[0] == move.t)
        points = [x for _, x in asked[first:]] + [moved]
        found.append(tuple(weight for i, point in enumerate(points, first) for weight in point[: i + 1].tolist()))
    return tuple(found)


solver = GeneralLinear
