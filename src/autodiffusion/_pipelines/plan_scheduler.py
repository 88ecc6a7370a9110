"""A diffusers scheduler that follows a plan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._pipelines import turns
from autodiffusion._pipelines.plan_run import Generators, Run, rest
from autodiffusion._pipelines.stand_in import StandIn
from autodiffusion._plans.plan import Plan, tidy
from autodiffusion._sampling.sampling import stretches
from autodiffusion.models._model import Model
from autodiffusion.solvers import State

TRACE = 1e-3
"""Of an image in the first noise, of which nobody need be told."""
FREE = "the plan's free numbers are made for a beginning in pure noise, not with an image"
ANOTHERS = "if this pipeline was made of another's components, apply the plan to it too"


class PlanScheduler(StandIn):
    """One iteration of the pipeline's loop for each network evaluation of a plan.

    What the pipeline gets back is the point at which the network is asked next, and at the end the sample. The solver's
    states are float32 at least, whatever the pipeline's dtype.

    Attributes:
        order: evaluations of each step but the last, where all have as many, otherwise 1, and 1 where the pipeline
            counts ``timesteps`` itself: what it multiplies by to find the evaluation at which a step begins.
        timesteps: the times of the evaluations, in order; whole ones as integers, as the stock schedulers have them.
        num_inference_steps: how many there are.
        skips: whether the plan leaves out layers.

    Args:
        plan: is checked against the network's layers and noise schedule.
        model: of the pipeline's network.
        component: which of the pipeline's that is.
        blends: whether the pipeline puts the known part of an image into the sample after each step.
        divisor: what it divides a time by before it asks the network.

    Raises:
        InputError: the plan is none that a pipeline with this network can follow.
    """

    def __init__(
        self, pipe: Any, stock: Any, plan: Plan, model: Model, component: str, blends: bool = False, divisor: int = 1
    ) -> None:
        super().__init__(pipe, stock, model.schedule)
        self._plan, self._model, self._component = plan, model, component
        self._blends, self._divisor = blends, divisor
        self._whole = self._path = stretches(plan, model)
        if self._whole[0].move.ask[0] != self._whole[0].move.t:
            raise InputError(
                f"solver {plan.solver} asks first at another point than its noise; a pipeline cannot do that"
            )
        asks = [len(stretch.move.ask) for stretch in self._whole]
        self._begins = (0, *accumulate(asks))  # the evaluation at which each step begins
        regular = set(asks[:-1]) <= {asks[0]} and asks[-1] <= asks[0]
        self._order = self.order = asks[0] if regular else 1
        self._asked = [t for stretch in self._whole for t in stretch.move.ask]
        whole = not model.schedule.continuous and all(t.is_integer() for t in self._asked)
        self._times = torch.tensor(self._asked, dtype=torch.int64 if whole else torch.float32)
        self._counts = {len(asks), len(self._asked), self._default("num_inference_steps")}
        self.timesteps, self.num_inference_steps, self._count = self._times, len(self._asked), len(asks)
        self.skips = any(stretch.skip for stretch in self._whole)
        self._begun = False
        self._first, self._last = 0, len(self._whole)
        self._run: Run | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Begins the plan. Other steps than the plan's are not taken; a warning says so.

        Args:
            sigmas: pipelines of flow matching give even ones for their number of steps, which count as that number.
            mu: a shift by resolution, for stock grids; the plan's times are as they are.

        Raises:
            InputError: the plan was removed, the pipeline is to stop within one of its steps (``denoising_end``), or
                its network is another one than that of which the plan leaves out layers.
        """
        if self.pipe is None:
            raise InputError("scheduler: its plan was removed; apply one to this pipeline, or give it a scheduler")
        if self.skips and not turns.reaches(getattr(self.pipe, self._component), self._model.module):
            kind, what = type(self.pipe).__name__, f"another {self._component} than when the plan was applied"
            raise InputError(f"pipeline {kind} has {what}; apply it again")
        self.stop()
        count = len(self._asked)
        # the number of steps by which the pipeline reckons: its own, or what it finds in timesteps
        self._count, self.order = num_inference_steps or count, self._order if num_inference_steps else 1
        if sigmas is not None and np.allclose(sigmas, np.linspace(1, 1 / len(sigmas), len(sigmas)), rtol=0, atol=1e-6):
            num_inference_steps, sigmas = len(sigmas), None
        if timesteps is not None:
            same = len(timesteps) == count and np.allclose(timesteps, self._asked, rtol=0, atol=1e-3)
            given, other = "other timesteps are", not same
        elif sigmas is not None:
            ours = [math.exp(self._model.schedule.log_level(t)) for t in self._asked]
            pairs = zip(sigmas, ours, strict=False)
            given, other = "other sigmas are", len(sigmas) < count or any(abs(a - b) > 1e-3 * b for a, b in pairs)
        else:
            given, other = f"num_inference_steps = {num_inference_steps} is", num_inference_steps not in self._counts
        if other:
            warnings.warn(f"{given} not followed: the plan asks the network {count} times", stacklevel=2)
        self._first, self._last = 0, self._stop_early()
        self._path = self._whole[: self._last]
        self.timesteps = self._times.to(device)
        self._begun, self._run = True, None
        if self._model.module is not None:
            turns.take(self._model.module, self.asking)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begins in the middle, as pipelines do that start from an image: at the plan's step that begins there.

        The solver begins there, with the steps that are left: :func:`rest` of the plan.

        Args:
            begin_index: the first of ``timesteps`` that the pipeline goes through.

        Raises:
            InputError: no step of the plan begins there, it ends before, or its solver would begin otherwise than it
                goes on.
        """
        if begin_index == 0:
            return
        steps = len(self._whole)
        try:
            # for begin_index, a multiple of order, to be what it means
            needed = steps if self.order > 1 else len(self._asked)
            if self._count != needed:
                raise InputError(
                    f"num_inference_steps = {self._count}: to begin in the middle of this plan, call the pipeline with "
                    f"num_inference_steps={needed}, or with strength=1 for the whole plan"
                )
            if begin_index >= len(self._asked):
                raise InputError(
                    f"strength or denoising_start leaves none of the plan's {steps} steps; give a strength of at least "
                    f"1/{steps}, or an earlier start: its last step is at t = {tidy(self._whole[-1].move.t)}"
                )
            first = self._step_at(begin_index, "begin")
            if first >= self._last:
                raise InputError(
                    f"scheduler: the pipeline begins at t = {tidy(self._asked[begin_index])}, where denoising_end of "
                    f"{type(self.pipe).__name__} has ended the plan; {ANOTHERS}"
                )
            path = stretches(rest(self._plan, first, self._model.schedule), self._model)
            if [t for stretch in path for t in stretch.move.ask] != self._asked[begin_index:]:
                raise InputError(
                    f"solver {self._plan.solver} begins otherwise than it goes on; it cannot begin in the middle"
                )
        except InputError:
            self.stop()
            raise
        if any(self._plan.params[first:]):
            warnings.warn(FREE, stacklevel=2)
        default = self._default("strength")
        if first == 1 and isinstance(default, float) and 0.99 <= default < 1:
            second = f"{type(self.pipe).__name__} begins at the plan's second step; for the whole plan give strength=1"
            warnings.warn(f"{second} (this pipeline's default is {default:g})", stacklevel=2)
        self._first, self._path = begin_index, path[: self._last - first]

    def _stop_early(self) -> int:
        """How many steps the pipeline makes: all, or those before the ``denoising_end`` of Stable Diffusion XL."""
        end = getattr(self.pipe, "denoising_end", None)
        if not (isinstance(end, float) and 0 < end < 1):
            return len(self._whole)
        training = len(self._model.schedule)
        cutoff = round(training - end * training)  # as the pipelines do it
        before = sum(t >= cutoff for t in self._asked)
        if not before:
            raise InputError(
                f"denoising_end = {end:g} leaves none of the plan's steps, the first of which is at "
                f"t = {tidy(self._asked[0])}; give a later end"
            )
        return self._step_at(before, "end")

    def _step_at(self, evaluations: int, what: str) -> int:
        """The number of the step that begins after so many evaluations, or how many there are.

        Raises:
            InputError: none does, or it asks the network elsewhere than where it begins.
        """
        if evaluations == len(self._asked):
            return len(self._whole)
        step = self._begins.index(evaluations) if evaluations in self._begins else 0
        move = self._whole[step].move
        if step == 0 or move.ask[0] != move.t:
            at = tidy(self._asked[evaluations])
            raise InputError(
                f"solver {self._plan.solver} cannot {what} at t = {at}, which is within a step of the plan"
            )
        return step

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As :meth:`StandIn.add_noise`; warns where a plan with free numbers begins with what it makes."""
        begins = self._begun and self._run is None and self._first == 0
        image = begins and self._schedule.alpha(float(timesteps.flatten()[0])) > TRACE  # none is left in pure noise
        if image and not self._blends and any(self._plan.params):
            warnings.warn(FREE, stacklevel=2)
        return super().add_noise(original_samples, noise, timesteps)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Hands the network's answer to the solver.

        Args:
            model_output: what the network says of ``sample``, ``[B, ...]``; channels of a learned variance behind are
                not used.
            eta, use_clipped_model_output: not followed; the plan has its own.
            generator: of the noise that the plan's solver draws, if it draws any.

        Returns:
            Where the network is asked next, at the end the sample, in the dtype of ``sample``; as a tuple twice, for
            the pipelines of PixArt take the second where they are asked for one step.

        Raises:
            InputError: the plan is not begun, is begun elsewhere than was said, or the sample is not the one that was
                returned.
        """
        if not self._begun:
            raise InputError(
                f"scheduler: the plan is at its end, broken off or not begun; set_timesteps begins it, and {ANOTHERS}"
            )
        run = self._run
        if run is None:
            first = float(self._times[self._first])
            if float(timestep) != first:
                self.stop()
                begins = f"the pipeline begins at t = {float(timestep):g}"
                raise InputError(f"scheduler: {begins}, the plan at {first:g}; set_begin_index begins it in its middle")
            if eta or use_clipped_model_output:
                warnings.warn("eta and clipping are those of the plan, not of this call", stacklevel=2)
            # a copy: the pipeline's tensors may be changed in place
            state = State(sample.to(torch.promote_types(sample.dtype, torch.float32), copy=True))
            run = self._run = Run(self._path, self._model, state, generator)
        elif not self._blends and not run.returned(sample):
            self.stop()
            raise InputError(
                "scheduler: the sample was changed between two steps, which cannot be while following a plan; "
                f"{ANOTHERS}"
            )
        run.answers.append(model_output)
        x = run.hand_out(run.go_on(), sample.dtype)
        if run.move == len(run.path):
            self.stop()
        return SchedulerOutput(prev_sample=x) if return_dict else (x, x)

    @contextmanager
    def asking(self, at: Tensor | float | None) -> Iterator[None]:
        """A context for a call of the network, without the layers that the plan leaves out there.

        A call at another time than the plan's next breaks the run off, if its pipeline has not: it is somebody else's.
        The time ``at`` is ``[B]`` or one number; ``None`` where it is not known, and taken for the plan's.
        """
        awaited = self._run.awaited if self._run else self._asked[self._first]
        if at is not None and not turns.same_time(at, awaited / self._divisor):
            self.stop()
            yield
            return
        try:
            skip = self._path[self._run.move if self._run else 0].skip
            with self._model.parts.without(skip) if skip else nullcontext():  # checked when the plan was applied
                yield
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the run and forgets it."""
        self._begun, self._run = False, None
        if self._model.module is not None:
            turns.end(self._model.module, self.asking)
