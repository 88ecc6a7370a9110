"""Evaluation: a population of plans becomes scores. Noise blocks outside, plans inside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._evaluation.pool import Pool
from autodiffusion._notebook import table
from autodiffusion._plans.plan import Plan, tidy
from autodiffusion._plans.schedule import Floats
from autodiffusion._sampling.blocks import Sampler, Workers
from autodiffusion._sampling.errands import Here
from autodiffusion._sampling.memory import in_blocks
from autodiffusion._sampling.sampling import Cost, Tick, stretches
from autodiffusion.features import Extractor, Features
from autodiffusion.metrics import Metric
from autodiffusion.metrics._base import Interval, interval
from autodiffusion.metrics.fid import FID
from autodiffusion.metrics.kl import KL
from autodiffusion.models._model import Model

BATCH_SIZE = 128
LARGEST = 2.0**53
"""No score is larger: a ledger takes none."""
WIDE = 512
"""For features of more dimensions an FID has fewer resamples: one of 2,048 takes seconds on a CPU."""


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
        return self._blank.take([0] * samples)

    @cached_property
    def _blank(self) -> Features:
        return self.extractor(self.model.decode(torch.zeros(1, *self.model.shape)))

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
            slow = features.vectors.shape[1] > WIDE
            intervals |= {
                name: interval(metric, features, 40 if slow and isinstance(metric, FID) else 200)
                for name, metric in ordinary.items()
            }
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
        model = self.model
        alpha, sigma, scale = model.schedule.alpha(t), model.schedule.sigma(t), model.schedule.scale(t)

        def errors(block: range) -> Floats:
            x0 = images[block.start : block.stop].to(model.device)
            x = alpha * x0 + sigma * model.noise(block, seed)
            with model.without(skip):
                guess = (x - sigma * model.predict(x, t, model.recognize(x0))) / scale
            self.cost.evaluations += len(block)
            if tick:
                tick(len(block))
            guess = guess.clamp(-1, 1) if model.clip else guess
            found: Floats = (guess - x0).double().square().flatten(1).mean(1).cpu().numpy()
            return found

        return np.concatenate(in_blocks(errors, len(images), self.batch_size))

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
