"""UniPC (Zhao et al. 2023), multistep, orders 1 to 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autodiffusion._errors import InputError, nearest
from autodiffusion.solvers._base import Move, Noise, Predict, Solver, State, combine
from autodiffusion.solvers._linear import towards
from autodiffusion.solvers._log_snr import check_order, exact, exponential_step, step_weights, with_orders

VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True)
class UniPC(Solver):
    """Predictor (UniP) and corrector (UniC) of one form (Zhao et al. 2023, sections 3.1 to 3.3), one evaluation a step.

    A move first corrects the sample at which it starts, by the prediction that the network makes there: by as much as
    the step that led there would have gone elsewhere through one point more. The network is not asked at the corrected
    sample. Then the move predicts the next. Both solve for the weights that integrate a polynomial in lambda through
    the points, and with them B(h) falls out; it stays where these have the closed form of a half times B(h), as in the
    authors' code and in diffusers: the predictor of order 2 and the corrector of order 1. A move to clean data is of
    order 1.

    Attributes:
        order: 1, 2 or 3; that of the corrected result is one higher.
        variant: what B(h) is: ``bh1`` the width of the step in lambda, ``bh2`` its exponential less 1.
        corrector: without it this is UniP alone, of which order 1 is DDIM.
        predict_x0: integrate the predicted clean data, as is usual, or the noise.
        lower_order_final: lower the order by one a move towards the end.
    """

    order: int = 2
    variant: str = "bh2"
    corrector: bool = True
    predict_x0: bool = True
    lower_order_final: bool = True

    continuous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_order("unipc", self.order)
        if self.variant not in VARIANTS:
            raise InputError(
                f"solver unipc: variant '{self.variant}' is unknown {nearest(str(self.variant), VARIANTS)}"
            )

    def moves(self, times: Sequence[float], end: float | None = None) -> tuple[Move, ...]:
        return with_orders("unipc", self.schedule, super().moves(times, end), self.order, self.lower_order_final)

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        epsilon, x0 = self.both(predict, state.x, move.t)
        newest, earlier = (move.t, x0 if self.predict_x0 else epsilon), tuple(reversed(state.history))
        x = state.x
        if self.corrector and earlier:
            x = x + self._correction((*earlier, newest))
        if move.stop is not None and (self.predict_x0 or move.order > 1):
            used = (newest, *earlier)[: move.order]
            x = exponential_step(self.schedule, x, used, move.stop, self.predict_x0, self._weights)
        elif move.stop is None and self.predict_x0:
            x = x0
        else:  # from where the corrector led, if it did; by x0, which x and the noise do not tell without a signal
            corrected = (x - state.x) / self.schedule.alpha(move.t)
            x = towards(self.schedule, x0 + corrected, epsilon, move.stop)
        # as many predictions as this move used: the next one's corrector is of this order, and needs no more
        return State(x, state.moves + 1, (*state.history, newest)[-move.order :])

    def _correction(self, points: Sequence[tuple[float, Tensor]]) -> Tensor:
        """What the last point changes in the step that led there through the others."""
        times, predictions = zip(*points, strict=True)
        before, after = (
            step_weights(self.schedule, through, times[-1], self.predict_x0, self._weights)[1:]
            for through in (times[:-1], times)
        )
        return combine([new - old for new, old in zip(after, (*before, 0.0), strict=True)], predictions)

    def _weights(self, width: float, places: Sequence[float]) -> list[float]:
        if len(places) != 2:
            return exact(width, places)
        slope = (width if self.variant == "bh1" else math.expm1(width)) / 2 / places[1]
        return [math.expm1(width) - slope, slope]


solver = UniPC
