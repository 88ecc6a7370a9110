"""The figures in the README and on the pages are those of the benchmarks' rows, and those of the demo the README's."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from autodiffusion import Evaluator, Model, NoiseSchedule, Plan
from autodiffusion._sampling.sampling import Cost
from autodiffusion.features import Extractor
from autodiffusion.strategies import Strategy
from autodiffusion.strategies.ladder import Ladder

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import _curves, ablation, compare, free_numbers, solvers, table

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
    holds = sum(_curves.holds(one, "paper") for one in run)
    assert f"in {len(better)} of the {len(run)} rows that have been run" in words(README)
    assert f"in {holds} it also had reached that quality within 2 % of its evaluations" in words(README)
    behind = [one for one in run if one.final("default") > one.final("common")]
    times = sorted(one.spent("common") / one.spent("default") for one in behind)
    more = f"for {times[0]:.0f} to {times[-1]:.0f} times the default's evaluations"
    assert f"{more} it ends better than the default in {len(behind)} of the {len(run)} rows" in words(README)
    common = sum(_curves.holds(one, "common") for one in run)
    assert f"in {common} its quality is reached within 6 % of its evaluations" in words(README)


def test_how_often_what_is_reported_holds_is_that_of_the_searches() -> None:
    found = json.loads((RESULTS / "honesty.json").read_text())
    page = words((ROOT / "docs" / "search.md").read_text())
    assert f"runs {found['searches']} short searches" in page
    assert f"in {found['again_inside']} of them the reported 95 % interval holds" in page


@pytest.mark.parametrize("method", list(free_numbers.WAYS))
def test_the_ratios_of_other_ways_are_those_of_the_rows(method: str) -> None:
    found: list[dict[str, Any]] = json.loads((RESULTS / "free_numbers.json").read_text())
    both = [
        free_numbers.ratio([row for row in found if row["model"] == model], method).partition(",")[0]
        for model in ("mixture", "empirical")
    ]
    assert " and ".join(both) in words((ROOT / "docs" / "search.md").read_text())


def test_what_the_page_says_of_solvers_is_that_of_the_rows() -> None:
    columns: dict[tuple[str, int], dict[str, float]] = {}
    for row in json.loads((RESULTS / "solvers.json").read_text()):
        if row["name"] in solvers.ENTRIES:
            columns.setdefault((row["model"], row["steps"]), {})[row["name"]] = row["scores"]["fid"]["value"]
    page = words((ROOT / "docs" / "solvers.md").read_text())
    assert "DDIM is the worst of all solvers there, in every column but one" in page
    assert sum(max(fids, key=lambda name: fids[name]) != "ddim" for fids in columns.values()) == 1
    assert "ended within a third of the best in every column" in page
    left = [(fids["left to the search"], min(fids.values())) for fids in columns.values() if len(fids) > 9]
    assert all(fid <= 4 / 3 * best for fid, best in left)
    bundled = columns["bundled", 4]
    others = [fid for name, fid in bundled.items() if name != "ddim"]
    said = f"an FID of {bundled['ddim']:.1f}, those of the other solvers {min(others):.1f} to {max(others):.1f},"
    assert said in page
    ends = []
    for steps in (6, 10):
        others = [fid for name, fid in columns["bundled", steps].items() if name != "ddim"]
        ends += [min(others), max(others)]
    assert "{:.1f} to {:.1f} at 6 steps and {:.1f} to {:.1f} at 10".format(*ends) in page
    assert min(bundled, key=lambda name: bundled[name]) == "gls"


def test_what_each_idea_saves_is_that_of_the_rows() -> None:
    rows = json.loads((RESULTS / "ablation.json").read_text())
    whole = ablation.table(ablation.read(rows))
    assert whole == (RESULTS / "ablation.md").read_text()
    first = re.findall(r"^\| .*\n(?:\|.*\n)+", whole, re.MULTILINE)[0]
    assert first in (ROOT / "docs" / "search.md").read_text()


def test_the_options_of_the_default_search_are_those_it_has() -> None:
    page = (ROOT / "docs" / "search.md").read_text()
    listed: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\w., ]+) \| ", page, re.MULTILINE):
        listed |= zip(re.findall(r"\w+", names), defaults.split(", "), strict=True)
    inherited = {field.name for field in fields(Strategy) if field.init}
    own = {field.name: field.default for field in fields(Ladder) if field.init and field.name not in inherited}
    assert listed == {name: f"{default:g}" if default is not True else "true" for name, default in own.items()}


def test_the_first_page_shows_the_demo_as_the_readme_does() -> None:
    page = (ROOT / "docs" / "index.md").read_text()
    tables = re.findall(r"^\| \w+( \| network evaluations .* \| time steps \|\n(?:\|.*\n)+)", README, re.MULTILINE)
    assert len(tables) == 1
    assert tables[0] in page
    [demo] = re.findall(r"-m (autodiffusion search .*)", (ROOT / "Makefile").read_text())
    assert f"    {demo}\n" in page


def test_the_drawing_of_shared_beginnings_counts_right() -> None:
    drawing = (ROOT / "docs" / "drawings" / "sharing.svg").read_text()
    shown, alone = (int(n) for n in re.findall(r": (\d+) network evaluations a sample in place of (\d+)", drawing)[0])
    plans = [[950, 600, 250], [950, 600, 150], [950, 500, 200], [900, 500, 200], [900, 500, 90]]
    assert all(f">{t}</text>" in drawing for plan in plans for t in plan)
    evaluator = Evaluator(
        Model(lambda x, t, label: x, NoiseSchedule.linear(), (1, 2, 2)), Extractor(torch.nn.Flatten())
    )
    evaluator.features([Plan.of("ddim", [float(t) for t in plan]) for plan in plans], 2, seed=0)
    assert evaluator.cost == Cost(2 * shown, 2 * (alone - shown))
