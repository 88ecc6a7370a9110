"""What a finished search shows besides its figures: the same seeds by each plan, and how long sampling takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import model

from autodiffusion import Model, Plan, Settings, sample
from autodiffusion._evaluation.timing import Timing
from autodiffusion._report.mosaics import GRID, mosaic, panels
from autodiffusion._search.showing import show
from autodiffusion._views.progress import Quiet

TIMES = "sampling_times.json"


def row(name: str, *times: float, problem: str | None = None) -> dict[str, Any]:
    return {"name": name, "plan": Plan.of("ddim", times).model_dump(mode="json"), "problem": problem}


ROWS = [row("uniform", 66, 33, 0), row("found", 90, 50, 20)]


def shown(folder: Path, rows: list[dict[str, Any]], **given: Any) -> None:
    settings = Settings.of(**{"model": "small:model", "steps": 3, "seed": 5, "batch_size": 16, **given})
    show(model(), settings, rows, folder, Quiet())


def times(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / TIMES).read_text()))


def test_the_same_seeds_by_the_teacher_and_each_plan(tmp_path: Path) -> None:
    shown(tmp_path, [*ROWS, row("broken", 70, problem="not finite")])
    squares = panels(tmp_path / GRID)
    assert list(squares) == ["teacher (100 steps)", "uniform", "found"]
    plans = [Plan.of("ddim", tuple(range(99, -1, -1))), *(Plan.model_validate(one["plan"]) for one in ROWS)]
    for square, plan in zip(squares.values(), plans, strict=True):
        tiles = mosaic(sample(model(), plan, 36, seed=5))
        size = square.height // tiles.shape[0]
        np.testing.assert_array_equal(np.asarray(square)[::size, ::size, :1], tiles)
    assert list(times(tmp_path)["ms"]) == ["uniform", "found"]


def test_a_teacher_of_the_table_is_the_pictures(tmp_path: Path) -> None:
    shown(tmp_path, [*ROWS, row("teacher (2 steps)", 50, 0)], teacher=2)
    assert list(panels(tmp_path / GRID)) == ["teacher (2 steps)", "uniform", "found"]


def test_times_are_of_each_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown(tmp_path, ROWS)
    found = times(tmp_path)
    assert (found["device"], found["batch_size"]) == ("cpu", 16)
    for low, middle, high in found["ms"].values():
        assert 0 < low <= middle <= high

    def counted(_: Model, plans: Sequence[Plan], batch_size: int, *__: float) -> list[Timing]:
        return [Timing(len(plan.steps), batch_size, batch_size + 1, 0.0, 0.0) for plan in plans]

    monkeypatch.setattr("autodiffusion._search.showing.plan_times", counted)
    (tmp_path / TIMES).unlink()
    shown(tmp_path, [*ROWS, row("one", 50)])
    assert times(tmp_path)["ms"] == {"uniform": [16, 3, 17], "found": [16, 3, 17], "one": [16, 1, 17]}


def test_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown(tmp_path, ROWS)
    before = {name: (tmp_path / name).read_bytes() for name in (GRID, TIMES)}
    monkeypatch.setattr("autodiffusion._search.showing.sample", None)
    monkeypatch.setattr("autodiffusion._search.showing.plan_times", None)
    shown(tmp_path, ROWS)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_nothing_is_shown_where_no_plan_has_samples(tmp_path: Path) -> None:
    shown(tmp_path, [row("found", 70, problem="not finite")])
    assert list(tmp_path.iterdir()) == []
