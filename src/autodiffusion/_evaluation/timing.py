"""Time: what a network, each of its layers and the sampling of plans take on the user's own device, measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import nn

from autodiffusion._plans.plan import Plan
from autodiffusion._plans.schedule import Floats
from autodiffusion._sampling.memory import halved
from autodiffusion._sampling.sampling import Cost, walk
from autodiffusion._spaces.costs import Costs
from autodiffusion.models._model import Model

T = TypeVar("T")
LEAST, MOST = 3, 25
"""Rounds of a measurement that count: so many even where one takes long, and no more where it is short."""
PATIENCE = 3
"""After so many times the seconds that a measurement was given, one round that counts is enough."""


@dataclass(frozen=True)
class Clock:
    """Tells the time in the order of a device's work.

    On CUDA marks are events in the device's queue, so that measuring does not hold it up. Other devices are waited for.
    """

    device: torch.device

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def mark(self) -> Any:
        """The moment at which the device is done with what it was given so far."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        self.wait()
        return perf_counter()

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from one mark to another; on CUDA, :meth:`wait` comes first."""
        elapsed = start.elapsed_time(end) if self.device.type == "cuda" else 1000 * (end - start)
        return float(elapsed)


def fitting(measure: Callable[[int], T], batch_size: int) -> T:
    """What ``measure`` finds of batches of ``batch_size`` samples, or of the largest half, quarter ... that fits.

    A warning says which, as time for a sample depends on it.

    Raises:
        torch.OutOfMemoryError: memory does not suffice for a single sample.
    """
    size, found = halved(lambda size: (size, measure(size)), batch_size)
    if size < batch_size:
        warnings.warn(f"a batch of {batch_size} does not fit into memory; times are of batches of {size}", stacklevel=2)
    return found


def layer_times(model: Model, batch_size: int, seconds: float = 5.0) -> Costs:
    """What a prediction takes and what leaving out each layer saves, in milliseconds for one sample.

    It is a sample's part of a batch of ``batch_size``: give the one that sampling uses, and the costs of steps add up.
    The whole is the median of passes as they run. Passes with marks take turns with them: these time each block, its
    bypass and all that lies between blocks, and the shortest time of each such part counts, as other work on the
    machine only adds to it. What a layer saves is the time of its block less its bypass, as a share of the sum of the
    parts. One such pass measures all layers, where passes with and without each layer would take as many as there are
    layers, and one layer is less than what a pass differs from the next.

    The network's blocks are timed as they are written where it is compiled; the whole, with a classifier that guides,
    as it runs. What the solver does between two predictions is not counted.

    Args:
        seconds: the measurement ends after the round in which they are over, but not before ``LEAST`` rounds, unless
            these take ``PATIENCE`` times as long.

    Raises:
        torch.OutOfMemoryError: such a batch does not fit into memory.
    """
    blocks = model.parts.blocks  # found before inference mode begins
    clock = Clock(torch.device(model.device))
    x, condition = model.noise(range(batch_size), seed=0), model.condition(range(batch_size), seed=0)
    t = (len(model.schedule) - 1) // 2

    @torch.inference_mode()
    def once() -> tuple[Any, Any]:
        start = clock.mark()
        model.predict(x, t, condition)
        model.guide(x, t, condition)
        return start, clock.mark()

    wholes, rows, order = [], [], []
    for _ in _rounds(seconds):
        alone = once()
        clock.wait()
        with _marked(blocks, clock) as calls:
            start, end = once()
        clock.wait()
        wholes.append(clock.between(*alone))
        begins, ends = ([call[place] for call in calls] for place in (1, 2))
        passed = [start, *(call[3] for call in calls)]
        parts = zip([*passed, *begins, *ends], [*begins, end, *ends, *passed[1:]], strict=True)
        rows.append([clock.between(*part) for part in parts])
        order = [call[0] for call in calls]
    between, inside, bypass = np.split(np.min(rows[1:], axis=0), [len(order) + 1, 2 * len(order) + 1])
    saved: Floats = np.zeros(len(blocks))
    np.add.at(saved, order, inside - bypass)
    whole = median(wholes[1:]) / batch_size
    # a little less, so that rounding does not make the sum more than the whole
    saved = saved.clip(0) * whole / (between.sum() + inside.sum()) * (1 - 1e-9)
    return Costs("ms", whole, tuple(saved.tolist()))


@dataclass(frozen=True)
class Timing:
    """How long the sampling of a plan takes.

    Attributes:
        ms: milliseconds for one sample, the median of the rounds.
        low: their lower quartile.
        high: their upper quartile.
        ms_whole: the median for the same steps with the whole network.
        ratio: of the time to that with the whole network, the median of the rounds' own ratios; it is steadier than
            that of the medians.
    """

    ms: float
    low: float
    high: float
    ms_whole: float
    ratio: float


def plan_times(
    model: Model,
    plans: Sequence[Plan],
    batch_size: int,
    seconds: float = 10.0,
    most: int = MOST,
) -> list[Timing]:
    """The wall time of sampling each plan as it will run, from drawing noise to what is then turned into images.

    All plans and the same steps with the whole network take turns, in an order that turns around from one round to the
    next, so that neither other work on the machine nor a device that warms up favours one of them.

    Args:
        batch_size: samples that are drawn at once.
        seconds: the measurement ends after the round in which they are over, but not before ``LEAST`` rounds, unless
            these take ``PATIENCE`` times as long.
        most: rounds that count, at most.

    Raises:
        InputError: a plan does not fit the model.
        torch.OutOfMemoryError: such a batch does not fit into memory.
    """
    clock = Clock(torch.device(model.device))
    runs = list(dict.fromkeys([*plans, *(plan.leaving() for plan in plans)]))
    spent: dict[Plan, list[float]] = {plan: [] for plan in runs}
    for number in _rounds(seconds, most):
        for plan in runs if number % 2 else reversed(runs):
            clock.wait()
            start = perf_counter()
            for _ in walk(model, [plan], range(batch_size), 0, Cost()):
                clock.wait()
            spent[plan].append(1000 * (perf_counter() - start) / batch_size)

    def timing(plan: Plan) -> Timing:
        times, wholes = spent[plan][1:], spent[plan.leaving()][1:]
        low, middle, high = (float(ms) for ms in np.quantile(times, [0.25, 0.5, 0.75]))
        return Timing(middle, low, high, median(wholes), median(a / b for a, b in zip(times, wholes, strict=True)))

    return [timing(plan) for plan in plans]


Call: TypeAlias = tuple[int, Any, Any, Any]
"""A call of a block: its number and the marks when it began, when it ended, and when its bypass had ended after it."""


@contextmanager
def _marked(blocks: Sequence[tuple[nn.Module, Callable[..., Any]]], clock: Clock) -> Iterator[list[Call]]:
    """Marks each call of each block, in the order of the calls, and does its bypass after it."""
    calls: list[Call] = []
    begun: list[Any] = []  # blocks do not lie within one another

    def before(*_: Any) -> None:
        begun.append(clock.mark())

    def after(number: int, bypass: Callable[..., Any]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> None:
            end = clock.mark()
            bypass(module, *args, **kwargs)
            calls.append((number, begun.pop(), end, clock.mark()))

        return hook

    with ExitStack() as stack:
        for number, (module, bypass) in enumerate(blocks):
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after(number, bypass), with_kwargs=True).remove)
        if hasattr(torch.compiler, "set_stance"):  # torch 2.6: what is compiled runs as it was written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield calls


def _rounds(seconds: float, most: int = MOST) -> Iterator[int]:
    """0, which does not count, and the numbers of the rounds that do, until ``seconds`` are over."""
    start = perf_counter()
    for number in range(most + 1):
        spent = perf_counter() - start
        if (number > LEAST and spent > seconds) or (number > 1 and spent > PATIENCE * seconds):
            return
        yield number
