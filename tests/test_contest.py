"""Free numbers and several solvers in whole searches of a small exact model."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent))

from autodiffusion import InputError, Model, Plan, RunError, Settings, load_model
from autodiffusion._cli import app
from autodiffusion._evaluation.confirm import confirm
from autodiffusion._search.contest import LOOKS, search_solvers
from autodiffusion._search.inputs import find_reference, prepare
from autodiffusion._search.loop import Result, search
from autodiffusion._search.several import search_several
from autodiffusion._spaces.costs import Costs
from autodiffusion._study.study import LEDGER, read_events
from bench.models import reference_of

GIVEN: dict[str, Any] = {
    "model": "small:model",
    "features": "small:features",
    "steps": 3,
    "samples": 40,
    "confirm_samples": 400,
    "batch_size": 64,
    "seed": 0,
}

pytestmark = pytest.mark.usefixtures("plain")


def fid(result: Result, name: str = "found") -> float:
    return float(next(row["scores"]["fid"]["value"] for row in result.rows if row["name"] == name))


def spent(folder: Path) -> int:
    return sum(event["evaluations"] for event in read_events(folder / LEDGER) if event["event"] == "scores")


def test_free_numbers_find_more_than_times_alone(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "bench.models:mixture", "reference": reference_of("mixture"), "batch_size": 250}
    given |= {"solver": "gls", "steps": 4, "samples": 200, "strategy_options": {"most": 40.0}}
    times = search(Settings.of(free_numbers=False, **given), tmp_path / "times")
    both = search(Settings.of(**given), tmp_path / "both")
    assert not any(times.plan.params)
    assert any(both.plan.params)
    assert fid(both) < 0.5 * fid(times)
    assert max(times.search_cost.evaluations, both.search_cost.evaluations) <= 40 * 200 * 4
    found = next(row for row in both.rows if row["name"] == "found")
    scores = [
        (event["samples"], entry["value"])
        for event in read_events(tmp_path / "both" / LEDGER)
        if event["event"] == "scores" and not event.get("anchor")
        for entry in event["scores"]
        if Plan.model_validate(entry["plan"]) == both.plan
    ]
    searched = found["searched"]
    assert (searched["samples"], searched["value"]) == scores[-1]
    evaluator, source = prepare(load_model("bench.models:mixture"), reference=reference_of("mixture"))
    again = confirm(evaluator, find_reference(source, evaluator), {"": both.plan}, ["fid"], searched["samples"], 0)
    assert searched["fresh"]["value"] == pytest.approx(again[0].scores["fid"].value, rel=1e-4)


def test_times_come_first_and_the_best_plain_plan_is_a_finalist(real_images: Path, tmp_path: Path) -> None:
    search(Settings.of(solver="gls", **GIVEN | {"reference": str(real_images)}), tmp_path)
    events = read_events(tmp_path / LEDGER)
    plans = [
        [Plan.model_validate(entry["plan"]) for entry in event["scores"]]
        for event in events
        if event["event"] == "scores"
    ]
    tuned = [any(any(plan.params) for plan in population) for population in plans]
    first = tuned.index(True)
    assert first > len(tuned) // 10
    finalists = next(event["finalists"] for event in events if event["event"] == "confirm")
    plain = {plan.digest for population in plans for plan in population if not any(plan.params)}
    assert plain & set(finalists)


def test_the_best_of_the_solvers_goes_on(real_images: Path, tmp_path: Path) -> None:
    given = GIVEN | {"reference": str(real_images)}
    found = search_solvers(["ddim", "dpm_solver++", "plms"], tmp_path, **given)
    [(winner, result)] = found.items()
    assert Plan.load(tmp_path / "plan.json") == result.plan
    assert result.plan.solver == winner
    whole = 100 * 40 * 3
    budgets = {name: spent(tmp_path / name) / whole for name in ("ddim", "dpm_solver++", "plms")}
    others = sorted(share for name, share in budgets.items() if name != winner)
    assert LOOKS[0] / 2 < others[0] <= LOOKS[0]
    assert LOOKS[0] < others[1] <= LOOKS[1] < budgets[winner] <= 1
    # three evaluations are two steps of plms, whose first costs two
    assert {len(Plan.model_validate(e["plan"]).steps) for e in _scores(tmp_path / "plms")} == {2}
    assert {len(Plan.model_validate(e["plan"]).steps) for e in _scores(tmp_path / "ddim")} == {3}
    before = (tmp_path / winner / LEDGER).read_bytes()
    again = search_solvers(["ddim", "dpm_solver++", "plms"], tmp_path, **given)
    assert again[winner].rows == result.rows
    assert (tmp_path / winner / LEDGER).read_bytes() == before


def test_a_finished_contest_starts_no_workers(
    real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = GIVEN | {"reference": str(real_images), "budget": 8000}
    [(winner, result)] = search_solvers(["ddim", "plms"], tmp_path, **given).items()

    def crew(*_: Any, **__: Any) -> None:
        pytest.fail("workers are started")

    monkeypatch.setattr("autodiffusion._search.crew.crew", crew)
    assert search_solvers(["ddim", "plms"], tmp_path, workers=2, **given)[winner].rows == result.rows


def _scores(folder: Path) -> list[dict[str, Any]]:
    return [entry for event in read_events(folder / LEDGER) if event["event"] == "scores" for entry in event["scores"]]


def test_the_general_solver_goes_on_from_the_best(real_images: Path, tmp_path: Path) -> None:
    given = GIVEN | {"reference": str(real_images)}
    [(name, result)] = search_solvers(["ddim", "gls", "dpm_solver++"], tmp_path, **given).items()
    assert name == "gls"
    [best] = [path.stem for path in tmp_path.glob("*.json") if path.name != "plan.json"]
    start = Plan.load(tmp_path / f"{best}.json")
    assert result.plan.solver_options["plain"] == start.solver == best
    first = Plan.model_validate(_scores(tmp_path / "gls")[0]["plan"])
    assert not any(first.params)
    tried = [Plan.model_validate(entry["plan"]) for entry in _scores(tmp_path / "gls")]
    assert any(np.allclose(plan.times, start.times, atol=0.5) and not any(plan.params) for plan in tried)
    finalist = search(Settings.of(solver=best, **given), tmp_path / "alone")
    assert fid(result) < 1.1 * fid(finalist)


def test_a_budget_holds_for_all_together(real_images: Path, tmp_path: Path) -> None:
    given = GIVEN | {"reference": str(real_images), "budget": 20_000}
    for number, solvers in enumerate((["ddim", "plms", "dpm_solver++"], ["ddim", "dpm_solver++", "gls"])):
        search_solvers(solvers, tmp_path / str(number), **given)
        total = sum(spent(path.parent) for path in tmp_path.glob(f"{number}/*/{LEDGER}"))
        assert 0.4 * 20_000 < total <= 20_000


def test_a_strategy_without_an_end_of_its_own_is_stopped_by_what_it_plans(real_images: Path, tmp_path: Path) -> None:
    few = {"population": 4, "generations": 5, "parents": 2, "mutations": 2, "crossovers": 1}
    given = GIVEN | {"reference": str(real_images), "strategy": "evolution", "strategy_options": few}
    [winner] = search_solvers(["ddim", "dpm_solver++", "plms"], tmp_path, **given)
    counts = {name: len(_scores(tmp_path / name)) for name in ("ddim", "dpm_solver++", "plms")}
    assert counts.pop(winner) == 20
    assert sorted(counts.values()) == [4, 8]  # at 15 % the first generation alone, at 40 % two


def test_layers_are_measured_once_for_all_solvers(
    real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another measurement would allow other plans, and the search of before not go on."""
    measured: list[int] = []

    def layer_times(model: Model, batch_size: int) -> Costs:
        measured.append(batch_size)
        share = 0.9 / len(model.layers)
        return Costs("ms", float(len(measured)), tuple(share * len(measured) for _ in model.layers))

    monkeypatch.setattr("autodiffusion._evaluation.timing.layer_times", layer_times)
    few = {"population": 4, "generations": 4, "parents": 2, "mutations": 2, "crossovers": 1, "stage": 1}
    given = GIVEN | {
        "model": "small:layered_model",
        "reference": str(real_images),
        "layers": True,
        "max_cost": "2.5 ms",
    }
    for _ in range(2):
        found = search_solvers(["ddim", "euler"], tmp_path, strategy="evolution", strategy_options=few, **given)
        assert all(result.plan.origin["cost"]["ms"] <= 2.5 for result in found.values())
    assert len(measured) == 1


def test_one_command_looks_at_real_images_once(
    real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder their features take minutes, and the feature network its memory."""
    loaded: list[str] = []
    for name in ("load_reference", "load_extractor", "load"):
        module = "autodiffusion._search.job" if name == "load" else "autodiffusion._search.inputs"
        whole = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(
            f"{module}.{name}", lambda *a, whole=whole, name=name, **k: (loaded.append(name), whole(*a, **k))[1]
        )
    given = GIVEN | {"reference": str(real_images), "budget": 8000}
    search_solvers(["pfdiff", "plms", "gls"], tmp_path / "solvers", **given)
    assert sorted(loaded) == ["load", "load_extractor", "load_reference"]
    loaded.clear()
    del given["steps"]
    found = search_several([1, 2], tmp_path / "steps", **given)
    assert sorted(loaded) == ["load", "load_extractor", "load_reference"]
    apart = search(Settings.of(**given | {"steps": 1, "budget": 8000 // 3}), tmp_path / "apart")
    assert apart.rows == found[1].rows


def test_a_teacher_is_drawn_once_and_the_cost_is_that_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    job = importlib.import_module("autodiffusion._search.job")
    whole = job.find_reference
    monkeypatch.setattr(job, "find_reference", lambda source, *rest: (drawn.append(source), whole(source, *rest))[1])
    given = GIVEN | {"reference": "teacher:9:60", "budget": 9000}
    for _ in range(2):
        [result] = search_solvers(["ddim", "euler", "gls"], tmp_path, **given).values()
        assert drawn == ["teacher:9:60"]
        assert result.search_cost.evaluations == sum(spent(folder.parent) for folder in tmp_path.glob("*/study.jsonl"))


def test_none_counts_as_not_given(real_images: Path, tmp_path: Path) -> None:
    given = GIVEN | {"reference": str(real_images), "budget": 8000}
    plain = search_solvers(["pfdiff", "gls"], tmp_path / "plain", **given)
    options = {"solver_options": None, "free_numbers": None, "starts": None}
    assert search_solvers(["pfdiff", "gls"], tmp_path / "none", **given | options)["gls"].rows == plain["gls"].rows


def test_a_budget_that_scores_nothing(real_images: Path, tmp_path: Path) -> None:
    given = GIVEN | {"reference": str(real_images), "samples": 20, "budget": 3000}
    with pytest.raises(RunError, match=r"no candidate of any solver has a score; .* or the budget is too small"):
        search_solvers(["ddim", "gls"], tmp_path, **given)


@pytest.mark.parametrize("budget", ["many", [1], math.nan, math.inf, 1.5, -1])
def test_budgets_that_are_none(tmp_path: Path, budget: Any) -> None:
    options = {name: value for name, value in GIVEN.items() if name != "steps"} | {"budget": budget}
    with pytest.raises(InputError, match="settings: budget: "):
        search_solvers(["ddim", "plms"], tmp_path / "run", steps=3, **options)
    with pytest.raises(InputError, match="settings: budget: "):
        search_several([2, 3], tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("solvers", "options", "message"),
    [
        (["gls"], {}, "names no other than gls"),
        (["ddim", "gls"], {"free_numbers": False}, "gls searches free numbers alone; leave out one of the two"),
        (["ddim", "lcm", "gls"], {}, "gls cannot go on from lcm: solver gls: plain = lcm draws noise"),
        (["ddim", "ddmi"], {}, "solver 'ddmi' is unknown .did you mean 'ddim'"),
        (["ddim", "gls"], {"layers": True}, "gls does not leave out layers"),
        (["heun", "ddim"], {"steps": 1, "free_end": True}, "solver heun needs more network evaluations than 1"),
        (["ddim", "plms"], {"solver_options": {"eta": 0.5}}, "solver plms: option 'eta' is unknown"),
        (["ddim", "gls"], {"solver_options": {"memory": 2}}, "solver ddim: option 'memory' is unknown"),
    ],
)
def test_nothing_is_written_where_solvers_do_not_fit(
    real_images: Path, tmp_path: Path, solvers: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        search_solvers(solvers, tmp_path / "run", **GIVEN | {"reference": str(real_images)} | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_on_the_command_line(real_images: Path, tmp_path: Path) -> None:
    common = ["search", "small:model", "--features", "small:features", "--reference", str(real_images)]
    common += ["--samples", "40", "--confirm-samples", "100", "--budget", "6000", "--out", str(tmp_path / "run")]
    given = [*common, "--solver", "ddim,dpm_solver++,gls", "--steps"]
    wrong = CliRunner().invoke(app, [*given, "2,3"])
    assert "several solvers and several numbers of steps; give one of the two" in str(wrong.exception)
    done = CliRunner().invoke(app, [*given, "3", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(tmp_path / "run" / "gls")
    assert Plan.load(tmp_path / "run" / "plan.json").solver == "gls"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "plms", "free_numbers": True}, "free_numbers: solver plms leaves nothing open for 3 steps"),
        (
            {"solver": "gls", "free_numbers": True, "layers": True},
            "free_numbers: are not searched together with layers",
        ),
    ],
)
def test_free_numbers_that_cannot_be_searched(
    real_images: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        search(Settings.of(**GIVEN | {"reference": str(real_images)} | options), tmp_path / "run")
    assert not (tmp_path / "run").exists()
