"""Costs: what a plan costs, in layers, multiply-accumulates or milliseconds, with and without some of its layers."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan

Unit: TypeAlias = Literal["layers", "macs", "ms"]

# no more digits before the point than a cost can have, so that what is made of it stays finite
AMOUNT = re.compile(r"\s*(\d{1,15}(?:\.\d*)?|\.\d+)\s*(?:(%)|(layers?)|([kmgt]?)(macs?)|(ms))\s*", re.IGNORECASE)
FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class MaxCost:
    """What a plan may cost, as a user says it.

    Attributes:
        amount: in ``unit``, above 0.
        unit: ``None`` for a percentage of what whole steps cost in multiply-accumulates.
    """

    amount: float
    unit: Unit | None

    @classmethod
    def parse(cls, text: str, where: str) -> MaxCost:
        """``60%``, ``232 layers``, ``1.5 GMACs`` (k, M, G or T) or ``35 ms``.

        Raises:
            InputError: beginning with ``where``; it is none of these, or not above 0.
        """
        found = AMOUNT.fullmatch(text)
        if not found or float(found[1]) == 0:
            raise InputError(f"{where} '{text}' is not a cost; give one such as 60%, 232 layers, 1.5 GMACs or 35 ms")
        unit: Unit | None = None if found[2] else "layers" if found[3] else "macs" if found[5] else "ms"
        return cls(float(found[1]) * FACTORS[(found[4] or "").lower()], unit)


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

    unit: Unit
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


def priced(cost: Mapping[str, float]) -> str:
    """A cost in several units as a table has it: ``232 layers, 1.21 GMACs, 35.2 ms``."""
    return ", ".join(_macs(value) if unit == "macs" else f"{short(value)} {unit}" for unit, value in cost.items())


def _macs(value: float) -> str:
    prefix = next((prefix for prefix in "TGMk" if value >= FACTORS[prefix.lower()]), "")
    return f"{short(value / FACTORS[prefix.lower()])} {prefix}MACs"


def short(value: float) -> str:
    """Three digits, or as many as the whole part has: ``35.2``, ``1,235``."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def check_layers(layers: Collection[int], count: int, where: str) -> None:
    """Raises :class:`InputError`, beginning with ``where``, unless every layer is one of ``count``."""
    for layer in sorted(layers):
        if not 0 <= layer < count:
            known = f"the network has layers 0 to {count - 1}" if count else "the network has none that may go"
            raise InputError(f"{where} layer {layer} does not exist; {known}")


def number(value: float) -> str:
    """A cost in a message."""
    return f"{value:,.15g}"
