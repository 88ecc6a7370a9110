"""The bundled model, end to end: the path that the README and the demo take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autodiffusion import Plan, Settings, load_model, search
from autodiffusion._evaluation.confirm import confirm
from autodiffusion._plans.grids import NAMED
from autodiffusion._search.inputs import find_reference, plan_of, prepare, teacher_plan
from autodiffusion.metrics._build import build


def first_generation(batch_size: int) -> list[float]:
    """The scores of the named grids."""
    evaluator, source = prepare(load_model("mnist"), batch_size=batch_size)
    plans = [plan_of(f"{name}:4", evaluator.model) for name in NAMED]
    scores = evaluator.scores(plans, build("fid", find_reference(source, evaluator)), 24, 1)
    return [score.value for score in scores]


def test_scores_do_not_depend_on_batch_size_or_threads() -> None:
    """Here one thread and small batches, in a process of its own two and a large one."""
    assert torch.get_num_threads() == 1
    code = "import torch; torch.set_num_threads(2); import test_bundled; print(test_bundled.first_generation(256))"
    there = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(Path(__file__).parent)}  # no spinning
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True, check=True)
    apart = json.loads(done.stdout)
    assert apart == pytest.approx(first_generation(5), rel=1e-4)
    assert len(apart) == len(NAMED)


def test_a_short_search_beats_every_named_grid(tmp_path: Path) -> None:
    settings = Settings.of(model="mnist", steps=4, budget=7_000, samples=40, finalists=2, confirm_samples=200)
    result = search(settings, tmp_path / "run")
    assert result.search_cost.evaluations <= 7_000
    assert Plan.load(tmp_path / "run" / "plan.json") == result.plan
    fids = {row["name"].partition(" ")[0]: row["scores"]["fid"]["value"] for row in result.rows}
    assert fids["found"] < 0.6 * fids["uniform"]
    assert fids["found"] < min(fids.values()) + 1e-9
    assert (tmp_path / "run" / "grid.png").stat().st_size > 1000


def test_classifier_free_guidance_runs_on_the_null_class() -> None:
    guided, plain = load_model("mnist", guidance_scale=2.0), load_model("mnist")
    x, label = plain.noise(range(4), 0), plain.condition(range(4), 0)
    assert label is not None
    with torch.inference_mode():
        without = plain.predict(x, 500, torch.full_like(label, 10))
        given = plain.predict(x, 500, label)
        assert torch.allclose(guided.predict(x, 500, label), without + 2 * (given - without), atol=1e-5)
    assert not torch.allclose(without, given, atol=1e-3)


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    """Half of the gap from the best named grid to 100 steps is closed, at 0.6 of uniform's FID or less."""
    evaluator, source = prepare(load_model("mnist"))
    reference = find_reference(source, evaluator)
    found = search(Settings.of(model="mnist", steps=4, solver="gls"), tmp_path / "run").plan
    model, fid = evaluator.model, build("fid", reference)
    grids = {name: plan_of(f"{name}:4", model) for name in NAMED}
    scores = evaluator.scores(list(grids.values()), fid, 2000, 77)
    best = min(score.value for score in scores)
    plans = {"uniform": grids["uniform"], "found": found, "teacher": teacher_plan(model, 100)}
    value = {row.name: row.scores["fid"].value for row in confirm(evaluator, reference, plans, ["fid"], 2000, 7)}
    assert value["found"] <= 0.6 * value["uniform"]
    assert best - value["found"] >= 0.5 * (best - value["teacher"])
