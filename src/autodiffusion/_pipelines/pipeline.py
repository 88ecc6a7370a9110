"""Applying a plan to a diffusers pipeline, and giving the pipeline back as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from autodiffusion._errors import InputError, nearest
from autodiffusion._pipelines import turns
from autodiffusion._pipelines.denoisers import PIPELINES, blends, divisor, flows
from autodiffusion._pipelines.plan_scheduler import PlanScheduler
from autodiffusion._plans.flow import FlowSchedule, is_flow
from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import NoiseSchedule, unfit_for_plans
from autodiffusion.models._model import Model

FOLLOWED = "_autodiffusion_scheduler"
"""Where a pipeline has the scheduler that follows its plan, even when it was given another; copied with it,
and gone with it."""


class Applied:
    """A plan that a pipeline follows, until :meth:`remove` or the end of a ``with``.

    Attributes:
        plan: the plan.
        pipe: the pipeline.
    """

    def __init__(self, plan: Plan, pipe: Any, scheduler: PlanScheduler, network: nn.Module | None) -> None:
        self.plan, self.pipe = plan, pipe
        self._scheduler, self._network = scheduler, network
        if network is not None:
            turns.connect(network)
        pipe.scheduler = scheduler.stock
        saved = dict(pipe.config)
        pipe.scheduler = scheduler
        pipe.register_to_config(**saved)  # a pipeline is saved with its own scheduler
        vars(pipe)[FOLLOWED], scheduler.undo = scheduler, self.remove

    def remove(self) -> None:
        """Gives the pipeline its own scheduler and its whole network back; once removed, does nothing.

        A scheduler that was set meanwhile stays.
        """
        scheduler = self._scheduler
        if scheduler.pipe is None:
            return
        scheduler.leave()
        vars(self.pipe).pop(FOLLOWED, None)
        if self.pipe.scheduler is scheduler:
            self.pipe.scheduler = scheduler.stock
        if self._network is not None:
            turns.disconnect(self._network)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def apply(plan: Plan, pipe: Any) -> Applied:
    """Makes a diffusers pipeline follow ``plan``: its solver, time steps, free numbers and layers left out.

    The pipeline then makes one iteration for each network evaluation of the plan, whatever number of steps it is called
    with. Predictions are clipped where the plan says so, not where the pipeline's scheduler does. A plan that the
    pipeline follows already is removed first.

    Args:
        pipe: of a class in :data:`PIPELINES`, or derived from one.

    Raises:
        InputError: the pipeline, its scheduler or its network cannot follow the plan. Nothing has been changed then.
    """
    if not isinstance(plan, Plan):
        raise InputError(f"apply: {plan!r} is not a plan; read it with Plan.load, and give the pipeline after it")
    before = getattr(pipe, "scheduler", None)
    stock = before.stock if isinstance(before, PlanScheduler) else before
    name, model = _model(pipe, stock)
    scheduler = PlanScheduler(pipe, stock, plan, model, PIPELINES[name][0], blends(name, model.module), divisor(name))
    followed = vars(pipe).get(FOLLOWED)
    if isinstance(followed, PlanScheduler) and followed.pipe is pipe:  # no shallow copy's, and none that was unpickled
        followed.remove()
    return Applied(plan, pipe, scheduler, model.module if scheduler.skips else None)


def known_as(kind: type) -> str:
    """The name in :data:`PIPELINES` of this class of pipelines, or of the one that it is derived from.

    Raises:
        InputError: there is none.
    """
    known = next((base.__name__ for base in kind.__mro__ if base.__name__ in PIPELINES), None)
    if known is None:
        name = kind.__name__
        raise InputError(f"pipeline {name} is none that plans can be applied to {nearest(name, PIPELINES)}")
    return known


def _model(pipe: Any, scheduler: Any) -> tuple[str, Model]:
    """What the pipeline is known as, and its network with the noise schedule and prediction that its scheduler says.

    Raises:
        InputError: the pipeline or its scheduler is of a kind that cannot follow a plan.
    """
    kind, known = type(pipe).__name__, known_as(type(pipe))
    component, called = PIPELINES[known]
    module = getattr(pipe, component, None)
    if module is None or scheduler is None:
        raise InputError(
            f"pipeline {kind} has no {component if module is None else 'scheduler'}; load the whole pipeline"
        )
    network, classes = called(module)
    config, schedule = module.config, _schedule(scheduler, known)
    # the weights of an offloaded network are nowhere (meta) until they are needed; those of a hollow one always
    device = pipe._execution_device if module.device.type == "meta" else module.device
    size = config.get("sample_size") or 64  # any in which layers can be found, of a transformer a small one
    size = 8 if component == "transformer" else size
    return known, Model(
        network,
        schedule,
        # of what the network takes: for repainting that is more than the sample. Only its layers are found with it
        (config.in_channels, *((size, size) if isinstance(size, int) else size)),
        prediction=scheduler.config.get("prediction_type", schedule.predictions[0]),
        classes=classes,
        name=kind,
        device=str(device),
        dtype=module.dtype,
        module=module,
    )


def _schedule(scheduler: Any, known: str) -> NoiseSchedule:
    """The noise schedule of a diffusers scheduler.

    Args:
        known: what its pipeline is known as.

    Raises:
        InputError: it runs from data to noise or not in discrete time steps; it is for flow matching and the pipeline
            is not, or the other way; or it has no schedule of a variance-preserving model.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if reason := unfit_for_plans(config, kind):
        raise InputError(f"scheduler {kind}: {reason}")
    if is_flow(config, kind):
        if not flows(known):
            raise InputError(f"scheduler {kind}: is for flow matching, which the networks of {known} are not made for")
        return FlowSchedule.from_scheduler(config)
    if flows(known):
        raise InputError(f"scheduler {kind}: is not for flow matching, which the networks of {known} are made for")
    values = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(values, Tensor):
        raise InputError(f"scheduler {kind}: is not of a variance-preserving model with discrete time steps")
    rounded = values.double().cpu().numpy()
    try:
        schedule = NoiseSchedule.from_config(config)
    except (InputError, TypeError, ValueError):
        schedule = None
    # the configuration describes in float64, as a search has it, what the scheduler holds in float32, some schedulers
    # with 2**-24 where no signal is left
    if (
        schedule is not None
        and len(schedule) == len(rounded)
        and np.allclose(schedule.alphas_cumprod, rounded, 1e-3, 1e-7)
    ):
        return schedule
    return NoiseSchedule.without_zero(rounded)  # as from_config, where no signal is left at the end
