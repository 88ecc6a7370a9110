"""The benchmarks of time, honesty and single ideas in small: what they measure with, and that they run."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from autodiffusion import Plan, Settings
from autodiffusion._evaluation.evaluate import derive_seed
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._search.inputs import find_reference, prepare
from autodiffusion._search.racing import counts
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.metrics._build import build
from autodiffusion.models._load import load
from autodiffusion.models._model import Model
from autodiffusion.strategies._base import WIDER
from autodiffusion.strategies._base import build as build_strategy
from bench import ablation, apply_time, compare, honesty, memory, models, overhead


def small(real_images: Path, **options: object) -> Settings:
    given = {"model": "small:model", "reference": str(real_images), "steps": 3, "samples": 40, "budget": 2000}
    return Settings.of(**given | {"finalists": 2, "confirm_samples": 60, "threads": 1} | options)


def test_clock_counts_nested_time_for_the_inner_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = [0.0]
    monkeypatch.setattr(overhead, "now", lambda: (ticking[0], 2 * ticking[0]))

    def passes(seconds: float) -> None:
        ticking[0] += seconds

    clock = overhead.Clock()
    inner = clock.timed("inner", lambda: passes(4))

    def work() -> None:
        passes(1)
        inner()
        passes(2)

    passes(8)
    clock.phase("search", 0)
    clock.timed("outer", work)()
    passes(16)
    with pytest.raises(ZeroDivisionError):
        clock.timed("inner", lambda: 1 / 0)()
    clock.book()
    expected = {("setup", "loop"): 8, ("search", "outer"): 3, ("search", "inner"): 4, ("search", "loop"): 16}
    assert clock.spent == {key: (seconds, 2 * seconds) for key, seconds in expected.items()}


def test_overhead_is_all_that_the_networks_do_not_take() -> None:
    spent = {("search", "network"): 6.0, ("search", "feature network"): 2.0, ("search", "metric"): 1.0}
    spent |= {("confirm", "loop"): 1.0, ("setup", "imports"): 90.0}
    times = {key: (seconds, 0.0) for key, seconds in spent.items()}
    assert overhead.share(times, ["search"]) == pytest.approx(1 / 9)
    assert overhead.share(times, ["search", "confirm"]) == pytest.approx(0.2)
    assert "all but setup: 20.00%" in overhead.table(times)


def test_every_second_of_a_search_is_counted_once(tmp_path: Path, real_images: Path) -> None:
    before, start = Model.noise, time.perf_counter()
    spent = overhead.measure(small(real_images), tmp_path / "run")
    passed = time.perf_counter() - start
    assert Model.noise is before
    assert sum(wall for _, wall in spent.values()) == pytest.approx(passed, rel=0.02)
    phases = {phase for phase, _ in spent}
    assert {"setup", "search", "confirm"} <= phases
    for part in (*overhead.NETWORKS, "noise, labels", "solver", "walking", "pixels", "metric", "strategy", "ledger"):
        assert spent["search", part][0] >= 0, part
    assert spent["measuring how long sampling takes", "report, pictures"][0] > 0.01
    assert (tmp_path / "run" / "plan.json").exists()


def test_reevaluation_is_of_the_found_plan_on_noise_of_its_own(tmp_path: Path, real_images: Path) -> None:
    settings = small(real_images, seed=5)
    row = honesty.searched(settings, tmp_path / "run")
    plan = Plan.load(tmp_path / "run" / "plan.json")
    evaluator, source = prepare(load(settings.model), reference=settings.reference)
    fid = build("fid", find_reference(source, evaluator))

    def score(samples: int, purpose: str) -> float:
        return evaluator.scores([plan], fid, samples, derive_seed(5, purpose))[0].value

    assert row["pooled"] == pytest.approx(score(600, "honesty"), rel=1e-6)
    if row["search"] is None:  # only a first look
        assert (row["search_samples"], row["fresh"]) == (0, row["again"])
    else:
        [features] = evaluator.features([plan], row["search_samples"], derive_seed(5, "search"))
        assert not isinstance(features, str)
        assert row["search"] == pytest.approx(fid.value(features), rel=1e-6)
        assert row["search_samples"] in counts(40, wider=WIDER)
        assert row["again"] < row["fresh"]  # a FID falls with the number of samples
    assert row["reported"]["value"] == pytest.approx(score(60, "confirm"), rel=1e-6)
    assert row["samples"] == 60
    assert row["pooled"] < row["again"]


def test_counts_of_what_lies_inside() -> None:
    reported = {"value": 2.0, "low": 1.0, "high": 3.0}
    row = {"reported": reported, "again": 1.5, "pooled": 0.5, "search": 0.9, "fresh": 1.2, "fresh_deviation": 0.1}
    found = honesty.counts([row, row | {"again": 3.5, "search": 1.3}, row | {"search": None}])
    assert found == {
        "searches": 3,
        "again_inside": 2,
        "pooled_inside": 0,
        "scored": 2,
        "search_below_fresh": 1,
        "search_as_fresh": 1,
    }


def test_searches_take_models_solvers_and_steps_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(honesty, "reference_of", str)
    made = [honesty.settings_of(number, {"seed": 3, "budget": 9000}) for number in range(20)]
    assert len({(settings.model, settings.solver, settings.steps) for settings in made[:8]}) == 8
    assert [settings.seed for settings in made] == list(range(3, 23))
    assert {settings.preset for settings in made} == {"default"}


def test_honesty_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "REFERENCES", tmp_path)
    monkeypatch.setattr(models, "REAL", 500)
    options = ["--searches", "1", "--budget", "6000", "--confirm-samples", "100", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["honesty", *options])
    honesty.main()
    content = json.loads((tmp_path / "found.json").read_text())
    [row] = content["rows"]
    assert (row["model"], row["samples"], content["searches"]) == ("mixture", 100, 1)
    assert f"equal sample counts, {content['again_inside']} of 1" in capsys.readouterr().out


SPACE = SearchSpace.of(NoiseSchedule.linear(1000), 5, "ddim")
TARGET = (950, 700, 450, 200, 40)


def asked(variant: str) -> list[tuple[float, list[Plan]]]:
    """What a variant of the ladder asks for when the loss is the distance to a target: share and plans by round."""
    options = ablation.VARIANTS[variant]
    starts = [SPACE.named(name, NoiseSchedule.linear(1000)) for name in options.get("starts", ["uniform", "karras"])]
    name = options.get("strategy", "ladder")
    strategy = build_strategy(name, SPACE, starts, 0, options.get("strategy_options", {}))
    rounds = []
    while plans := strategy.ask():
        rounds.append((strategy.share, plans))
        losses = [math.dist(plan.times, TARGET) for plan in plans]
        strategy.tell(list(zip(plans, losses, strict=True)), dict.fromkeys(plans, 1e-3))
    return rounds


def test_each_variant_is_without_its_idea() -> None:
    whole = asked("default")
    assert [(share, len(plans)) for share, plans in whole[:4]] == [(0.1, 11), (0.1, 23), (0.1, 35), (0.1, 47)]
    [(share, plans), *_] = asked("no racing of starts")
    assert (share, plans) == (1.0, whole[3][1])
    assert [len(asked(name)[0][1]) for name in ("no family of starts", "one start")] == [2, 1]
    # a round of exploring asks for 12 children and is followed by two more
    for name, explorations, refines in (("no exploring", 0, True), ("no refining", 4, False), ("default", 4, True)):
        sizes = [len(plans) for _, plans in asked(name)]
        assert sizes.count(12) == explorations, name
        after = len(sizes) - 1 - max((i for i, size in enumerate(sizes) if size == 12), default=0)
        assert (after > 10) == refines, name
    for name, single in (("no moves of the whole sequence", True), ("default", False)):
        rounds = asked(name)
        last = max(i for i, (_, plans) in enumerate(rounds) if len(plans) == 12)
        pairs = [plans for share, plans in rounds[last + 3 :] if share < 1 and len(plans) == 2]
        moved = {sum(a != b for a, b in zip(one.times, other.times, strict=True)) for one, other in pairs}
        assert (moved == {1}) == single, name


def test_table_of_made_up_runs() -> None:
    def row(variant: str, seed: int, *curve: tuple[int, float], **other: object) -> dict[str, object]:
        counts = {"samples": 500, "fresh_samples": 10, "candidates": 9, "evaluations": curve[-1][0]}
        return {"model": "m", "solver": "s", "steps": 4, "variant": variant, "seed": seed, "curve": curve} | counts

    rows = [row("default", 0, (10_000, 4.0), (40_000, 1.0)), row("default", 1, (10_000, 1.04), (40_000, 1.0))]
    rows += [row("no refining", 0, (20_000, 1.03), (80_000, 2.0)), row("no refining", 1, (10_000, 3.0), (20_000, 0.5))]
    rows += [row("one start", 1, (20_000, 1.06))]
    text = ablation.table(ablation.read(rows))
    # factors 2 and 1/2 of the FID: the mean of the logarithms is 0, its standard error ln 2; of the cost 2 and 1/2
    assert "| no refining | 1.00 [0.50, 2.00] | 1.00 | 1 of 2 |" in text
    assert "| one start | 1.06 [0.00, inf] | 0.50 | 0 of 1 |" in text
    assert "| default | 1 [1, 1], 40k, after 25k |" in text
    assert "| no refining | 1.25 [0.5, 2], 50k, after 20k |" in text
    assert "| one start | 1.06 [1.06, 1.06], 20k, never |" in text


def test_table_of_no_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablation.main(["--seeds", "0", "--out", str(tmp_path / "found.json")])
    text = capsys.readouterr().out
    assert text.startswith("Nothing has been run")
    assert text == ablation.table(ablation.read([]))


def test_ablation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "REFERENCES", tmp_path)
    monkeypatch.setattr(models, "REAL", 500)
    compare.judge.cache_clear()
    few = {name: ablation.VARIANTS[name] for name in ("default", "one start", "evolution, 120 samples")}
    monkeypatch.setattr(ablation, "VARIANTS", few)
    out = tmp_path / "found.json"
    given = ["--reduced", "--models", "mixture", "--steps", "4", "--seeds", "1", "--out", str(out)]
    ablation.main(given)
    text, rows = capsys.readouterr().out, json.loads(out.read_text())
    assert text == out.with_suffix(".md").read_text()
    found = {row["variant"]: row for row in rows}
    assert list(found) == ["default", "beginnings not shared", "one start", "evolution, 120 samples"]
    assert [row["samples"] for row in rows] == [500, 500, 500, 120]
    whole, unshared = found["default"], found["beginnings not shared"]
    assert unshared["times"] == whole["times"]
    assert unshared["evaluations"] > whole["evaluations"] > 10_000
    evaluator, fid = compare.judge("mixture")
    plan = Plan.of("ddim", found["one start"]["times"], solver_options={"clip": False})
    [score] = evaluator.scores([plan], fid, 200, derive_seed(0, "confirm"))
    assert found["one start"]["curve"][-1][1] == pytest.approx(score.value, abs=1e-5)
    ablation.main(given)  # what is there is kept
    assert json.loads(out.read_text()) == rows
    compare.judge.cache_clear()


def test_the_demo_that_is_measured_is_the_demo() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert f"autodiffusion search mnist {' '.join(memory.DEMO)} --out demo\n" in makefile


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("case", apply_time.CASES)
def test_both_schedulers_are_timed(case: str) -> None:
    stock, plan, ratios = apply_time.compare(case, runs=2, steps=3, batch=1, size=32)
    assert len(ratios) == 2
    assert all(0 < ratio < math.inf for ratio in ratios)
    assert 0 < stock < 1
    assert 0 < plan < 1
