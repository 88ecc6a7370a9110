"""The README's table and the benchmarks of layers and of solvers in small: what they say, and that they run."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from autodiffusion import Plan
from autodiffusion._names import known
from bench import compare, layers, models, solvers, table


def row(name: str, value: float, **more: Any) -> dict[str, Any]:
    scores = {"fid": {"value": value, "low": value - 1, "high": value + 1}}
    plan = Plan.of("ddim", [90, 50, 10]).model_dump(mode="json")
    return {"name": name, "scores": scores, "plan": plan, "samples": 60, "nfe": 3, "problem": None} | more


def test_the_table_of_layers_says_where_the_found_plan_is_not_the_best() -> None:
    given = {"steps": 6, "budget": 80, "sets": 7, "samples_per_candidate": 30, "share": 0.5}
    rows = [
        row(name, value, **given)
        for name, value in zip((layers.FOUND, layers.FEWER, layers.RANDOM), (4, 5, 6), strict=True)
    ]
    assert (
        "| 6 | 80 % | 4 [3, 5], 3 steps, 50% | 5 [4, 6], 3 steps, 50% | 6 [5, 7], 3 steps, 50% | 7 | yes |"
        in layers.table(rows)
    )
    rows[1] = row(layers.FEWER, 3.5, **given)
    assert "| **no**: fewer whole steps better |" in layers.table(rows)
    rows[1] = row(layers.FEWER, 4, **given)
    assert "| **no**: fewer whole steps the same plan |" in layers.table(rows)


@pytest.fixture
def small_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(models, "REFERENCES", tmp_path)
    monkeypatch.setattr(models, "REAL", 500)
    compare.judge.cache_clear()
    yield
    compare.judge.cache_clear()


@pytest.mark.usefixtures("plain")
def test_layers_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", "small:layered_model", "--steps", "3", "--budgets", "70", "--samples", "24", "--final", "60"]
    given += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "layers.json"), "--limit", "4000"]
    layers.main([*given, "--features", "small:features", "--reference", "teacher:20:200"])
    rows = json.loads((tmp_path / "layers.json").read_text())
    assert [row["name"] for row in rows] == [layers.FOUND, layers.FEWER, layers.RANDOM]
    assert all(row["share"] <= 0.7 + 1e-9 for row in rows)
    assert not any(step["skip"] for step in rows[1]["plan"]["steps"])
    assert any(step["skip"] for step in rows[2]["plan"]["steps"])
    table = capsys.readouterr().out
    assert (tmp_path / "layers.md").read_text() == table
    before = (tmp_path / "layers.json").read_bytes()
    layers.main([*given, "--features", "small:features", "--reference", "teacher:20:200"])
    assert (tmp_path / "layers.json").read_bytes() == before


def test_entries_are_solvers_that_there_are() -> None:
    named = {name for entry in solvers.ENTRIES.values() for name in entry["solver"].split(",")}
    assert named <= set(known("solvers"))


def test_the_table_of_solvers_compares_scores_of_as_many_samples() -> None:
    given: dict[str, Any] = {"model": "mixture", "steps": 4, "search": 250_000}
    fresh = {"samples": 2000, "value": 4.5, "low": 4.0, "high": 5.0}
    thoughts = [{"samples": 2000, "value": 4.2}, {"samples": 2000, "value": 3.9}, None]
    names = ["ddim", "ipndm", "pfdiff"]
    rows = [row(name, 5, **given, fresh=fresh, **{"in the search": t}) for name, t in zip(names, thoughts, strict=True)]
    rows.append(row("best grid", 9, **given, grid="beta") | {"nfe": 7})
    text = solvers.table(rows)
    assert "| best grid | 9 [8, 10] (beta, 7 evaluations) |" in text
    assert "| ddim | 5 [4, 6] (3 evaluations) |" in text
    for name, end in zip(names, ("| yes |", "| **no** |", "more than a look | | |"), strict=True):
        [line] = [line for line in text.splitlines() if line.startswith(f"| {name} | 4 | 250 |")]
        assert line.endswith(end)


@pytest.mark.usefixtures("plain", "small_references")
def test_a_row_gets_a_fresh_figure_of_as_many_samples() -> None:
    plan = Plan.of("ddim", [800, 400]).model_dump(mode="json")
    thought = {"samples": 60, "value": 1.0}
    old = {"name": "ddim", "model": "mixture", "plan": plan, "in the search": thought, "fresh": {"samples": 90}}
    new = solvers.alike(old)
    [judged] = solvers.judged("mixture", {"": Plan.model_validate(plan)}, 60)
    assert new["fresh"] == {"samples": 60, **judged["scores"]["fid"]}
    assert solvers.alike(new) is new
    assert solvers.alike(old | {"in the search": None})["fresh"] == {"samples": 90}


@pytest.mark.usefixtures("plain", "small_references")
def test_solvers_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--models",
        "mixture",
        "--steps",
        "4",
        "--budget",
        "4000",
        "--final",
        "60",
        "--runs",
        str(tmp_path / "runs"),
    ]
    one, two = (str(tmp_path / f"{name}.json") for name in ("one", "two"))
    solvers.main([*given, "--entries", "gls", "--out", one])
    solvers.main([*given, "--entries", "ddim", "--out", two, "--join", one])
    rows = json.loads((tmp_path / "two.json").read_text())
    assert [row["name"] for row in rows] == ["best grid", "ddim", "gls", "uniform 50", "uniform 100"]
    assert [row["nfe"] for row in rows] == [4, 4, 4, 50, 100]
    assert (tmp_path / "two.md").read_text() == solvers.table(rows)
    assert capsys.readouterr().out.endswith(solvers.table(rows))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--entries", "ddim;gsl"], "--entries: gsl is not one of ddim, ipndm,"),
        (["--models", "bundle"], "--models: bundle is not one of mixture, empirical, bundled"),
        (["--join", "none.json"], "--join none.json: there is no such file"),
    ],
)
def test_solvers_refuses_before_it_searches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    with pytest.raises(SystemExit):
        solvers.main([*given, "--out", str(tmp_path / "out.json")])
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_readmes_table_keeps_rows_of_other_counts(tmp_path: Path) -> None:
    def rows(samples: int, again: bool = False) -> table.Rows:
        return table.Rows(Namespace(out=tmp_path / "table.json", samples=100, final=samples, seed=0, again=again))

    rows(5000).add({"method": table.UNIFORM, "steps": 4})
    assert rows(5000).find(table.UNIFORM, 4)
    with pytest.raises(SystemExit, match="samples is 5000, not 60; give another --out, or --again"):
        rows(60)
    assert not rows(60, again=True).find(table.UNIFORM, 4)
