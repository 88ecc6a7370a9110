"""How a search stands: what its ledger adds up to, event by event."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autodiffusion._evaluation.evaluate import describe
from autodiffusion._names import resolve
from autodiffusion._plans.plan import Plan
from autodiffusion._study.settings import Settings


@dataclass(frozen=True)
class Standing:
    """What a search has done so far.

    Attributes:
        metric: what is searched for.
        rounds: of candidates, counted from 1.
        candidates: different plans that were scored, or could not be.
        evaluations: network evaluations times samples spent on them; ``saved`` not spent because they share beginnings.
        samples: that the best score stands on: the most that any has. Scores of fewer are not compared with it.
        value: the best score, of a plan that may be found; ``None`` where there is none yet.
        plan: whose it is.
    """

    metric: str
    rounds: int = 0
    candidates: int = 0
    evaluations: int = 0
    saved: int = 0
    samples: int = 0
    value: float | None = None
    plan: Plan | None = None

    @property
    def best(self) -> str:
        """``best fid in the search 5.61 on 500 samples``, or nothing."""
        if self.value is None:
            return ""
        return f"best {self.metric} in the search {self.value:.4g} on {self.samples:,} samples"

    @property
    def steps(self) -> str:
        """The best plan in one line: ``ddim at 926, 690, 424, 153``; or nothing."""
        return "" if self.plan is None else describe(self.plan)


@dataclass(frozen=True)
class Candidate:
    """One score of one plan in the search.

    Attributes:
        plan: as JSON, without its origin.
        round: in which it was scored, from 0.
        samples: that the value stands on.
        spent: network evaluations times samples of the search by then; those of a round are spread evenly over it.
        value: of the metric; ``None`` where there is a ``problem``.
        own: a value of its own, not a difference from another plan's.
        allowed: it may be found; with layers, some that are scored cost too much.
        cost: of one sample, by unit; empty without layers.
    """

    plan: dict[str, Any]
    round: int
    samples: int
    spent: float
    value: float | None
    problem: str | None
    own: bool
    allowed: bool
    cost: dict[str, float]

    @cached_property
    def key(self) -> str:
        """Equal for equal plans."""
        return json.dumps(self.plan, sort_keys=True)


def candidates(events: Sequence[dict[str, Any]], spent: int = 0) -> Iterator[Candidate]:
    """Every score in a ledger, in its order.

    Args:
        spent: network evaluations times samples of the search before ``events``.
    """
    for event in events:
        if event["event"] != "scores":
            continue
        for place, entry in enumerate(event["scores"], 1):
            yield Candidate(
                plan=entry["plan"],
                round=event["generation"],
                samples=event["samples"],
                spent=spent + event["evaluations"] * place / len(event["scores"]),
                value=entry["value"],
                problem=entry["problem"],
                own=event.get("anchor") is None,
                allowed=entry.get("allowed", True),
                cost=entry.get("cost", {}),
            )
        spent += event["evaluations"]


def rising(metric: str, events: Sequence[dict[str, Any]]) -> bool:
    """Whether more is better. Of a metric of somebody's own the ledger says it: it is not imported to draw a report."""
    module, colon, _ = metric.partition(":")
    if colon and module not in sys.modules:
        return any(event.get("better") == "higher" for event in events if event["event"] == "start")
    return bool(resolve("metrics", metric).better == "higher")


class Tally:
    """Adds up the events of one ledger, each once, however often it is asked."""

    def __init__(self, settings: Settings) -> None:
        self._metric, self._read = settings.metric, 0
        self._sign: float | None = None
        self._known: set[str] = set()
        self._rounds = self._evaluations = self._saved = 0
        self._best: Candidate | None = None
        self._rank = (0, math.inf)

    def standing(self, events: Sequence[dict[str, Any]]) -> Standing:
        """How the search stands after ``events``, which begin with those of the call before."""
        if self._sign is None and events:
            self._sign = -1.0 if rising(self._metric, events) else 1.0
        for event in events[self._read :]:
            if event["event"] == "scores":
                self._add(event)
        self._read = len(events)
        done = Standing(self._metric, self._rounds, len(self._known), self._evaluations, self._saved)
        if self._best is None:
            return done
        plan = Plan.model_validate(self._best.plan)
        return Standing(**vars(done) | {"samples": self._best.samples, "value": self._best.value, "plan": plan})

    def _add(self, event: dict[str, Any]) -> None:
        first_look = event.get("extrapolated", False)  # no value of the metric: of a FID it may be below 0
        for one in candidates([event]):
            self._known.add(one.key)
            rank = (-one.samples, math.inf if one.value is None else (self._sign or 1.0) * one.value)
            if first_look or not one.own or not one.allowed or one.value is None:
                continue
            if rank < self._rank:
                self._best, self._rank = one, rank
        self._rounds = event["generation"] + 1
        self._evaluations += event["evaluations"]
        self._saved += event["saved"]
