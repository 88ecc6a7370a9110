"""A diffusers scheduler that follows a plan: the solver asks, and the pipeline's own loop answers.

A solver calls the network itself; a pipeline calls the network, and then its scheduler. So a move is made again from
its state, which nothing changes, with the answers known so far, until it asks for one more. That takes no network, and
a move has few questions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from autodiffusion.errors import InputError
from autodiffusion.models import Model
from autodiffusion.sampling import Stretch
from autodiffusion.solvers import State

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


class _Ask(BaseException):  # no Exception, which a solver of a user's may catch
    """The solver asks for the noise in ``x``, and nobody has said it yet."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


@dataclass
class _Run:
    """A plan on its way through a pipeline's loop.

    Attributes:
        model: of the pipeline's network.
        state: the solver's, before the move that is being made.
        generator: of the noise that stochastic solvers draw.
        move: the number of that move.
        answers: what the network has said in it, and of these ``heard`` the solver has been told.
        asked: where the network is asked next, of the pipeline's dtype.
        drawn: the noise of the last move that drew any, by its number.
    """

    path: Sequence[Stretch]
    model: InitVar[Model]
    state: State
    generator: Generators
    move: int = 0
    answers: list[Tensor] = field(default_factory=list)
    heard: int = 0
    asked: Tensor | None = None
    drawn: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self, model: Model) -> None:
        self._answering = replace(model, network=self._answer, dtype=self.state.x.dtype)

    def go_on(self) -> Tensor:
        """As far as the answers allow: the next point to be asked, or the sample at the end."""
        while self.move < len(self.path):
            stretch, self.heard = self.path[self.move], 0
            try:
                self.state = stretch.solver.step(self._predict, self.state, stretch.move, self._noise)
            except _Ask as ask:
                return ask.x
            self.move, self.answers = self.move + 1, []
        return self.state.x

    def _predict(self, x: Tensor, t: float) -> Tensor:
        if self.heard == len(self.answers):
            raise _Ask(x)
        return self._answering.predict(x, t, None)

    def _answer(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.heard += 1
        return self.answers[self.heard - 1]

    def _noise(self, number: int) -> Tensor:
        """The same for a move that is made again."""
        if number not in self.drawn:
            x = self.state.x
            self.drawn = {number: randn_tensor(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)}
        return self.drawn[number]


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # config_name, of both
    """One iteration of the pipeline's loop for each network evaluation of a plan.

    What the pipeline gets back is the point at which the network is asked next, and at the end the sample. The solver's
    states are float32 at least, whatever the pipeline's dtype.

    Attributes:
        order: 1, as the time steps are those of the network evaluations.
        init_noise_sigma: 1, the standard deviation of the first noise.
        timesteps: the times of the evaluations, in order; whole ones as integers, as the stock schedulers have them.
        num_inference_steps: how many there are.
        stock: the scheduler that this one replaces, whose configuration it shows.
        remove: gives the pipeline ``stock`` back.

    It is made of the plan's moves on the model of the pipeline's network; ``counts`` are the numbers of steps that may
    be asked for without a warning, besides the plan's.
    """

    order = 1
    init_noise_sigma = 1.0
    remove: Callable[[], None]

    def __init__(self, stock: Any, path: Sequence[Stretch], model: Model, counts: frozenset[int]) -> None:
        configured: Any = self
        configured.register_to_config(**stock.config)
        self.stock, self._path, self._model = stock, path, model
        asked = [t for stretch in path for t in stretch.move.ask]
        whole = all(t.is_integer() for t in asked)
        self._times = torch.tensor(asked, dtype=torch.int64 if whole else torch.float32)
        self._counts = counts | {len(path), len(asked)}
        self.timesteps, self.num_inference_steps = self._times, len(asked)
        self._begun = False
        self._run: _Run | None = None

    def __len__(self) -> int:
        return len(self._model.schedule)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begins the plan. Other steps than the plan's are not taken; a warning says so."""
        if timesteps is not None:
            given, other = "other timesteps", [float(t) for t in timesteps] != self._times.tolist()
        else:
            given, other = f"num_inference_steps = {num_inference_steps}", num_inference_steps not in self._counts
        if other:
            count = len(self._times)
            warnings.warn(f"{given} is not followed: the plan asks the network {count} times", stacklevel=2)
        self.timesteps = self._times.to(device)
        self._begun, self._run = True, None
        if self._model.module is not None:
            _turns[self._model.module] = self

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Hands the network's answer to the solver.

        Args:
            model_output: what the network says of ``sample``, ``[B, ...]``; channels of a learned variance behind are
                not used.
            eta, use_clipped_model_output: not followed; the plan has its own.
            generator: of the noise that the plan's solver draws, if it draws any.

        Returns:
            Where the network is asked next, at the end the sample, in the dtype of ``sample``.

        Raises:
            InputError: the plan is not begun, is begun in its middle, or the sample is not the one that was returned.
        """
        if not self._begun:
            raise InputError("scheduler: the plan is at its end or not begun; set_timesteps begins it")
        run = self._run
        if run is None:
            if float(timestep) != float(self._times[0]):
                begins = f"the pipeline begins at t = {float(timestep):g}"
                raise InputError(f"scheduler: {begins}, the plan at {float(self._times[0]):g}; go all the way with it")
            if eta or use_clipped_model_output:
                warnings.warn("eta and clipping are those of the plan, not of this call", stacklevel=2)
            state = State(sample.to(torch.promote_types(sample.dtype, torch.float32)))
            run = self._run = _Run(self._path, self._model, state, generator)
        elif sample is not run.asked and not _same(sample, run.asked):
            raise InputError("scheduler: this pipeline changes the sample between steps; it cannot follow plans")
        run.answers.append(model_output)
        x = run.asked = run.go_on().to(sample.dtype)
        if run.move == len(run.path):
            self._stop()
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raises :class:`InputError`: a pipeline is saved with a scheduler of its own."""
        raise InputError("scheduler: a plan is applied to this pipeline; .remove() it before saving")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A context for a call of the network, without the layers that the plan leaves out there."""
        try:
            with self._model.without(self._path[self._run.move if self._run else 0].skip):
                yield
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        """Ends the run and forgets it."""
        self._begun, self._run = False, None
        if self._model.module is not None and _turns.get(self._model.module) is self:
            del _turns[self._model.module]


def _same(sample: Tensor, asked: Tensor | None) -> bool:
    """Whether the first sample is as it was returned; pipelines that guide repeat the batch, and drop the copy."""
    return asked is not None and torch.allclose(sample[0], asked[0], rtol=0, atol=0, equal_nan=True)


# The layers. Pipelines may share a network, so its class is changed for all of them, and the scheduler whose turn it is
# says what is left out. A class and no hook, because torch.compile takes hooks into its graph.

_turns: WeakKeyDictionary[nn.Module, PlanScheduler] = WeakKeyDictionary()
"""The scheduler that waits for an answer of this network."""

_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many pipelines follow plans with layers on this network."""


def _switching(cls: type[nn.Module]) -> type[nn.Module]:
    """The class derived from ``cls`` whose calls leave out what the plan says."""

    def call(network: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler = _turns.get(network)
        if scheduler is None:
            return cls.__call__(network, *args, **kwargs)
        with scheduler.asking():
            return cls.__call__(network, *args, **kwargs)

    body = {"__call__": call, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), body)


def connect(network: nn.Module) -> None:
    """Lets plans leave out layers of ``network``, until as many calls of :func:`disconnect`."""
    if network not in _users:
        network.__class__ = _switching(type(network))
    _users[network] = _users.get(network, 0) + 1


def disconnect(network: nn.Module) -> None:
    """Undoes one :func:`connect`."""
    _users[network] -= 1
    if not _users[network]:
        del _users[network]
        network.__class__ = type(network).__bases__[0]
