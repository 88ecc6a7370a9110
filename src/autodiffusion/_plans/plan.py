"""Plan and Step: what to evaluate, when, and which layers to leave out; immutable, hashable, JSON in and out."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from autodiffusion._errors import InputError, one_line
from autodiffusion._notebook import table
from autodiffusion._plans.own_code import check_names

MAX_STEPS = 10_000
MAX_BYTES = 16 * 2**20
SHOWN = 50
"""Steps of a plan that a notebook shows."""


def _plain(value: object) -> object:
    """One message for what an option may be, where a union of types would give one for each of them."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"{value!r} is not true or false, a number or a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


Number = Annotated[float, Field(allow_inf_nan=False)]
Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Option = Annotated[bool | int | float | str, BeforeValidator(_plain)]


def tidy(value: float) -> float | int:
    """Whole numbers without a decimal point, so that 926.0 is written 926."""
    return int(value) if float(value).is_integer() else value


class Step(BaseModel):
    """One evaluation of the network: at time ``t``, without the layers ``skip``.

    Attributes:
        t: time in the model's own training time steps, 0 to T - 1; whole for models trained on discrete steps
            unless the solver is continuous.
        skip: numbers of the layers left out, in execution order from 0.
        params: what the solver leaves open for a step, by name, where that is not plain: ``{"noise": 1.2}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    t: Time
    skip: frozenset[Annotated[int, Field(ge=0)]] = frozenset()
    params: dict[str, Number] = Field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.t, self.skip, *sorted(self.params.items())))

    @field_validator("params")
    @classmethod
    def _sorted_params(cls, params: dict[str, float]) -> dict[str, float]:
        return dict(sorted(params.items()))

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plain steps say nothing of params: plans of before there were any keep their hashes."""
        content: dict[str, Any] = handler(self)
        if not self.params:
            del content["params"]
        return content

    @field_serializer("t")
    def _plain_t(self, t: float) -> float | int:
        return tidy(t)

    @field_serializer("skip")
    def _sorted_skip(self, skip: frozenset[int]) -> list[int]:
        return sorted(skip)


class Plan(BaseModel):
    """How to sample a model: a solver, its options and the steps.

    Attributes:
        solver: a solver's name, or ``package.module:attribute``.
        solver_options: what the solver was told, e.g. ``{"clip": true, "eta": 0.0}``.
        steps: strictly decreasing in ``t``; at least one.
        end: the time at which the solver stops, below the last step's; ``None`` is clean data.
        origin: where the plan came from (model, metric, seed, score, cost ...), plain JSON with finite numbers; not
            part of its identity.

    Two plans are equal, and have equal hashes on every machine, when all but ``origin`` is equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["autodiffusion.plan/1"] = "autodiffusion.plan/1"
    solver: str
    solver_options: dict[str, Option] = {}
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)
    end: Time | None = None
    origin: dict[str, Any] = {}

    @field_validator("solver_options")
    @classmethod
    def _sorted_options(cls, options: dict[str, Option]) -> dict[str, Option]:
        return dict(sorted(options.items()))

    @field_validator("origin")
    @classmethod
    def _plain_origin(cls, origin: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(origin, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"is not JSON with finite numbers ({error}); mend it or leave it out") from None
        return origin

    @model_validator(mode="after")
    def _decreasing(self) -> Plan:
        for i, (before, after) in enumerate(zip(self.steps, self.steps[1:], strict=False)):
            if after.t >= before.t:
                raise ValueError(
                    f"steps[{i + 1}].t = {tidy(after.t)} is not below steps[{i}].t = {tidy(before.t)}; "
                    "time steps must strictly decrease"
                )
        if self.end is not None and self.end >= self.steps[-1].t:
            raise ValueError(f"end = {tidy(self.end)} is not below the last step's t = {tidy(self.steps[-1].t)}")
        return self

    @field_serializer("end")
    def _plain_end(self, end: float | None) -> float | int | None:
        return None if end is None else tidy(end)

    @classmethod
    def of(
        cls,
        solver: str,
        times: tuple[float, ...] | list[float],
        *,
        end: float | None = None,
        solver_options: dict[str, Option] | None = None,
        origin: dict[str, Any] | None = None,
    ) -> Plan:
        """A plan of plain whole-network steps at ``times``, which must strictly decrease.

        Raises:
            InputError: they do not, or one of them or of the options is of no use.
        """
        try:
            return cls(
                solver=solver,
                solver_options=solver_options or {},
                steps=tuple(Step(t=float(t)) for t in times),
                end=end,
                origin=origin or {},
            )
        except ValidationError as error:
            raise one_line(error, "plan", cls.model_fields) from None
        except (TypeError, ValueError) as error:
            raise InputError(f"plan: times: {error}; give numbers") from None

    @property
    def times(self) -> tuple[float, ...]:
        """The times of the steps, first to last."""
        return tuple(step.t for step in self.steps)

    @property
    def params(self) -> tuple[dict[str, float], ...]:
        """The free numbers of the steps that are not plain, first to last."""
        return tuple(step.params for step in self.steps)

    @cached_property
    def digest(self) -> str:
        """64 hexadecimal digits that name the plan: SHA-256 of its canonical JSON without ``origin``."""
        identity = self.model_dump(mode="json", exclude={"origin"})
        identity["solver_options"] = {
            key: tidy(value) if isinstance(value, float) else value for key, value in self.solver_options.items()
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.digest == other.digest

    def __hash__(self) -> int:
        return int(self.digest[:15], 16)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Plan:
        """A copy in which some fields are others; pydantic's own would keep the digest that is known of this plan."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied

    def leaving(self, skips: Sequence[frozenset[int]] | None = None) -> Plan:
        """The same steps without these layers, one set a step; with ``None`` the whole network. Its origin is gone.

        Raises:
            InputError: not as many sets as steps.
        """
        chosen = [frozenset[int]()] * len(self.steps) if skips is None else skips
        if len(chosen) != len(self.steps):
            raise InputError(f"leaving: {len(chosen)} sets of layers for {len(self.steps)} steps; give one a step")
        steps = (step.model_copy(update={"skip": skip}) for step, skip in zip(self.steps, chosen, strict=True))
        return self.model_copy(update={"steps": tuple(steps), "origin": {}})

    def tuned(self, params: Sequence[Mapping[str, float]]) -> Plan:
        """The same steps with these free numbers, one mapping a step. Its origin is gone."""
        steps = (
            step.model_copy(update={"params": dict(sorted(given.items()))})
            for step, given in zip(self.steps, params, strict=True)
        )
        return self.model_copy(update={"steps": tuple(steps), "origin": {}})

    def with_origin(self, **origin: Any) -> Plan:
        """The same plan with ``origin`` replaced."""
        return self.model_copy(update={"origin": origin})

    def to_json(self) -> str:
        """The plan as an indented JSON document."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def _repr_html_(self) -> str:
        names = sorted({name for params in self.params for name in params})
        layers = any(step.skip for step in self.steps)
        head = ["step", "time", *(["layers left out"] if layers else []), *names]
        rows: list[list[object]] = []
        for number, step in enumerate(self.steps[:SHOWN], 1):
            skip = [", ".join(map(str, sorted(step.skip)))] if layers else []
            rows.append([number, tidy(step.t), *skip, *(step.params.get(name, "plain") for name in names)])
        options = ", ".join(f"{name}={value}" for name, value in self.solver_options.items())
        more = f"and {len(self.steps) - SHOWN} more steps" if len(self.steps) > SHOWN else ""
        end = "" if self.end is None else f"to {tidy(self.end)}"
        origin = "; ".join(f"{name}: {value}" for name, value in self.origin.items())
        return table(f"{self.solver} ({options})" if options else self.solver, head, rows, [more, end, origin])

    @classmethod
    def from_json(cls, text: str, where: str = "plan") -> Plan:
        """Reads what :meth:`to_json` wrote.

        Raises:
            InputError: not JSON, another format, an unknown key or a value out of range, with the field's name; or a
                solver of somebody's own in a module that this process has not imported: a plan brings no code.
        """
        try:
            plan = cls.model_validate_json(text)
        except ValidationError as error:
            raise one_line(error, where, (*cls.model_fields, *Step.model_fields)) from None
        check_names(plan, where)
        return plan

    def save(self, path: Path | str) -> None:
        """Writes the plan to ``path`` in one piece: a reader never sees half of it.

        Raises:
            InputError: there is no folder to write it in, or one in its place.
        """
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written; give a file in a folder that is there")
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.to_json(), encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Reads a plan file.

        Raises:
            InputError: as :meth:`from_json`, and when the file cannot be read.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{path}: is larger than {MAX_BYTES} bytes and cannot be a plan")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise InputError(f"{path}: cannot be read ({reason})") from None
        return cls.from_json(text, str(path))
