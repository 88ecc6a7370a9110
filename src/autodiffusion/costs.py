"""Costs: what a plan costs, in layers, multiply-accumulates or milliseconds, with and without some of its layers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from autodiffusion.errors import InputError
from autodiffusion.plan import Plan


@dataclass(frozen=True)
class Costs:
    """What a network costs, whole and without some of its layers.

    Attributes:
        unit: "layers" counts the layers that are kept (the paper's N_max), "macs" multiply-accumulates of one sample,
            "ms" milliseconds.
        whole: one evaluation of the whole network.
        saved: what leaving out each layer saves, in the order of their numbers; not negative, together at most
            ``whole``.

    Raises:
        InputError: a ``whole`` or ``saved`` outside its range.
    """

    unit: Literal["layers", "macs", "ms"]
    whole: float
    saved: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.whole < math.inf:
            raise InputError(f"whole = {self.whole} {self.unit} is not a cost; it must be above 0 and finite")
        for layer, saved in enumerate(self.saved):
            if not 0 <= saved <= self.whole:
                raise InputError(
                    f"saved[{layer}] = {saved} {self.unit} is out of range; a layer saves 0 to {number(self.whole)}"
                )
        if math.fsum(self.saved) > self.whole:
            raise InputError(
                f"saved adds up to {number(math.fsum(self.saved))} {self.unit}; the whole network costs only "
                f"{number(self.whole)}"
            )

    @classmethod
    def layers(cls, count: int) -> Costs:
        """The paper's: each of ``count`` layers costs 1."""
        return cls("layers", float(count), (1.0,) * count)

    def of(self, plan: Plan, evaluations: Sequence[int]) -> float:
        """The cost of one sample: over all steps, network evaluations times the cost of what the step keeps.

        Args:
            evaluations: ``[steps]``, the network evaluations of each step.

        Raises:
            InputError: a step leaves out a layer that does not exist.
        """
        for i, step in enumerate(plan.steps):
            check_layers(step.skip, len(self.saved), f"steps[{i}].skip:")
        return self.total([step.skip for step in plan.steps], evaluations)

    def total(self, skips: Sequence[Collection[int]], evaluations: Sequence[int]) -> float:
        """As :meth:`of`, for the layers left out at each step."""
        # fsum rounds once, so that equal sets cost the same in any order and leaving out more never costs more
        costs = [self.whole - math.fsum(self.saved[layer] for layer in skip) for skip in skips]
        return math.fsum(count * cost for count, cost in zip(evaluations, costs, strict=True))

    def cheapest(self, evaluations: Sequence[int], free: Collection[int], most: int) -> float:
        """The least that steps with these evaluations can cost, each without up to ``most`` of the layers ``free``."""
        skip = sorted(free, key=lambda layer: -self.saved[layer])[:most]
        return self.total([skip] * len(evaluations), evaluations)


def check_layers(layers: Collection[int], count: int, where: str) -> None:
    """Raises :class:`InputError`, beginning with ``where``, unless every layer is one of ``count``."""
    for layer in sorted(layers):
        if not 0 <= layer < count:
            known = f"the network has layers 0 to {count - 1}" if count else "the network has none that may go"
            raise InputError(f"{where} layer {layer} does not exist; {known}")


def number(value: float) -> str:
    """A cost in a message."""
    return f"{value:,.15g}"
