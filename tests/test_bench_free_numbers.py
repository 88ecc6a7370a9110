"""The measurement of other ways to free numbers: what it works with, its table, and its reduced form end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_nothing

sys.path.insert(0, str(Path(__file__).parent.parent))

from autodiffusion import Plan
from autodiffusion._evaluation.evaluate import derive_seed
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.models._model import Model
from autodiffusion.solvers._base import build, solve
from autodiffusion.strategies.ladder import Ladder
from bench import _free_numbers, _gradient, compare, free_numbers, models

TIMES = (900.0, 640.0, 330.0)
NUMBERS = {(0, "noise"): 0.7, (1, "data1"): 0.9, (1, "noise"): -0.4, (2, "data1"): 0.3}


def drawn(model: Model, noise: torch.Tensor, times: tuple[float, ...], given: dict[tuple[int, str], float]) -> float:
    """A fixed projection of what ``gls`` makes, or ``ddim`` without numbers, summed."""
    solver = build("gls" if given else "ddim", model.schedule, {"clip": False})
    params = [{name: value for (k, name), value in given.items() if k == step} for step in range(len(times))]
    x = solve(solver, lambda x, t: model.predict(x, t, None), noise, times, params=params)
    return float((x.double() * torch.linspace(-1, 1, x.numel()).view_as(x)).sum())


@pytest.mark.parametrize("numbers", [NUMBERS, {}], ids=["gls", "ddim"])
def test_gradient_is_that_of_the_solver(numbers: dict[tuple[int, str], float]) -> None:
    """The value is that of the product's solver, the derivatives are its difference quotients."""
    model = models.Mixture().model()
    noise = model.noise(range(8), 3)
    times = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    given = {key: torch.tensor(value, requires_grad=True) for key, value in numbers.items()}
    x = _gradient.differentiable(model, noise, times, given)
    value = (x.double() * torch.linspace(-1, 1, x.numel()).view_as(x)).sum()
    value.backward()
    assert value.item() == pytest.approx(drawn(model, noise, TIMES, numbers), rel=1e-4)
    for key, number in given.items():
        high, low = (drawn(model, noise, TIMES, numbers | {key: numbers[key] + move}) for move in (0.01, -0.01))
        assert number.grad is not None
        assert float(number.grad) == pytest.approx((high - low) / 0.02, rel=0.02, abs=0.05)
    assert times.grad is not None
    for k in range(len(TIMES)):
        moved = [tuple(t + move * (i == k) for i, t in enumerate(TIMES)) for move in (1, -1)]
        high, low = (drawn(model, noise, some, numbers) for some in moved)
        assert float(times.grad[k]) == pytest.approx((high - low) / 2, rel=0.02, abs=0.005)


def test_vectors_are_counted_in_steps_of_the_ladder() -> None:
    model = models.Mixture().model()
    gls = build("gls", model.schedule, {"clip": False})
    space = SearchSpace.of(model.schedule, 3, "gls", {"clip": False}, free=gls.free(3))
    plan = space.plan([900, 640, 330], list(NUMBERS.values()))
    strategy = Ladder(space, [], 0)
    for times in (True, False):
        box = _free_numbers.Box(space, plan, times)
        assert box.plan(box.vector(plan)) == plan
        assert len(box.vector(plan)) == 4 + 3 * times
        assert np.all((box.bounds[:, 0] < box.vector(plan)) & (box.vector(plan) < box.bounds[:, 1]))
        for i in range(len(box.vector(plan))):
            moved = box.plan(box.vector(plan) + np.eye(len(box.vector(plan)))[i])
            first = strategy.step if times and i < 3 else strategy.number_step
            assert moved == space.push(plan, np.eye(7)[i + 3 * (not times)], first)


def test_table_of_made_up_rows() -> None:
    def row(method: str, seed: int, fid: float, spent: int, model: str = "mixture") -> dict[str, object]:
        key = {"model": model, "steps": 4, "budget": 9000, "samples": 10, "seed": seed, "method": method}
        return key | {"fid": fid, "evaluations": spent}

    rows = [row(free_numbers.SEARCH, seed, fid, 9000) for seed, fid in enumerate((1.0, 2.0, 4.0))]
    rows += [row("gradient", seed, fid, 1000 * seed) for seed, fid in enumerate((2.0, 1.0, 1.0))]
    rows += [row(free_numbers.SEARCH, 0, 5.0, 9000, "empirical")]
    heads, _, product, gradient = [line for line in free_numbers.table(rows).splitlines() if line.startswith("|")]
    assert heads.count("4 steps, 9k, 10 samples") == 2
    assert product == f"| {free_numbers.SEARCH} | 2 [1, 4] (9k) | 5 [5, 5] (9k) | 1.00, 0 of 3 | 1.00, 0 of 1 |"
    # ratios 2, 1/2 and 1/4: their geometric mean is (1/4)^(1/3)
    assert gradient == "| gradient | 1 [1, 2] (1k) |  | 0.63, 2 of 3 |  |"


@pytest.fixture
def reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of the reduced form, with little of everything."""
    monkeypatch.setattr(models, "REFERENCES", tmp_path)
    monkeypatch.setattr(models, "REAL", 500)
    monkeypatch.setattr(free_numbers, "COMMON", 40)
    for name, few in (("TEACHER", 10), ("POOL", 20), ("BATCH", 10)):
        monkeypatch.setattr(_free_numbers, name, few)
    draw_nothing(monkeypatch)
    compare.judge.cache_clear()
    options = ["--models", "mixture", "--steps", "3", "--seeds", "1", "--budget", "2500"]
    return [*options, "--samples", "100", "--confirm", "200", "--out", str(tmp_path / "found.json")]


def test_reduced_form_runs(
    reduced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ("CMA-ES, times and numbers, common noise", "COBYQA, numbers", "gradient from a grid, then pattern search")
    monkeypatch.setattr(free_numbers, "METHODS", (free_numbers.SEARCH, free_numbers.START, *ways))
    free_numbers.main(reduced)
    text, rows = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert text == (tmp_path / "found.md").read_text()
    assert [row["method"] for row in rows] == list(free_numbers.METHODS)
    found = {row["method"]: row for row in rows}
    start = found[free_numbers.START]
    assert not any(start["params"])
    assert 2000 < start["evaluations"] <= 3750
    for method in ways:  # the finalists' choice comes on top
        assert 3750 < found[method]["evaluations"] <= 7500 + 5 * 200 * 3, method
    assert found["COBYQA, numbers"]["times"] == start["times"]
    assert any(any(found[method]["params"]) for method in ways)
    evaluator, fid = compare.judge("mixture")
    for row in (found[ways[0]], found["COBYQA, numbers"]):
        plan = Plan.of("gls", row["times"], solver_options={"clip": False}).tuned(row["params"])
        [score] = evaluator.scores([plan], fid, 100, derive_seed(0, "confirm"))
        assert row["fid"] == pytest.approx(score.value, abs=1e-5)
    free_numbers.main(reduced)  # what is there is kept
    assert json.loads((tmp_path / "found.json").read_text()) == rows
    compare.judge.cache_clear()


@pytest.mark.parametrize("method", [free_numbers.SEARCH, "CMA-ES, numbers, fresh noise", "COBYQA, numbers"])
def test_cost_is_what_the_network_was_asked(reduced: list[str], monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    asked, table = [0], [0]
    predict, figures = Model.predict, compare.Evaluator.intervals

    def counted(self: Model, x: torch.Tensor, t: float, condition: torch.Tensor | None) -> torch.Tensor:
        asked[0] += len(x)
        return predict(self, x, t, condition)

    def of_the_table(*given: object) -> object:
        before = asked[0]
        result = figures(*given)  # type: ignore[arg-type]
        table[0] += asked[0] - before
        return result

    monkeypatch.setattr(Model, "predict", counted)
    monkeypatch.setattr(compare.Evaluator, "intervals", of_the_table)
    _, spent = free_numbers.found_by(free_numbers.Task("mixture", 3, 1, 7500, confirm=70), method)
    assert spent == asked[0] - table[0]
