"""Errands: a task on its way through whoever may fail at it, this process or others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from autodiffusion._errors import InputError, RunError
from autodiffusion._interrupts import checkpoint
from autodiffusion._sampling.blocks import Done, Plans, Sampler, Task
from autodiffusion._sampling.sampling import Cost, Tick
from autodiffusion.features import Features

TRIES = 2
"""How often a task may fail before its plans are tried one by one, and then each of these."""
LOST = 3
"""How often a worker may go with one plan before that plan counts as what ended it: they go for other reasons too."""


@dataclass
class Errand:
    """A task on its way through the workers.

    Attributes:
        place: of the task among those given.
        tries: failures of what is tried now, and ``lost`` the workers that went with it.
        left: the places of its plans that are not sampled yet.
        alone: whether they are tried one by one, because together they failed.
    """

    place: int
    task: Task
    tries: int = 0
    lost: int = 0
    left: list[int] = field(init=False)
    alone: bool = field(init=False)
    found: dict[int, Features | str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    runs: tuple[Plans, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.left = list(range(len(self.task.plans)))
        self.alone = len(self.left) == 1

    @property
    def next(self) -> Task:
        """What is to be sampled next."""
        task, plans = self.task, self.task.plans
        chosen = tuple(plans[i] for i in (self.left[:1] if self.alone else self.left))
        return replace(task, plans=chosen, step=task.step + len(self.runs), since=(*task.since, *self.runs))

    def done(self, done: Done) -> None:
        """It was sampled."""
        for found in done.found:
            self.found[self.left.pop(0)] = found
        self.cost, self.runs = self.cost + done.cost, (*self.runs, *done.runs)
        self.tries = self.lost = 0
        self.seconds += done.seconds

    def failed(self, reason: str) -> None:
        """It was not."""
        self.tries += 1
        if self.tries >= TRIES:
            self._give_up(reason)

    def went(self, reason: str) -> None:
        """The worker that had it is gone."""
        self.lost += 1
        if self.lost >= (LOST if self.alone else TRIES):
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """On the plan that is tried alone, or on trying all together."""
        if self.alone:
            self.found[self.left.pop(0)] = reason
        self.alone = True
        self.tries = self.lost = 0

    def result(self) -> Done:
        """What came of the task."""
        return Done([self.found[i] for i in range(len(self.task.plans))], self.cost, self.runs, self.seconds)


@dataclass
class Here:
    """This process as the only worker."""

    sampler: Sampler

    def each(self, tasks: Sequence[Task], tick: Tick | None = None) -> Iterator[tuple[int, Done]]:
        """What comes of tasks, each with its place among them.

        What fails is tried again, then plan by plan; a plan that fails alone has no features, but the reason.

        Raises:
            InputError: a plan cannot be followed.
            RunError: the device has failed.
            KeyboardInterrupt: asked for while the task before was done.
        """
        for place, task in enumerate(tasks):
            checkpoint()
            errand = Errand(place, task)
            while errand.left:
                try:
                    done = self.sampler.run(errand.next, tick)
                except InputError:
                    raise
                except Exception as error:  # of a model or a feature network that somebody else wrote
                    if not self.sampler.sound():
                        raise RunError(
                            f"device '{self.sampler.model.device}': failed ({said(error)}); what was scored is kept, "
                            "call it again"
                        ) from error
                    errand.failed(failure(error))
                else:
                    errand.done(done)
            yield place, errand.result()

    def forget(self, noise: str) -> None:
        """Frees the states of a noise."""
        self.sampler.forget(noise)


def failure(error: BaseException) -> str:
    """Why there are no features: ``sampling failed (ValueError: ...)``."""
    return f"sampling failed ({said(error)})"


def said(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
