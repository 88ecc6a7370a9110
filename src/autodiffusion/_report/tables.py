"""Table: what a figure shows, without drawing; and which scores may stand in one."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autodiffusion._study.standing import Candidate


@dataclass(frozen=True)
class Table:
    """Named columns and rows of numbers, texts and ``None``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def where(self, name: str, *values: Any) -> Table:
        """The rows that have one of these values in a column."""
        place = self.columns.index(name)
        return Table(self.columns, tuple(row for row in self.rows if row[place] in values))

    def csv(self) -> str:
        """As comma-separated values; numbers with all their digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


def in_full(candidates: Sequence[Candidate], samples: int) -> list[Candidate]:
    """Those with a value of their own that stands on all ``samples``, which can be compared with one another."""
    return [c for c in candidates if c.own and c.value is not None and c.samples == samples]
