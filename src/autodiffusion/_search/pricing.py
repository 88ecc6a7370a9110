"""Pricing: what plans of a model cost, and which of them a budget on that allows."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

from autodiffusion._errors import InputError
from autodiffusion._plans.plan import Plan
from autodiffusion._sampling.sampling import stretches
from autodiffusion._spaces.costs import Costs, MaxCost, Unit
from autodiffusion._spaces.layered import LayeredSpace
from autodiffusion._spaces.space import SearchSpace
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import write
from autodiffusion.models._model import Model


@dataclass(frozen=True)
class Pricing:
    """What plans of a model cost.

    Attributes:
        costs: of its network, one in each unit that is known: layers and multiply-accumulates where the network has
            layers, milliseconds where they were measured. Empty where the network has no layers.
    """

    model: Model
    costs: tuple[Costs, ...]

    @classmethod
    def of(cls, model: Model, times: Costs | None = None) -> Pricing:
        """The pricing of a model, with what was measured of its layers' times, if it was.

        Raises:
            InputError: a layer rule does not fit the network.
        """
        if not model.layers:
            return cls(model, ())
        macs = Costs("macs", float(model.macs), tuple(float(layer.macs) for layer in model.layers))
        return cls(model, (Costs.layers(len(model.layers)), macs, *([times] if times else [])))

    def plan(self, plan: Plan) -> dict[str, float]:
        """What one sample of a plan costs, by unit: ``{"layers": 232, "macs": 1200000}``.

        Raises:
            InputError: the plan does not fit the model.
        """
        asked = [len(stretch.move.ask) for stretch in stretches(plan, self.model)]
        found = {costs.unit: costs.of(plan, asked) for costs in self.costs}
        return {unit: cost if unit == "ms" else round(cost) for unit, cost in found.items()}

    def unit(self, unit: Unit) -> Costs:
        """The network's costs in a unit that is known."""
        return next(costs for costs in self.costs if costs.unit == unit)


def layered_space(settings: Settings, space: SearchSpace, pricing: Pricing) -> tuple[LayeredSpace, int]:
    """The plans that the settings allow, and how many whole steps their budget pays for, at least 1.

    Args:
        space: whole-network plans of ``settings.steps`` steps.

    Raises:
        InputError: the network has no layers, no plan is within the budget, or so many steps do not fit.
    """
    pricing.model.check(frozenset())
    evaluations, steps = evaluations_of(space, pricing.model), settings.steps
    wanted = MaxCost.parse(settings.max_cost or whole_layers(pricing, evaluations(steps)), "max_cost")
    costs = pricing.unit(wanted.unit or "macs")

    def whole(count: int) -> float:
        return costs.total([()] * count, evaluations(count))

    budget = wanted.amount if wanted.unit else whole(steps) * wanted.amount / 100
    feasible = (len(space.times) - 1) // space.gap + 1 - space.free_end
    affordable = max(1, bisect_right(range(1, feasible + 1), budget, key=whole))
    least = settings.min_steps or min(affordable, steps)
    most = settings.max_steps or min(feasible, max(steps, round(1.5 * steps * budget / whole(steps))))
    # downwards, so that more steps than fit are refused before there is a space for each number
    spaces = {count: replace(space, steps=count) for count in chain(range(most, least - 1, -1), [affordable])}
    try:
        return LayeredSpace(spaces, least, most, costs, budget, evaluations=evaluations), affordable
    except InputError as error:
        raise InputError(f"max_cost = {settings.max_cost}: {error}") from None


def whole_layers(pricing: Pricing, evaluations: Sequence[int]) -> str:
    """The paper's N_max: the layers of whole-network steps with these evaluations."""
    return f"{sum(evaluations) * len(pricing.model.layers)} layers"


def evaluations_of(space: SearchSpace, model: Model) -> Callable[[int], tuple[int, ...]]:
    """The network evaluations of each step of plans of the space's solver, by their number of steps."""

    @cache
    def evaluations(steps: int) -> tuple[int, ...]:
        example = replace(space, steps=steps, free=())
        plan = example.plan(range(example.nodes))
        return tuple(len(stretch.move.ask) for stretch in stretches(plan, model))

    return evaluations


def measured(settings: Settings, model: Model, times: Costs | None) -> Costs | None:
    """The times of the model's layers where ``max_cost`` is counted in them: those given, or measured now."""
    if settings.max_cost is None or MaxCost.parse(settings.max_cost, "max_cost").unit != "ms":
        return None
    model.check(frozenset())
    if times is None:
        from autodiffusion._evaluation.timing import fitting, layer_times

        times = fitting(lambda size: layer_times(model, size), settings.batch_size)
    if len(times.saved) != len(model.layers):
        raise InputError(f"the layer times are of {len(times.saved)} layers, {model.name} has {len(model.layers)}")
    return times


def save_times(times: Costs, path: Path) -> None:
    """Keeps measured times, so that a resumed search has the same."""
    write(path, json.dumps({"whole": times.whole, "saved": times.saved}) + "\n")


def load_times(path: Path) -> Costs | None:
    """What :func:`save_times` kept, if it is there.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Costs("ms", float(kept["whole"]), tuple(float(saved) for saved in kept["saved"]))
    except (OSError, ValueError, TypeError, KeyError, InputError):
        raise InputError(f"{path}: is damaged; restore it or search into another folder") from None
