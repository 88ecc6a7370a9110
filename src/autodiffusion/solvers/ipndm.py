"""iPNDM (Zhang and Chen 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autodiffusion._errors import InputError
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State, combine
from autodiffusion.solvers._linear import ADAMS_BASHFORTH, lagrange, ratio, transfer


@dataclass(frozen=True)
class IPNDM(Solver):
    """Linear multistep on the predicted noise, moved along as DDIM does (Zhang and Chen 2023, iPNDM).

    Of flow matching it is on the predicted velocity.

    PLMS without its first step of two evaluations: each time is one evaluation, and the order grows from 1.

    Attributes:
        order: the highest, 1 to 4; order 1 is DDIM.
        uneven: Adams-Bashforth weights for the steps as they are in sigma / alpha, the variable in which the noise is
            the slope, instead of those for even steps. This is the exact integral of the polynomial; the published
            code of "ipndm_v" is equal to it up to order 2, and from order 3 on where steps are even.
    """

    order: int = 4
    uneven: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"solver ipndm: order = {self.order} is not 1, 2, 3 or 4")

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        return tuple(replace(move, order=min(i, self.order)) for i, move in enumerate(super().moves(times, end), 1))

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        newest = (move.t, self.slope(predict, state.x, move.t))
        used = (newest, *reversed(state.history))[: move.order]
        kept = (*state.history, newest)[-max(self.order - 1, 1) :]
        mean = combine(self._weights([t for t, _ in used], move), (prediction for _, prediction in used))
        return State(transfer(self.schedule, state.x, mean, move.t, move.stop), state.moves + 1, kept)

    def _weights(self, times: Sequence[float], move: Move) -> Sequence[float]:
        """The weights of the predictions at ``times``, newest first, in their mean over the move."""
        if not self.uneven:
            return ADAMS_BASHFORTH[len(times)]
        start = ratio(self.schedule, move.t)
        width = ratio(self.schedule, move.stop) - start
        places = [(ratio(self.schedule, t) - start) / width for t in times]
        return lagrange(places, [1 / (k + 1) for k in range(len(times))])


solver = IPNDM
