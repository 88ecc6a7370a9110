"""The page on honest figures says what the benchmark's rows say."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()


def test_the_table_is_that_of_the_rows() -> None:
    rows = {
        row["name"]: row
        for row in json.loads((ROOT / "bench/results/second_opinion.json").read_text())
        if (row["samples"], row["seed"]) == (2000, 1)
    }
    shown = re.findall(r"^\| (\S+) \| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [name for name, _, _ in shown] == ["uniform:4", "uniform:10", "uniform:50", "gls-4", "gls-6"]
    for name, nfe, cells in shown:
        scores = list(rows[name]["scores"].values())[:5]
        assert int(nfe) == rows[name]["nfe"]
        assert cells.split(" | ") == [f"{score['value']:.4g}" for score in scores]
    for name in ("gls-4", "uniform:50"):
        for metric in ("precision", "recall"):
            score = rows[name]["scores"][metric]
            assert f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]" in PAGE


def test_what_the_page_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
