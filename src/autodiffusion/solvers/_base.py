"""What every solver is: options, moves, steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._names import with_options
from autodiffusion._plans.free import OfSteps, values
from autodiffusion._plans.schedule import NoiseSchedule


class Guided(NamedTuple):
    """A prediction that a classifier guides: ``shift`` is added to the noise after clipping, and x0 not clipped again.

    So it is in guided-diffusion (Dhariwal and Nichol 2021, algorithm 2).
    """

    slope: Tensor
    shift: Tensor


Predict: TypeAlias = Callable[[Tensor, float], Tensor | Guided]
"""The network: (x ``[B, ...]``, time) -> the slope of the noise schedule's straight ways, of x's shape.

That is the noise in x, epsilon; of flow matching the velocity, epsilon - x0.
"""

Noise: TypeAlias = Callable[[int], Tensor]
"""Fresh standard normal noise, of x's shape, for the move of this number; only stochastic solvers draw it."""


@dataclass(frozen=True)
class Move:
    """What a solver does for one step of a plan. Equal moves from equal states have equal results.

    Attributes:
        t: where the move starts.
        stop: where it ends; ``None`` is clean data.
        ask: the times at which the network is evaluated, in order; its length is the move's cost.
        order: the order of the method in this move, where a solver has several.
        numbers: real numbers that the move goes by, where a solver leaves some open: those of the step, or what follows
            from them.
    """

    t: float
    stop: float | None
    ask: tuple[float, ...]
    order: int = 1
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class State:
    """Where a solver stands between two moves.

    Attributes:
        x: the sample, ``[B, ...]``.
        moves: how many have been made.
        history: earlier predictions with their times, oldest first, as far as the solver still needs them.
        start: an earlier sample that the solver goes back to: of a singlestep method the one at the start of the block
            of moves that belong together, of ``gls`` the first noise.
    """

    x: Tensor
    moves: int = 0
    history: tuple[tuple[float, Tensor], ...] = ()
    start: Tensor | None = None


@dataclass(frozen=True)
class Solver(ABC):
    """Base of all solvers. A subclass is a frozen dataclass whose further fields are its options.

    Attributes:
        schedule: the noise schedule of the model.
        clip: clip each prediction of the clean data to [-1, 1] and re-derive the noise from it, before anything
            else is done with it; for models of pixels (as guided-diffusion's ``clip_denoised``). A classifier's
            guidance comes after it, and may lead out of [-1, 1] again.
    """

    schedule: NoiseSchedule
    clip: bool = False

    continuous: ClassVar[bool] = False
    """Whether the solver's times are real numbers, of which the network gets whatever the solver needs."""
    asks_sample: ClassVar[bool] = True
    """Whether what a move asks first, where that is at its own time, is the sample as it stands.

    A solver that changes the sample before it asks, by noise, says False: pipelines then look at what it asks.
    """
    searched: ClassVar[bool] = False
    """Whether a search moves its free numbers where nothing is said about it."""

    @abstractmethod
    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        """The state after ``move``. Asks once for each time in ``move.ask``, in that order.

        It asks by :meth:`both` or :meth:`slope`, which clip and guide what ``predict`` says.
        """

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        """One move a step, from each of ``times`` to the next and at last to ``end``."""
        stops = (*times[1:], end)
        return tuple(Move(t, stop, (t,)) for t, stop in zip(times, stops, strict=True))

    def free(self, steps: int, clean: bool = True) -> OfSteps:
        """What is left open for each of ``steps`` steps, by default nothing.

        Args:
            clean: whether the last step ends in clean data, not at a time before.
        """
        return ((),) * steps

    def path(
        self, times: Sequence[float], end: float | None = None, params: Sequence[Mapping[str, float]] | None = None
    ) -> tuple[Move, ...]:
        """The moves of a plan: :meth:`moves` with the free numbers of its steps.

        Raises:
            InputError: a free number that the step does not have, or a value out of range.
        """
        free = self.free(len(times), end is None)
        return self.with_numbers(self.moves(times, end), values(free, params or ({},) * len(times)))

    def with_numbers(self, moves: tuple[Move, ...], numbers: Sequence[tuple[float, ...]]) -> tuple[Move, ...]:
        """The moves with the free numbers of each step, in the order of :meth:`free`; solvers that have any say how."""
        return moves

    def slope(self, predict: Predict, x: Tensor, t: float) -> Tensor:
        """What ``predict`` says of ``x`` at ``t``, after clipping where that is asked for, and guidance after that."""
        answer = predict(x, t)
        if isinstance(answer, Guided) or self.clip:
            return self.schedule.slope(*self._parts(answer, x, t))
        return answer

    def both(self, predict: Predict, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The noise and the clean data in ``x`` at ``t``, clipped and then guided: (epsilon, x0)."""
        return self._parts(predict(x, t), x, t)

    def _parts(self, answer: Tensor | Guided, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        slope, shift = answer if isinstance(answer, Guided) else (answer, None)
        x0 = (x - sigma * slope) / self.schedule.scale(t)
        epsilon = slope + self.schedule.pull * x0 if self.schedule.pull else slope
        if self.clip:
            x0 = x0.clamp(-1, 1)
            epsilon = (x - alpha * x0) / sigma
        if shift is not None:
            epsilon = epsilon + shift
            x0 = (x - sigma * epsilon) / alpha
        return epsilon, x0


def combine(weights: Sequence[float], predictions: Iterable[Tensor]) -> Tensor:
    """The weighted sum of predictions, in their dtype; weights of 0 cost nothing."""
    terms = [weight * prediction for weight, prediction in zip(weights, predictions, strict=True) if weight]
    return reduce(add, terms)


def build(name: str, schedule: NoiseSchedule, options: Mapping[str, Any] | None = None) -> Solver:
    """The solver of this name with these options.

    Raises:
        InputError: an unknown solver or option, or a value the solver refuses.
    """
    solver: Solver = with_options("solvers", name, options or {}, schedule)
    return solver


def solve(
    solver: Solver,
    predict: Predict,
    x: Tensor,
    times: Sequence[float],
    end: float | None = None,
    noise: Noise | None = None,
    params: Sequence[Mapping[str, float]] | None = None,
) -> Tensor:
    """Samples along ``times`` from ``x``, pure noise at the first of them; the plain loop, for tests and users.

    Args:
        x: ``[B, ...]``.
        noise: needed by stochastic solvers only.
        params: the free numbers of each step, where they are not plain.
    """

    def no_noise(_: int) -> Tensor:
        raise InputError(f"{type(solver).__name__} with these options needs noise for its steps")

    state = State(x)
    for move in solver.path(times, end, params):
        state = solver.step(predict, state, move, noise or no_noise)
    return state.x
