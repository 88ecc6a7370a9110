"""PFDiff (Wang et al. 2025): a step is made with what the network says further on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autodiffusion._errors import InputError
from autodiffusion._plans.free import FreeNumber, OfSteps
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State
from autodiffusion.solvers._linear import transfer


@dataclass(frozen=True)
class PFDiff(Solver):
    """DDIM by springboards, one network evaluation a step, without training.

    The step before has left its prediction. It carries the sample on to a springboard at a later, less noisy time;
    there the network is asked, and what it says makes the whole step, from where that began (Wang et al. 2025,
    PFDiff-1). The first step has nothing before it and is DDIM's. The network is asked at whole times where it takes no
    others.

    Free for each later step, ``ask``: by how much of its start ``t`` the network is asked later still than the option
    ``ask`` says; negative is earlier. Between the start, which is DDIM, and time 0.

    Attributes:
        ask: where on the way to the step's end the network is asked, in [0, 1]; 0 is DDIM, one half PFDiff-1.
    """

    ask: float = 0.5

    searched = True

    def __post_init__(self) -> None:
        if not 0 <= self.ask <= 1:
            raise InputError(f"solver pfdiff: ask = {self.ask} lies outside 0 to 1")

    def free(self, steps: int, clean: bool = True) -> OfSteps:
        return ((),) + ((FreeNumber("ask", -1, 1),),) * (steps - 1)

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        first, *others = super().moves(times, end)
        return (first, *(self._asking(move, 0.0) for move in others))

    def with_numbers(self, moves: tuple[Move, ...], numbers: Sequence[tuple[float, ...]]) -> tuple[Move, ...]:
        pairs = zip(moves[1:], numbers[1:], strict=True)
        return (moves[0], *(self._asking(move, later) for move, [later] in pairs))

    def _asking(self, move: Move, later: float) -> Move:
        way = move.t - (move.stop or 0.0)
        asked = move.t - self.ask * way - later * move.t
        if not self.schedule.continuous:
            asked = float(round(asked))
        return replace(move, ask=(min(max(asked, self.schedule.first), move.t),))

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        asked, x = move.ask[0], state.x
        if asked < move.t:
            (_, before), *_ = state.history
            x = transfer(self.schedule, x, before, move.t, asked)
        slope = self.slope(predict, x, asked)
        x = transfer(self.schedule, state.x, slope, move.t, move.stop)
        return replace(state, x=x, moves=state.moves + 1, history=((asked, slope),))


solver = PFDiff
