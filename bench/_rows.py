"""The rows of a measurement in a JSON file, one a line: kept as they are made, and readable in a diff."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodiffusion._study.study import write


def load(path: Path, again: bool = False) -> list[dict[str, Any]]:
    """The rows in the file; none where there is no file or they shall be made ``again``."""
    if again or not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def save(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes all of them, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
