"""Events: what may stand in a ledger, whoever wrote it."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from autodiffusion._errors import one_line
from autodiffusion._plans.own_code import check_names
from autodiffusion._plans.plan import Plan

HUGE = 2**53
"""No number in a ledger is larger; above, not every whole number is a float."""
Number = Annotated[float, Field(ge=-HUGE, le=HUGE, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Costs = dict[str, Annotated[Number, Field(ge=0)]]


def _of_size(plan: Plan) -> Plan:
    numbers = [*plan.times, plan.end or 0.0, *(number for params in plan.params for number in params.values())]
    if any(abs(number) > HUGE for number in numbers):
        raise ValueError("has a number that is too large")
    return plan


Scored = Annotated[Plan, AfterValidator(_of_size)]


class _Part(BaseModel):
    """Later versions may write more."""

    model_config = ConfigDict(extra="allow", frozen=True)


class _Entry(_Part):
    plan: Scored
    value: Number | None
    problem: str | None
    error: Number | None = None
    allowed: bool = True
    cost: Costs = {}


class _Interval(_Part):
    value: Number | None
    low: Number | None
    high: Number | None

    @model_validator(mode="after")
    def _whole(self) -> _Interval:
        if len({number is None for number in (self.value, self.low, self.high)}) > 1:
            raise ValueError("value, low and high are numbers or none of them is")
        return self


class _Searched(_Part):
    samples: Whole
    value: Number


class _Row(_Part):
    name: str
    plan: Scored
    samples: Whole
    seed: Whole
    nfe: Annotated[Whole, Field(ge=1)]
    scores: dict[str, _Interval]
    problem: str | None
    cost: Costs = {}
    searched: _Searched | None = None


class _Layer(_Part):
    number: Whole
    name: str
    kind: str
    macs: Whole


class _Start(_Part):
    event: Literal["start"]
    times: list[Number]
    log_snr: list[Number]
    planned: Whole
    layers: list[_Layer] = []
    autodiffusion: str | None = None
    better: Literal["lower", "higher"] | None = None
    hashes: dict[str, str] = {}

    @model_validator(mode="after")
    def _as_many(self) -> _Start:
        if len(self.times) != len(self.log_snr):
            raise ValueError("times and log_snr are not equally many")
        numbers = [layer.number for layer in self.layers]
        if any(after <= before for before, after in pairwise(numbers)):
            raise ValueError("the numbers of layers do not rise")
        return self


class _Scores(_Part):
    event: Literal["scores"]
    generation: Whole
    evaluations: Whole
    saved: Whole
    samples: Annotated[Whole, Field(ge=1)]
    scores: Annotated[list[_Entry], Field(min_length=1)]
    anchor: Digest | None = None
    extrapolated: bool = False


class _Confirm(_Part):
    event: Literal["confirm"]
    finalists: list[Digest]
    rows: Annotated[list[_Row], Field(min_length=1)]
    evaluations: Whole
    saved: Whole


_EVENT: TypeAdapter[_Start | _Scores | _Confirm] = TypeAdapter(
    Annotated[_Start | _Scores | _Confirm, Field(discriminator="event")]
)


def check_event(line: bytes, where: str, *, run: bool = False) -> None:
    """Checks that an event has all that is read of it later, as it is: no text stands for a number.

    Args:
        run: its plans may be run: all code that they name must be here already.

    Raises:
        InputError: it has not, or a plan names other code.
    """
    try:
        checked = _EVENT.validate_json(line, strict=True)
    except ValidationError as error:
        raise one_line(error, where) from None
    parts: list[_Entry] | list[_Row] = []
    if isinstance(checked, _Scores):
        parts = checked.scores
    elif isinstance(checked, _Confirm):
        parts = checked.rows
    for part in parts if run else ():
        check_names(part.plan, where)
