"""Pool: the features of plans on one noise, of which nothing is computed twice."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autodiffusion._plans.plan import Plan
from autodiffusion._sampling.blocks import Task
from autodiffusion._sampling.sampling import Tick, blocks
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

    def add(self, plans: tuple[Plan, ...]) -> None:
        """These have been sampled."""
        self.step, self.since = self.step + 1, (*self.since, plans)
        self.walked = tuple(dict.fromkeys([*self.walked, *plans]))

    def keep(self, held: tuple[Plan, ...]) -> None:
        """Of all others the states are freed."""
        if self.since:
            self.before, self.held, self.since = self.walked, (), ()
        self.held = (*self.held, held)
        self.walked = tuple(plan for plan in self.walked if plan in held)


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
        self._parts: dict[Plan, dict[int, Features]] = {}
        self._problems: dict[Plan, str] = {}
        self._logs: dict[int, _Log] = {}
        self._name = f"{seed} {next(_pools)}"
        weakref.finalize(self, evaluator.workers.forget, self._name)

    def grow(self, plans: Sequence[Plan], samples: int, tick: Tick | None = None) -> list[Features | str]:
        """The features of each plan's first ``samples`` samples, in their order; a sentence for one that fails."""
        wanted = [number for number, block in enumerate(self.blocks) if block.stop <= samples]
        tasks = {number: task for number in wanted if (task := self._task(number, plans)).plans}
        numbers, problems = list(tasks), dict[Plan, tuple[int, str]]()
        for place, done in self.evaluator.workers.each(list(tasks.values()), tick):
            number = numbers[place]
            if self._limit:
                for sampled in done.runs:
                    self._logs[number].add(sampled)
            self.evaluator.cost += done.cost
            for plan, found in zip(tasks[number].plans, done.found, strict=True):
                if isinstance(found, str):  # of several blocks the first says it, whichever comes first
                    problems[plan] = min(problems.get(plan, (number, found)), (number, found))
                else:
                    self._parts.setdefault(plan, {})[number] = found
        for plan, (_, problem) in problems.items():
            self._problems[plan] = problem
            self._parts.pop(plan, None)
        return [
            self._problems.get(plan) or Features.cat([self._parts[plan][number] for number in wanted]) for plan in plans
        ]

    def keep(self, held: Mapping[Plan, int]) -> None:
        """Frees everything but what ``held`` says: of which plans how many samples.

        What is held and is not there is to be asked for before the next call.
        """
        self._parts = {plan: parts for plan, parts in self._parts.items() if plan in held}
        self._problems = {plan: problem for plan, problem in self._problems.items() if plan in held}
        for number, log in self._logs.items():
            log.keep(tuple(plan for plan in held if held[plan] >= self.blocks[number].stop))

    def _task(self, number: int, plans: Sequence[Plan]) -> Task:
        """The task of a block: those of the plans that it has no features of."""
        block = self.blocks[number]
        short = tuple(
            plan
            for plan in dict.fromkeys(plans)
            if plan not in self._problems and number not in self._parts.get(plan, ())
        )
        if not self._limit:
            return Task(self._name, self.seed, block, short)
        log = self._logs.setdefault(number, _Log())
        limit = max(1, self._limit * len(block) // self.blocks[-1].stop)
        return Task(self._name, self.seed, block, short, limit, log.step, log.before, log.held, log.since)
