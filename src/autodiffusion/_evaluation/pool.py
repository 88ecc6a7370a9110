"""Pool: the features of plans on one noise, of which nothing is computed twice."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autodiffusion._plans.plan import Plan
from autodiffusion._sampling.blocks import Done, Task
from autodiffusion._sampling.sampling import Tick, blocks, way
from autodiffusion.features import Features

if TYPE_CHECKING:
    from autodiffusion._evaluation.evaluate import Evaluator

_pools = itertools.count()


@dataclass
class _Log:
    """What the plans of a block have been, as :class:`Task` has it."""

    step: int = 0
    walked: tuple[Plan, ...] = ()
    before: tuple[Plan, ...] = ()
    held: tuple[tuple[Plan, ...], ...] = ()
    since: tuple[tuple[Plan, ...], ...] = ()
    bare: set[Plan] = field(default_factory=set)
    """Plans whose features stay, so that they are not sampled again, and whose states were freed."""

    def add(self, plans: tuple[Plan, ...]) -> None:
        """These have been sampled."""
        self.step, self.since = self.step + 1, (*self.since, plans)
        self.walked = tuple(dict.fromkeys([*self.walked, *plans]))

    def keep(self, held: Sequence[Plan], fits: bool) -> None:
        """Of all others the states are freed; of all, unless they fit."""
        if self.since:
            self.before, self.held, self.since = self.walked, (), ()
        self.bare = (self.bare if fits else self.bare | set(self.walked)) & set(held)
        ways = tuple(plan for plan in held if plan not in self.bare) if fits else ()
        self.held = (*self.held, ways)
        self.walked = tuple(plan for plan in self.walked if plan in ways)
        if not ways:  # or plans would be sampled again to free their states
            self.before = ()


class Pool:
    """The features of plans on one noise, for numbers of samples that grow: what is there is not computed again.

    Attributes:
        evaluator: what samples, extracts and counts.
        blocks: the noise, cut where a count of ``counts`` ends and into parts of the evaluator's ``batch_size``.
    """

    def __init__(self, evaluator: Evaluator, seed: int, counts: Sequence[int], limit: int = 0) -> None:
        """An empty pool of the noise of ``seed``.

        Args:
            counts: the numbers of samples that will be asked for, rising.
            limit: bytes that states of solvers may take between calls of :meth:`grow`, all blocks together.
        """
        self.evaluator, self.seed, self._limit = evaluator, seed, limit
        edges = zip((0, *counts), counts, strict=False)
        self.blocks = [
            range(low + block.start, low + block.stop)
            for low, high in edges
            for block in blocks(high - low, evaluator.batch_size)
        ]
        self._parts: dict[Plan, dict[int, Features | None]] = {}
        """By the number of the block; ``None`` for what was computed before an interruption and is not here."""
        self._problems: dict[Plan, str] = {}
        self._logs: dict[int, _Log] = {}
        self._name = f"{seed} {next(_pools)}"
        weakref.finalize(self, evaluator.workers.forget, self._name)

    def grow(self, plans: Sequence[Plan], samples: int, tick: Tick | None = None) -> list[Features | str]:
        """The features of each plan's first ``samples`` samples, in their order; a sentence for one that fails."""
        tasks = {number: self._task(number, short) for number, short in self._short(plans, samples).items()}
        for number, done in self._sampled(tasks, tick):
            for sampled in done.runs:
                self._note(number, sampled)
            self.evaluator.cost += done.cost
        return [self._problems.get(plan) or self._features(plan, samples) for plan in plans]

    def skip(self, plans: Sequence[Plan], samples: int) -> None:
        """Takes note that :meth:`grow` was called so before an interruption."""
        for number, short in self._short(plans, samples).items():
            self._note(number, short)
            for plan in short:
                self._parts.setdefault(plan, {})[number] = None

    def restore(self, tick: Tick | None = None) -> None:
        """Computes the features again of which :meth:`skip` took note; that was paid for before and is not counted."""
        tasks = {}
        for number, block in enumerate(self.blocks):
            missing = tuple(plan for plan, parts in self._parts.items() if number in parts and parts[number] is None)
            if missing:
                tasks[number] = Task(self._name, self.seed, block, missing)
        for _ in self._sampled(tasks, tick):
            pass

    def keep(self, held: Mapping[Plan, int]) -> None:
        """Frees everything but what ``held`` says: of which plans how many samples.

        Of a block whose states did not all stay within the limit none is kept. Which of them would be left depends on
        all that was sampled before, which nobody knows any more who makes them again.
        """
        self._parts = {plan: parts for plan, parts in self._parts.items() if plan in held}
        self._problems = {plan: problem for plan, problem in self._problems.items() if plan in held}
        fits: dict[tuple[Plan, ...], bool] = {}
        for number, log in self._logs.items():
            if log.walked not in fits:
                points = {keys: size for plan in log.walked for keys, size in way(plan, self.evaluator.model).items()}
                fits[log.walked] = sum(points.values()) * self.blocks[-1].stop <= self._limit
            log.keep([plan for plan in held if held[plan] >= self.blocks[number].stop], fits[log.walked])

    def _features(self, plan: Plan, samples: int) -> Features:
        parts = [part for number, part in sorted(self._parts[plan].items()) if self.blocks[number].stop <= samples]
        return Features.cat([part for part in parts if part is not None])

    def _short(self, plans: Sequence[Plan], samples: int) -> dict[int, tuple[Plan, ...]]:
        """Of each block of the first ``samples`` samples the plans that it has no features of."""
        whole = [plan for plan in dict.fromkeys(plans) if plan not in self._problems]
        short = {
            number: tuple(plan for plan in whole if number not in self._parts.get(plan, ()))
            for number, block in enumerate(self.blocks)
            if block.stop <= samples
        }
        return {number: plans for number, plans in short.items() if plans}

    def _note(self, number: int, sampled: tuple[Plan, ...]) -> None:
        if self._limit:
            self._logs.setdefault(number, _Log()).add(sampled)

    def _task(self, number: int, plans: tuple[Plan, ...]) -> Task:
        """The task of sampling plans on a block, whose states are kept."""
        block = self.blocks[number]
        if not self._limit:
            return Task(self._name, self.seed, block, plans)
        log = self._logs.setdefault(number, _Log())
        limit = max(1, self._limit * len(block) // self.blocks[-1].stop)
        return Task(self._name, self.seed, block, plans, limit, log.step, log.before, log.held, log.since)

    def _sampled(self, tasks: Mapping[int, Task], tick: Tick | None) -> Iterator[tuple[int, Done]]:
        """What comes of tasks, by the number of the block; features and problems are taken note of."""
        numbers, problems = list(tasks), dict[Plan, tuple[int, str]]()
        for place, done in self.evaluator.workers.each(list(tasks.values()), tick):
            number = numbers[place]
            for plan, found in zip(tasks[number].plans, done.found, strict=True):
                if isinstance(found, str):  # of several blocks the first says it, whichever comes first
                    problems[plan] = min(problems.get(plan, (number, found)), (number, found))
                else:
                    self._parts.setdefault(plan, {})[number] = found
            yield number, done
        for plan, (_, problem) in problems.items():
            self._problems[plan] = problem
            self._parts.pop(plan, None)
