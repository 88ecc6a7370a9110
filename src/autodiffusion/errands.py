"""Errands: a task on its way through workers that may fail at it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autodiffusion.blocks import Done, Plans, Task
from autodiffusion.features import Features
from autodiffusion.sampling import Cost

TRIES = 2
"""How often a task may fail before its plans are tried one by one, and then each of these."""


@dataclass
class Errand:
    """A task on its way through the workers.

    Attributes:
        place: of the task among those given.
        left: the places of its plans that are not sampled yet.
        alone: whether they are tried one by one, because together they failed.
        tries: failures of what is tried now.
    """

    place: int
    task: Task
    left: list[int]
    alone: bool = False
    tries: int = 0
    found: dict[int, Features | str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    runs: tuple[Plans, ...] = ()

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
        self.cost, self.runs, self.tries = self.cost + done.cost, (*self.runs, *done.runs), 0

    def failed(self, reason: str) -> None:
        """It was not."""
        self.tries += 1
        if self.tries >= TRIES:
            if self.alone:
                self.found[self.left.pop(0)] = reason
            self.alone, self.tries = True, 0

    def result(self) -> Done:
        """What came of the task."""
        return Done([self.found[i] for i in range(len(self.task.plans))], self.cost, self.runs)
