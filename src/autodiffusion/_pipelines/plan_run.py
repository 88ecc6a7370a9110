"""A plan on its way through a loop that is not ours: the solver asks, and the loop answers.

A solver calls the network itself; a pipeline calls the network, and then its scheduler. So a move is made again from
its state, which nothing changes, with the answers known so far, until it asks for one more. That takes no network, and
a move has few questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._sampling.sampling import Stretch
from autodiffusion.models._model import Model
from autodiffusion.solvers import State
from autodiffusion.solvers._base import build

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


class _Ask(BaseException):  # no Exception, which a solver of a user's may catch
    """The solver asks for the noise in ``x``, and nobody has said it yet."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


@dataclass
class Run:
    """A plan on its way.

    Attributes:
        model: of the pipeline's network.
        state: the solver's, before the move that is being made.
        generator: of the noise that stochastic solvers draw.
        move: the number of that move.
        answers: what the network has said in it, and of these ``heard`` the solver has been told.
        asked: where the network is asked next; the solver's own.
        handed: the same as the pipeline got it, in its dtype, and the tensor's version then.
        drawn: the noise of the last move that drew any, by its number.
    """

    path: Sequence[Stretch]
    model: Model
    state: State
    generator: Generators
    move: int = 0
    answers: list[Tensor] = field(default_factory=list)
    heard: int = 0
    asked: Tensor | None = None
    handed: tuple[Tensor, int | None] | None = None
    drawn: dict[int, Tensor] = field(default_factory=dict)

    @property
    def awaited(self) -> float:
        """The time at which the network is asked next."""
        return self.path[self.move].move.ask[len(self.answers)]

    def hand_out(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of ``x``, which is asked next, in the pipeline's dtype: whatever it does to that, ``x`` stays."""
        given = x.to(dtype, copy=True)
        self.asked, self.handed = x, (given, _version(given))
        return given

    def returned(self, sample: Tensor) -> bool:
        """Whether the sample is as it was handed out. Pipelines that guide may have repeated the first half of it."""
        assert self.asked is not None and self.handed is not None
        given, version = self.handed
        if sample is given and version is not None and _version(sample) == version:
            return True
        asked = self.asked.to(given.dtype)
        if len(sample) % 2 == 0:
            one, other = sample.chunk(2)
            if torch.equal(one, other):
                sample, asked = one, asked[: len(one)]
        return torch.allclose(sample, asked, rtol=0, atol=0, equal_nan=True)

    def go_on(self) -> Tensor:
        """As far as the answers allow: the next point to be asked, or the sample at the end."""
        while self.move < len(self.path):
            stretch, self.heard = self.path[self.move], 0
            if not self.answers and _at_sample(stretch):
                return self.state.x  # known without the solver
            try:
                self.state = stretch.solver.step(self._predict, self.state, stretch.move, self._noise)
            except _Ask as ask:
                return ask.x
            self.move, self.answers = self.move + 1, []
        return self.state.x

    def _predict(self, x: Tensor, t: float) -> Tensor:
        if self.heard == len(self.answers):
            raise _Ask(x)
        if self.heard == 0 and x is not self.state.x and _at_sample(stretch := self.path[self.move]):
            raise InputError(
                f"solver {stretch.name} changes the sample before it asks; say asks_sample = False in its class"
            )
        self.heard += 1
        return self.model.read(self.answers[self.heard - 1], x, t)

    def _noise(self, number: int) -> Tensor:
        """The same for a move that is made again."""
        if number not in self.drawn:
            x = self.state.x
            self.drawn = {number: randn_tensor(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)}
        return self.drawn[number]


def _version(x: Tensor) -> int | None:
    """How often it was changed in place; of a tensor of inference mode nobody counts that."""
    return None if x.is_inference() else x._version


def _at_sample(stretch: Stretch) -> bool:
    """Whether the first question of this step is known: what the network says of the sample as it stands."""
    return stretch.solver.asks_sample and stretch.move.ask[0] == stretch.move.t


def rest(plan: Plan, first: int, schedule: NoiseSchedule) -> Plan:
    """The plan from step ``first`` on, as a plan of its own.

    Its solver begins there: the orders of multistep methods grow again. The steps keep their free numbers, but for
    those that such a beginning does not have, because they speak of what came before.
    """
    steps = plan.steps[first:]
    free = build(plan.solver, schedule, plan.solver_options).free(len(steps), plan.end is None)
    kept = [
        {number.name: step.params[number.name] for number in numbers if number.name in step.params}
        for step, numbers in zip(steps, free, strict=True)
    ]
    return plan.model_copy(update={"steps": steps}).tuned(kept)
