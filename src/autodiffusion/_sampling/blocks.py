"""Plans on blocks of noise: what a worker does, wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import torch

from autodiffusion._plans.plan import Plan
from autodiffusion._sampling.memory import halved
from autodiffusion._sampling.sampling import Beginnings, Cost, Tick, begin, stretches, walk
from autodiffusion.features import Extractor, Features
from autodiffusion.models._model import Model

Plans: TypeAlias = tuple[Plan, ...]


@dataclass(frozen=True)
class Task:
    """Plans to be sampled on a block of noise, and how the states came to be that they may go on from.

    Attributes:
        noise: the name of what all blocks of one noise have in common; states are kept by it.
        seed: of that noise.
        block: the numbers of the samples.
        plans: to be sampled.
        limit: bytes that the states of these samples may take afterwards; 0 keeps none, and the rest does not matter.
        step: how many runs there were on this block before. A worker that has the states of another step, or none,
            makes them again as follows, which is not counted.
        before: the plans whose states there were when states were last freed.
        held: of which plans states were kept then, each time that some were freed.
        since: what each task since then has sampled.
    """

    noise: str
    seed: int
    block: range
    plans: Plans
    limit: int = 0
    step: int = 0
    before: Plans = ()
    held: tuple[Plans, ...] = ()
    since: tuple[Plans, ...] = ()

    @property
    def walks(self) -> int:
        """How many plans a worker walks at most: with those of the history, where it does not have their states."""
        return len(self.plans) + len(self.before) + sum(map(len, self.since))


@dataclass(frozen=True)
class Done:
    """What came of a task.

    Attributes:
        found: of each plan, in their order, the features of the block's samples, or a sentence that says why there are
            none.
        cost: what was spent.
        runs: the plans as they were sampled, one after the other: all at once, unless some failed.
        seconds: that it took.
    """

    found: list[Features | str]
    cost: Cost
    runs: tuple[Plans, ...]
    seconds: float = 0.0


class Workers(Protocol):
    """Who samples: this process, or several elsewhere."""

    def each(self, tasks: Sequence[Task], tick: Tick | None = None) -> Iterator[tuple[int, Done]]:
        """What comes of tasks, as it comes, each with its place among them."""

    def forget(self, noise: str) -> None:
        """Frees the states of a noise."""


@dataclass
class _Kept:
    """The states of a block, part by part, after so many tasks."""

    step: int
    parts: list[tuple[range, Beginnings]]


@dataclass
class Sampler:
    """Samples plans on blocks of noise, and keeps the states that later plans go on from.

    Where the device's memory does not suffice for a block, it and all later ones are sampled in smaller parts; costs
    are the same, and so are features but for float rounding.

    Attributes:
        model: what is sampled.
        extractor: the feature network.
        most: samples at a time, once memory has run out.
    """

    model: Model
    extractor: Extractor
    most: int | None = None
    _kept: dict[tuple[str, int], _Kept] = field(default_factory=dict)

    def run(self, task: Task, tick: Tick | None = None) -> Done:
        """Samples the task's plans.

        Raises:
            InputError: a plan cannot be followed.
            torch.OutOfMemoryError: memory does not suffice for a single sample.
        """
        begun, whole = time.monotonic(), min(len(task.block), self.most or len(task.block))

        def attempt(size: int) -> Done:
            nonlocal tick
            shown, tick = tick, None  # what is done again has been shown
            if size < whole:
                self.most = size
            return self._run(task, shown)

        return replace(halved(attempt, whole, self._free), seconds=time.monotonic() - begun)

    def sound(self) -> bool:
        """Whether the device still computes; after some faults of a GPU nothing in this process does on it."""
        try:
            return bool(torch.zeros(1, device=self.model.device).cpu() == 0)
        except RuntimeError:
            return False

    def forget(self, noise: str) -> None:
        """Frees the states of a noise."""
        self._kept = {place: kept for place, kept in self._kept.items() if place[0] != noise}

    def _free(self) -> bool:
        """Gives up all states, and says whether there were any; what is gone on from again is then made again."""
        there = bool(self._kept)
        self._kept.clear()
        return there

    def _run(self, task: Task, tick: Tick | None) -> Done:
        cost, place = Cost(), (task.noise, task.block.start)
        kept = self._states(task)
        found: list[list[Features]] = [[] for _ in task.plans]
        problems: dict[int, int] = {}
        for part, begun in kept.parts:
            for i, x in walk(self.model, task.plans, part, task.seed, cost, tick, begun):
                bad = int((~torch.isfinite(x).flatten(1).all(1)).sum())
                if bad:
                    problems[i] = problems.get(i, 0) + bad
                else:
                    found[i].append(self.extractor(self.model.decode(x)))
            begun.trim()
        if task.limit:
            kept.step += 1
            self._kept[place] = kept
        first, last = task.block[0], task.block[-1]
        return Done(
            [
                f"{problems[i]} of samples {first} to {last} are not finite" if i in problems else Features.cat(parts)
                for i, parts in enumerate(found)
            ],
            cost,
            (task.plans,),
        )

    def _states(self, task: Task) -> _Kept:
        """The states from which the task's plans may go on, as its history left them."""
        kept = self._kept.pop((task.noise, task.block.start), None)
        size = min(len(task.block), self.most or len(task.block))
        if kept is None or kept.step != task.step or len(kept.parts[0][0]) > size:
            edges = range(task.block.start, task.block.stop, size)
            parts = [range(start, min(start + size, task.block.stop)) for start in edges]
            # of the limit as much as of the samples, so that parts of any length keep the same states
            limits = [task.limit * len(part) // len(task.block) for part in parts]
            begun = [begin(self.model, part, task.seed, limit) for part, limit in zip(parts, limits, strict=True)]
            kept = _Kept(task.step, list(zip(parts, begun, strict=True)))
            self._sample_again(kept, task.before, task.seed)
            self._forget_others(kept, task.held)
            for plans in task.since:
                self._sample_again(kept, plans, task.seed)
        elif not task.since:
            self._forget_others(kept, task.held)
        return kept

    def _sample_again(self, kept: _Kept, plans: Sequence[Plan], seed: int) -> None:
        """Walks plans for the states on their ways; what that costs was counted when they were sampled."""
        for part, begun in kept.parts:
            for _ in walk(self.model, plans, part, seed, Cost(), None, begun):
                pass
            begun.trim()

    def _forget_others(self, kept: _Kept, held: Sequence[Plans]) -> None:
        """Forgets the states that do not lie on the ways of the plans held, each time that it was said."""
        for plans in held:
            ways = [tuple(stretch.key for stretch in stretches(plan, self.model)) for plan in plans]
            for _, begun in kept.parts:
                begun.keep_only(ways)
