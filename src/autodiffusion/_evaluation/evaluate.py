"""Evaluation: a population of plans becomes scores. Noise blocks outside, plans inside."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._notebook import table
from autodiffusion._plans.plan import Plan, tidy
from autodiffusion._plans.schedule import Floats
from autodiffusion._sampling.blocks import Sampler, Task, Workers
from autodiffusion._sampling.errands import Here
from autodiffusion._sampling.sampling import Cost, Tick, blocks, stretches
from autodiffusion.features import Extractor, Features
from autodiffusion.metrics import Metric
from autodiffusion.metrics._base import Interval, interval
from autodiffusion.metrics.kl import KL
from autodiffusion.models._model import Model

BATCH_SIZE = 128
LARGEST = 2.0**53
"""No score is larger: a ledger takes none."""
_pools = itertools.count()
WIDE = 512
"""Features of more dimensions get a bootstrap of fewer resamples: one FID of 2,048 takes seconds on a CPU."""


@dataclass(frozen=True)
class Score:
    """What a plan scored.

    Attributes:
        value: of the metric, in its own sense; infinity (the worst) where ``problem`` is set.
        samples: how many the value stands on.
        problem: why there is no value, e.g. images that are not finite.
    """

    value: float
    samples: int
    problem: str | None = None

    def _repr_html_(self) -> str:
        value = f"{self.value:.4g}" if self.problem is None else self.problem
        return table("score", ["value", "samples"], [[value, f"{self.samples:,}"]])


@dataclass
class Evaluator:
    """Scores plans of one model, and counts what that costs.

    Attributes:
        model: what is sampled.
        extractor: the feature network.
        batch_size: samples in a noise block. Scores do not depend on it, beyond float rounding.
        cost: everything spent so far.
        elsewhere: who samples, where not this process does.
        workers: who samples.
    """

    model: Model
    extractor: Extractor
    batch_size: int = BATCH_SIZE
    cost: Cost = field(default_factory=Cost)
    elsewhere: Workers | None = None
    workers: Workers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.workers = self.elsewhere or Here(Sampler(self.model, self.extractor))

    def check(self, metric: Metric | KL) -> None:
        """Finds before any work is done what scoring would stumble over, whatever the number of samples.

        Raises:
            InputError: the model, the feature network, the metric and its reference do not fit together.
        """
        if isinstance(metric, KL):
            self._real_images(metric, 1)
        else:
            metric.fits(self.blank(metric.minimum))

    def blank(self, samples: int) -> Features:
        """The features of so many equal images, whose sample is 0 everywhere."""
        return self.extractor(self.model.decode(torch.zeros(1, *self.model.shape))).take([0] * samples)

    def scores(
        self, plans: Sequence[Plan], metric: Metric | KL, samples: int, seed: int, tick: Tick | None = None
    ) -> list[Score]:
        """A score for each plan, in their order, all on noise and conditions 0 to ``samples`` - 1 of ``seed``."""
        if isinstance(metric, KL):
            return [
                score_of(metric, metric.value(*bound), samples)
                for bound in self.bounds(plans, metric, samples, seed, tick)
            ]
        found = self.features(plans, samples, seed, tick)
        return [score_of(metric, part if isinstance(part, str) else metric.value(part), samples) for part in found]

    def intervals(
        self, plan: Plan, metrics: Mapping[str, Metric | KL], samples: int, seed: int, tick: Tick | None = None
    ) -> tuple[dict[str, Interval], str | None]:
        """Each metric's value with its interval, from the same samples of one plan; and why there is none, if so."""
        intervals: dict[str, Interval] = {}
        ordinary = {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}
        if ordinary:
            [features] = self.features([plan], samples, seed, tick)
            if isinstance(features, str):
                return {}, features
            resamples = 200 if features.vectors.shape[1] <= WIDE else 40
            intervals |= {name: interval(metric, features, resamples) for name, metric in ordinary.items()}
        for name, metric in metrics.items():
            if isinstance(metric, KL):
                [(log_snr, errors)] = self.bounds([plan], metric, min(samples, metric.available), seed, tick)
                intervals[name] = metric.interval(log_snr, errors)
        return {name: intervals[name] for name in metrics}, None

    def features(
        self, plans: Sequence[Plan], samples: int, seed: int, tick: Tick | None = None
    ) -> list[Features | str]:
        """The features of each plan's samples, in their order; a sentence for a plan whose samples are not finite."""
        return Pool(self, seed, [samples]).grow(plans, samples, tick)

    def bounds(
        self, plans: Sequence[Plan], metric: KL, samples: int, seed: int, tick: Tick | None = None
    ) -> list[tuple[Floats, Floats]]:
        """What the variational bound needs of each plan: (half log-SNR ``[K + 1]``, squared errors ``[K, samples]``).

        The end of a plan that ends in clean data counts as the training step with the least noise: the step from there
        to the data is the decoder's.
        A time that several plans share is evaluated once.
        """
        images, schedule = self._real_images(metric, samples), self.model.schedule
        errors: dict[tuple[float, frozenset[int]], Floats] = {}
        bounds = []
        for plan in plans:
            nodes = [(stretch.move.t, stretch.skip) for stretch in stretches(plan, self.model)]
            for node in nodes:
                if node in errors:
                    self.cost.saved += samples
                else:
                    errors[node] = self._denoising_errors(images, *node, seed, tick)
            end = schedule.first if plan.end is None else plan.end
            log_snr = np.array([schedule.log_snr(t) for t in (*plan.times, end)])
            bounds.append((log_snr, np.stack([errors[node] for node in nodes])))
        return bounds

    @torch.inference_mode()
    def _denoising_errors(self, images: Tensor, t: float, skip: frozenset[int], seed: int, tick: Tick | None) -> Floats:
        """Mean squared errors ``[N]`` of the clean data predicted at ``t`` from noised real images, in [-1, 1]."""
        model, parts = self.model, []
        alpha, sigma, scale = model.schedule.alpha(t), model.schedule.sigma(t), model.schedule.scale(t)
        for block in blocks(len(images), self.batch_size):
            x0 = images[block.start : block.stop].to(model.device)
            x = alpha * x0 + sigma * model.noise(block, seed)
            with model.without(skip):
                guess = (x - sigma * model.predict(x, t, model.recognize(x0))) / scale
            self.cost.evaluations += len(block)
            if tick:
                tick(len(block))
            guess = guess.clamp(-1, 1) if model.clip else guess
            parts.append((guess - x0).double().square().flatten(1).mean(1).cpu().numpy())
        return np.concatenate(parts)

    def _real_images(self, metric: KL, samples: int) -> Tensor:
        """The first ``samples`` images of the metric's reference in [-1, 1], checked to be of the model's kind."""
        images, name = metric.images, metric.reference.name
        if len(images) < samples:
            raise InputError(
                f"reference {name}: kl of {samples} samples needs as many real images, it has {len(images)}"
            )
        if tuple(images.shape[1:]) != self.model.shape:
            raise InputError(
                f"reference {name}: images {tuple(images.shape[1:])} are not of the model's shape, {self.model.shape}"
            )
        self.model.recognize(images[:1].to(self.model.device).float())
        return images[:samples].float() / 127.5 - 1


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


def score_of(metric: Metric | KL, value: float | str, samples: int) -> Score:
    """The score of a value, or of the reason why there is none; one above :data:`LARGEST` is none."""
    if isinstance(value, str):
        return Score(metric.worst, samples, value)
    usable = abs(value) <= LARGEST  # not of what is not a number
    return Score(value, samples) if usable else Score(metric.worst, samples, f"the metric is {value}")


def derive_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose: noise of search, choice and confirmation never meets, whatever the user's seeds are."""
    return int(hashlib.sha256(f"{seed} {purpose}".encode()).hexdigest()[:15], 16)


def describe(plan: Plan) -> str:
    """The plan in one line: ``ddim at 926, 690, 424, 153``."""
    times = ", ".join(f"{tidy(round(t, 2))}" for t in plan.times)
    end = "" if plan.end is None else f", to {tidy(round(plan.end, 2))}"
    return f"{plan.solver} at {times}{end}"
