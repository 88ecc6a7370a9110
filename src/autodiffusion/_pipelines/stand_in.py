"""What a scheduler is besides its loop, for one that stands in for a pipeline's own."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._plans.schedule import NoiseSchedule


class StandIn(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # config_name, of both
    """A scheduler in the place of another, ``stock``: it shows its configuration, and is saved and pickled as that.

    Attributes:
        init_noise_sigma: 1, the standard deviation of the first noise.
        pipe: the pipeline that it was made for; ``None`` once the plan was removed.
        stock: the scheduler that this one replaces.
        undo: gives the pipeline ``stock`` back; ``None`` once that was done.
    """

    init_noise_sigma = 1.0

    def __init__(self, pipe: Any, stock: Any, schedule: NoiseSchedule) -> None:
        configured: Any = self
        configured.register_to_config(**stock.config)
        self.pipe, self.stock, self._schedule = pipe, stock, schedule
        self.undo: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._schedule)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Samples as they are at these times: ``alpha(t) original + sigma(t) noise``.

        Args:
            original_samples: clean, ``[B, ...]``.
            timesteps: one for each sample, or one for all.
        """
        schedule, times = self._schedule, timesteps.flatten().tolist()
        shape = (len(times), *[1] * (original_samples.ndim - 1))
        alpha = original_samples.new_tensor([schedule.alpha(t) for t in times]).view(shape)
        sigma = original_samples.new_tensor([schedule.sigma(t) for t in times]).view(shape)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise`, as pipelines of flow matching call it."""
        return self.add_noise(sample, noise, timestep)

    def stop(self) -> None:
        """Ends the run and forgets it."""
        raise NotImplementedError

    def leave(self) -> None:
        """Ends the run, and begins no other: the plan was removed. It no longer holds its pipeline."""
        self.stop()
        self.pipe = self.undo = None

    def remove(self) -> None:
        """Gives the pipeline ``stock`` back; once removed, does nothing."""
        if self.undo is not None:
            self.undo()

    def _default(self, option: str) -> Any:
        """Of an option of the pipeline's call; ``None`` where it has no such option."""
        parameter = inspect.signature(self.pipe.__call__).parameters.get(option)
        return parameter.default if parameter else None

    @property
    def compatibles(self) -> list[type]:
        """Those of ``stock``."""
        found: list[type] = self.stock.compatibles
        return found

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises :class:`InputError`: a plan is in no configuration."""
        raise InputError(
            "scheduler: it follows a plan, which is in no configuration; for one like the pipeline's own write "
            "type(pipe.scheduler.stock).from_config(pipe.scheduler.config)"
        )

    def save_config(self, *args: Any, **kwargs: Any) -> None:
        """Saves ``stock``, as :meth:`save_pretrained` does, and warns that the plan is not in it."""
        warnings.warn("the plan is not saved with the pipeline; save it with Plan.save", stacklevel=2)
        self.stock.save_config(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickled, it is ``stock``, which reads without this package."""
        return copy.copy, (self.stock,)

    def __copy__(self) -> StandIn:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        made.stop()
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        """Of a copied pipeline it follows the plan there; alone, it is one more of the same pipeline."""
        if id(self.pipe) not in memo:
            return copy.copy(self)
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        made.stop()
        return made
