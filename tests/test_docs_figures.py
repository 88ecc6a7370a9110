"""The figures in the README and on the page on the search are those of the benchmarks' rows."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import _curves, compare, free_numbers, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
README = (ROOT / "README.md").read_text()


def words(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def rows() -> table.Rows:
    return table.Rows(Namespace(out=RESULTS / "table.json", samples=100, final=5000, seed=0, again=False))


def test_the_readmes_table_is_that_of_the_rows(rows: table.Rows) -> None:
    assert table.text(rows, [4, 6, 10]) in README


def test_the_readme_counts_the_comparison_as_it_is() -> None:
    names = [_curves.Row(m, s, k) for m in compare.MODELS for s in compare.SOLVERS for k in compare.STEPS]
    run = [
        one for one in _curves.read(RESULTS / "compare", names).values() if one.runs["default"] and one.runs["paper"]
    ]
    better = [one for one in run if one.final("default") < one.final("paper")]
    shares = [100 * one.spent("default") / one.spent("paper") for one in better]
    holds = sum(_curves.holds(one, "paper") for one in run)
    assert f"in {len(better)} of the {len(run)} rows that have been run" in words(README)
    assert f"for {min(shares):.0f} to {max(shares):.0f} % of its evaluations" in words(README)
    assert f"within 2 % of them in {holds}." in words(README)


@pytest.mark.parametrize("method", list(free_numbers.WAYS))
def test_the_ratios_of_other_ways_are_those_of_the_rows(method: str) -> None:
    found: list[dict[str, Any]] = json.loads((RESULTS / "free_numbers.json").read_text())
    both = [
        free_numbers.ratio([row for row in found if row["model"] == model], method).partition(",")[0]
        for model in ("mixture", "empirical")
    ]
    assert " and ".join(both) in words((ROOT / "docs" / "search.md").read_text())
