"""What a study's files say, read once: the candidates with their scores, the final table, what was spent."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autodiffusion._errors import InputError
from autodiffusion._study.settings import Settings
from autodiffusion._study.standing import Candidate, candidates, rising
from autodiffusion._study.study import CONFIG, LEDGER, read_events, stored_settings

SAMPLING_TIMES = "sampling_times.json"
"""Where a study keeps how long sampling by the plans of its final table takes."""
Events = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Times:
    """Measured sampling.

    Attributes:
        device: on which.
        batch_size: samples at once.
        ms: milliseconds for one sample by each plan of the final table: lower quartile, median, upper quartile.
    """

    device: str
    batch_size: int
    ms: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Run:
    """A search, finished or not, as its folder holds it."""

    folder: Path
    settings: Settings
    events: Events

    @classmethod
    def of(cls, folder: Path) -> Run:
        """The search in ``folder``.

        Raises:
            InputError: none is there, or its files are damaged.
        """
        if not (folder / CONFIG).exists():
            raise InputError(f"{folder}: holds no search; give the folder that search --out wrote")
        return cls(folder, stored_settings(folder), read_events(folder / LEDGER))

    def _last(self, kind: str) -> dict[str, Any] | None:
        return next((event for event in reversed(self.events) if event["event"] == kind), None)

    @cached_property
    def start(self) -> dict[str, Any]:
        """What the ledger says of the model; empty before there is any."""
        return self._last("start") or {}

    @cached_property
    def confirmed(self) -> dict[str, Any] | None:
        """The final table and what it cost, once the search is finished."""
        return self._last("confirm")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The final table, empty before there is one."""
        return self.confirmed["rows"] if self.confirmed else []

    def row(self, name: str) -> dict[str, Any] | None:
        """The row of the final table called ``name``, whatever is said after it in brackets."""
        return next((row for row in self.rows if row["name"].partition(" (")[0] == name), None)

    @property
    def best_grid(self) -> dict[str, Any] | None:
        """The row of the best named grid, where that is not the uniform one."""
        return next((row for row in self.rows if "(best grid" in row["name"]), None)

    @cached_property
    def times(self) -> Times | None:
        """How long sampling takes; ``None`` where it was not measured, or the file cannot be read."""
        try:
            kept = json.loads((self.folder / SAMPLING_TIMES).read_text(encoding="utf-8"))
            ms = {str(name): (float(low), float(ms), float(high)) for name, (low, ms, high) in kept["ms"].items()}
            return Times(str(kept["device"]), int(kept["batch_size"]), ms)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None  # a report without times is better than none

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Every score in the search."""
        return list(candidates(self.events))

    @cached_property
    def plans(self) -> int:
        """How many different plans were scored."""
        return len({candidate.key for candidate in self.candidates})

    @property
    def spent(self) -> int:
        """Network evaluations times samples that candidates cost."""
        return sum(event["evaluations"] for event in self.events if event["event"] == "scores")

    @property
    def saved(self) -> int:
        """Those not made because plans shared a beginning."""
        return sum(event["saved"] for event in self.events if event["event"] == "scores")

    @cached_property
    def raced(self) -> int:
        """Network evaluations times samples not asked for as most candidates were scored with fewer samples.

        That is: of every plan with all samples, less what was asked for. Below 0 where some had more than all.
        """
        first = next((event for event in self.events if event["event"] == "scores"), None)
        if not first or not first["scores"]:
            return 0
        # of a round of new plans what was made and what was shared is what they ask for; so the ledger tells how many
        # evaluations a step of this solver has
        steps = sum(len(entry["plan"]["steps"]) for entry in first["scores"]) * first["samples"]
        each = (first["evaluations"] + first["saved"]) / steps
        distinct = {candidate.key: len(candidate.plan["steps"]) for candidate in self.candidates}
        alone: int = round(each * sum(distinct.values()) * self.settings.samples)
        return alone - self.spent - self.saved

    @cached_property
    def rising(self) -> bool:
        """Whether more is better."""
        return rising(self.settings.metric, self.events)

    @cached_property
    def ranked(self) -> list[Candidate]:
        """The plans that may be found, best first, each by its last own score.

        More samples come before better values, since a race drops its worse plans early.
        """
        last = {c.key: c for c in self.candidates if c.own and c.allowed and c.value is not None}
        sign = -1.0 if self.rising else 1.0
        return sorted(last.values(), key=lambda c: (-c.samples, sign * (math.inf if c.value is None else c.value)))
