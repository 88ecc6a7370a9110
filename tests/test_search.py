"""Whole searches on a small exact model: what they find, spend and keep, and that being killed changes nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_nothing
from hypothesis import given
from hypothesis import strategies as st
from rooms import SEARCH_TIMES
from small import model as small_model
from small import real
from typer.testing import CliRunner

from autodiffusion import InputError, NoiseSchedule, Plan, RunError, Settings
from autodiffusion._cli import app
from autodiffusion._evaluation.evaluate import Evaluator, derive_seed
from autodiffusion._names import resolve
from autodiffusion._plans.grids import NAMED
from autodiffusion._references.reference import Reference
from autodiffusion._report.figures.convergence import table as convergence
from autodiffusion._search.candidates import standings
from autodiffusion._search.finalists import choice
from autodiffusion._search.inputs import plan_of
from autodiffusion._search.loop import Result, search
from autodiffusion._search.racing import Race
from autodiffusion._study.standing import candidates as scores_of
from autodiffusion._study.study import Study, read_events, stored_settings
from autodiffusion._views.progress import Quiet
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics._build import build
from autodiffusion.solvers._base import build as build_solver

TESTS = Path(__file__).parent
LADDER = {"strategy": "ladder", "strategy_options": {}}
"""The default preset's strategy."""
WIDE = {
    "strategy": "ladder",
    "strategy_options": {
        "explorations": 1,
        "children": 4,
        "elite": 2,
        "family": False,
        "step": 0.05,
        "smallest_step": 0.04,
    },
}
"""A short one that goes on with twice and four times the samples."""
FEW = {"population": 6, "generations": 4, "parents": 3, "mutations": 3, "crossovers": 2}
Search = Callable[..., Result]


@pytest.fixture
def run(real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Searches the small model; without pictures and report, which take longer than all the rest."""
    draw_nothing(monkeypatch)

    def searched(folder: str = "run", *, progress: Quiet | None = None, **given: Any) -> Result:
        return search(settings(real_images, **given), tmp_path / folder, progress)

    return searched


def settings(images: Path, **given: Any) -> Settings:
    plain = {
        "model": "small:model",
        "features": "small:features",
        "reference": str(images),
        "steps": 3,
        "samples": 48,
        "confirm_samples": 96,
        "strategy": "evolution",
        "strategy_options": FEW,
    }
    return Settings.of(**{**plain, **given})


def events(folder: Path, kind: str = "scores") -> list[dict[str, Any]]:
    lines = (folder / "study.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def candidates(folder: Path) -> list[tuple[Plan, float | None]]:
    """Every plan in the ledger with its value, in order."""
    return [
        (Plan.model_validate(score["plan"]), score["value"]) for event in events(folder) for score in event["scores"]
    ]


def assert_sound(result: Result, folder: Path, count: int, nfe: int, samples: int = 48) -> None:
    """What must hold of every finished search."""
    scored = candidates(folder)
    plans = [plan for plan, _ in scored]
    assert len(plans) == len(set(plans)) == count
    assert all(value is not None and math.isfinite(value) for _, value in scored)
    spent = result.search_cost
    assert spent.evaluations + spent.saved == count * samples * nfe
    # a named grid that wins on fresh noise need not be one that the search began with
    named = [Plan.model_validate(row["plan"]) for row in result.rows if row["name"] != "found"]
    assert result.plan in plans + named
    assert Plan.load(folder / "plan.json") == result.plan
    rows = {row["name"]: row for row in result.rows}
    assert {"uniform", "found"} <= set(rows)
    assert Plan.model_validate(rows["found"]["plan"]) == result.plan
    assert all(row["nfe"] == nfe for row in result.rows)


# every combination ends in a plan


@pytest.mark.parametrize(
    ("given", "nfe"),
    [
        ({"solver": "ddim"}, 3),
        ({"solver": "ddim", "solver_options": {"eta": 1.0}, "gap": 9}, 3),
        ({"solver": "plms"}, 4),
        ({"solver": "dpm_solver++"}, 3),
        ({"solver": "dpm_solver", "solver_options": {"order": 3, "method": "singlestep"}, "free_end": True}, 3),
        ({"solver": "plms", "free_end": True, "metric": "kid"}, 4),
        ({"metric": "kid"}, 3),
        ({"metric": "kl"}, 3),
        ({"metric": "inception_score"}, 3),
        ({"noise": "fresh"}, 3),
        ({"starts": []}, 3),
        ({"finalists": 1}, 3),
        ({"reference": "teacher:20:300"}, 3),
        ({"strategy": "random", "strategy_options": {"candidates": 24, "population": 10}}, 3),
    ],
    ids=str,
)
def test_a_search_ends_in_a_plan(run: Search, tmp_path: Path, given: dict[str, Any], nfe: int) -> None:
    result = run(**given)
    assert_sound(result, tmp_path / "run", 24, nfe)
    metric, plan = given.get("metric", "fid"), result.plan
    assert plan.solver == given.get("solver", "ddim")
    # solvers for continuous time search it by default
    assert (plan.end is not None) == given.get("free_end", plan.solver == "dpm_solver++")
    assert all(set(row["scores"]) == {metric, "fid"} for row in result.rows)
    [found] = [row for row in result.rows if row["name"] == "found"]
    # clean data in pixels: the model's clip became an option of the plan
    assert plan.solver_options == {"clip": True, **given.get("solver_options", {})}
    assert plan.origin["value"] == found["scores"][metric]["value"]
    assert plan.origin["model"] == "small:model"


def test_all_strategies_are_searched_with(run: Search, tmp_path: Path) -> None:
    for name in SEARCH_TIMES:
        result = run(name, strategy=name, strategy_options={}, preset="paper", samples=4, confirm_samples=8, budget=300)
        assert 0 < result.search_cost.evaluations <= 300


@pytest.mark.parametrize("given", [{}, {"budget": 4001}, {"model": "small:broken_model"}, {"steps": 1}], ids=str)
def test_the_default_strategy(run: Search, tmp_path: Path, given: dict[str, Any]) -> None:
    result = run(**LADDER | given)
    scored = events(tmp_path / "run")
    full: dict[str, int] = {}
    whole = 48
    for event in scored:
        samples, anchor = event["samples"], event["anchor"]
        assert samples in (8, 10, 24, 48, 96, 192)
        # measured from a plan whose own score stands on as many samples as the best have, and more than this one
        assert anchor is None or samples < full[anchor] == whole
        for score in event["scores"]:
            digest = Plan.model_validate(score["plan"]).digest
            assert (score["error"] is None) == (score["value"] is None) == (score["problem"] is not None)
            assert score["error"] is None or score["error"] >= 0
            if samples >= 48 and anchor is None and score["value"] is not None:
                full[digest] = whole = samples
        errors = [score["error"] for score in event["scores"] if score["error"] is not None]
        assert not errors or min(errors) == 0  # the best's, from itself
    # the best of the named grids is among the finalists, scored in the search or not
    named = {Plan.model_validate(row["plan"]).digest for row in result.rows if row["name"] != "found"}
    assert result.plan.digest in full.keys() | named
    price = given.get("steps", 3) * 48
    assert result.search_cost.evaluations <= given.get("budget", 100 * price)
    assert {event["samples"] for event in scored} >= {8, 10, 24, 48}
    assert (whole > 48) == ("budget" not in given)  # it goes on with more samples when it can


def test_the_papers_preset(run: Search, tmp_path: Path) -> None:
    few = {**FEW, "initial_mutations": 3}
    result = run(preset="paper", solver="dpm_solver++", strategy_options=few, samples=24, noise=None, finalists=None)
    assert_sound(result, tmp_path / "run", 24, 3, samples=24)
    assert result.plan.end is not None  # the last node is searched too
    scored = candidates(tmp_path / "run")
    assert (
        result.plan == min(scored, key=lambda pair: pair[1])[0]
    )  # the best of the search is the result, no second look
    assert len(events(tmp_path / "run")) == 24  # one event a candidate: each has noise of its own
    assert result.search_cost.saved == 0
    assert [row["name"] for row in result.rows] == ["uniform", "found"]


def test_a_teacher_in_the_table(run: Search) -> None:
    rows = {row["name"]: row for row in run(teacher=20).rows}
    assert rows["teacher (20 steps)"]["nfe"] == 20
    assert rows["teacher (20 steps)"]["plan"]["steps"][0]["t"] == 95


def test_everything_is_written(real_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = search(settings(real_images), out)
    names = {"config.yaml", "study.jsonl", "plan.json", "grid.png", "sampling_times.json", "report.html"}
    assert {file.name for file in out.iterdir()} - {".lock"} == names
    before = {name: (out / name).stat().st_mtime_ns for name in ("config.yaml", "study.jsonl", "grid.png")}
    again = search(settings(real_images, batch_size=7), out)  # nothing is left to do
    assert again == result
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


# what it spends


class Counting(Quiet):
    """Sums the evaluations that a progress bar is told of, phase by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, list[int]] = {}

    def phase(self, name: str, total: int, unit: str = "evaluations") -> None:
        self.phases[name] = [0, total]
        self.now = name

    def tick(self, evaluations: int) -> None:
        self.phases[self.now][0] += evaluations


@pytest.mark.parametrize("noise", ["common", "fresh"])
@pytest.mark.parametrize("budget", [2001, 144, 1000])
def test_the_budget_is_used_and_never_exceeded(run: Search, tmp_path: Path, budget: int, noise: str) -> None:
    progress, price = Counting(), 3 * 48
    result = run(budget=budget, noise=noise, progress=progress)
    spent = result.search_cost
    assert budget - price < spent.evaluations <= budget
    assert spent.evaluations + spent.saved == price * len(candidates(tmp_path / "run"))
    assert progress.phases["search"] == [spent.evaluations, min(budget, 24 * price)]
    done, estimate = progress.phases["confirm"]
    assert done == result.confirm_cost.evaluations <= estimate


@pytest.mark.parametrize("budget", [7000, 9001, 11_500])
def test_the_budget_is_kept_with_more_samples_too(run: Search, tmp_path: Path, budget: int) -> None:
    progress = Counting()
    spent = run(**WIDE, budget=budget, progress=progress).search_cost.evaluations
    assert spent <= budget
    assert progress.phases["search"][0] == spent == sum(event["evaluations"] for event in events(tmp_path / "run"))
    assert budget - spent < 3 * 192  # not enough for another plan in full
    assert max(event["samples"] for event in events(tmp_path / "run")) > 48


def test_estimates_on_more_samples_are_no_full_scores(run: Search, tmp_path: Path) -> None:
    """Differences from a plan of more samples may stand on as many samples as a full score, but are none."""
    run(**WIDE)
    folder = tmp_path / "run"
    kinds: dict[bool, dict[Plan, float]] = {False: {}, True: {}}
    own: dict[Plan, tuple[int, float]] = {}
    for event in events(folder):
        for score in event["scores"]:
            plan, estimated = Plan.model_validate(score["plan"]), event["anchor"] is not None
            if event["samples"] == 48:
                kinds[estimated][plan] = score["value"]
            if not estimated:
                own[plan] = (event["samples"], score["value"])
    assert len(kinds[True].keys() - kinds[False].keys()) > 3
    metric = resolve("metrics", "fid")
    with Study(folder, stored_settings(folder)) as study:
        ranked = standings(study.events, metric)
    assert ranked == own
    assert list(ranked.values()) == sorted(own.values(), key=lambda score: (-score[0], score[1]))
    assert {samples for samples, _ in ranked.values()} >= {48, 96, 192}
    drawn = sorted(convergence(list(scores_of(read_events(folder / "study.jsonl"))), [], "fid", 48).column("value"))
    full = [event for event in events(folder) if event["samples"] == 48 and event["anchor"] is None]
    assert drawn == sorted(score["value"] for event in full for score in event["scores"])


def test_a_look_at_few_samples_takes_no_score_of_many_away() -> None:
    """The search of layers races whole plans again that it has scored in full."""
    full, other = Plan.of("ddim", [5.0]), Plan.of("ddim", [4.0])

    def scored(samples: int, *values: float) -> dict[str, Any]:
        scores = [{"plan": p.model_dump(mode="json"), "value": v} for p, v in zip((full, other), values, strict=False)]
        return {"event": "scores", "samples": samples, "scores": scores}

    events = [scored(500, 6.0, 7.0), scored(50, 4.0), scored(500, 5.0), scored(1000, 6.5)]
    assert standings(events, resolve("metrics", "fid")) == {full: (1000, 6.5), other: (500, 7.0)}
    assert standings(events[:2], resolve("metrics", "fid")) == {full: (500, 6.0), other: (500, 7.0)}
    assert standings(events[:3], resolve("metrics", "fid"))[full] == (500, 5.0)


def test_costs_of_a_teachers_reference_are_not_the_searchs(run: Search) -> None:
    progress = Counting()
    result = run(reference="teacher:20:300", progress=progress)
    assert progress.phases["teacher"] == [6000, 6000]
    assert progress.phases["search"][0] == result.search_cost.evaluations


# what decides


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "plan.json").read_bytes(), (folder / "study.jsonl").read_bytes()


@pytest.mark.parametrize(
    "given", [{}, {"noise": "fresh"}, {"strategy": "random", "strategy_options": {"candidates": 12}}]
)
def test_the_same_search_twice(run: Search, tmp_path: Path, given: dict[str, Any]) -> None:
    for folder in ("first", "second"):
        run(folder, **given)
    run("other", seed=1, **given)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert candidates(tmp_path / "first") != candidates(tmp_path / "other")


def test_scores_do_not_depend_on_the_batch_size(run: Search, tmp_path: Path) -> None:
    for size in (16, 256):
        run(str(size), samples=256, batch_size=size, strategy_options={**FEW, "generations": 1})
    assert_same_scores(tmp_path / "16", tmp_path / "256")


@pytest.fixture
def one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("one_thread_again")
def test_scores_do_not_depend_on_the_threads(run: Search, tmp_path: Path) -> None:
    for threads in (1, 2):
        # of a batch that is large enough: torch divides more than 32,768 numbers, of which a sample has 16
        given = {"threads": threads, "samples": 2500, "batch_size": 2500, "starts": ["uniform"], "finalists": 1}
        run(str(threads), strategy="random", strategy_options={"candidates": 3}, **given)
        assert torch.get_num_threads() == threads
    assert_same_scores(tmp_path / "1", tmp_path / "2")


def assert_same_scores(first: Path, second: Path) -> None:
    ours, theirs = dict(candidates(first)), dict(candidates(second))
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), [theirs[plan] for plan in ours], rtol=1e-4)


def test_candidates_share_noise_unless_it_is_fresh(
    run: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    scores = Evaluator.scores

    def watched(self: Evaluator, plans: Any, metric: Any, samples: int, seed: int, tick: Any = None) -> Any:
        seeds.append(seed)
        return scores(self, plans, metric, samples, seed, tick)

    final: list[int] = []
    intervals = Evaluator.intervals

    def watched_last(self: Evaluator, plan: Plan, metrics: Any, samples: int, seed: int, tick: Any = None) -> Any:
        final.append(seed)
        return intervals(self, plan, metrics, samples, seed, tick)

    begin = Race.__init__

    def watched_race(self: Race, evaluator: Any, metric: Any, samples: int, seed: int, *rest: Any) -> None:
        seeds.append(seed)
        begin(self, evaluator, metric, samples, seed, *rest)

    monkeypatch.setattr(Evaluator, "scores", watched)
    monkeypatch.setattr(Race, "__init__", watched_race)
    monkeypatch.setattr(Evaluator, "intervals", watched_last)
    run("common", finalists=2)
    candidates, *finalists = seeds  # one for all candidates; the named grids and the finalists meet other noise
    assert len(finalists) == 2
    assert len(set(finalists)) == 1
    assert candidates not in finalists
    assert len(set(final)) == 1  # all rows of the table the same, which is other noise again
    assert set(final).isdisjoint(seeds)
    seeds.clear()
    run("fresh", noise="fresh", finalists=2)
    assert len(seeds) == 24 + 2
    assert seeds[-1] == seeds[-2]
    assert len(set(seeds)) == 24 + 1


# what it finds


@pytest.fixture(scope="session")
def many_real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "real.npz"
    np.savez(path, arr_0=real(5000).permute(0, 2, 3, 1).numpy())
    return path


def test_the_found_plan_is_better_than_uniform_steps(run: Search, many_real_images: Path) -> None:
    # 40,000 evaluations: 0.023 [0.018, 0.031] for what is found, 0.068 [0.061, 0.077] for steps at 50 and 0
    result = run(
        steps=2,
        samples=250,
        confirm_samples=5000,
        reference=str(many_real_images),
        budget=40_000,
        strategy_options={"population": 16, "generations": 12, "mutation_scale": 0.08},
    )
    rows = {row["name"]: row["scores"]["fid"] for row in result.rows}
    assert rows["found"]["value"] < 0.7 * rows["uniform"]["value"]
    assert rows["found"]["high"] < rows["uniform"]["low"]


@pytest.mark.parametrize(("steps", "finalists"), [(1, 4), (3, 4), (3, 1)])
def test_the_best_named_grid_is_that_of_the_finalists_noise(
    run: Search, tmp_path: Path, real_images: Path, steps: int, finalists: int
) -> None:
    result = run(steps=steps, starts=["uniform", "karras"], finalists=finalists, confirm_samples=400, budget=2000)
    model = small_model()
    names = [
        "uniform",
        *(name for name in NAMED if name != "uniform"),
    ]  # also those that the search does not begin with
    plans = {name: plan_of(f"{name}:{steps}", model, "ddim", {"clip": True}) for name in names}
    reference = Reference.of(load_features("small:features")(real(600)), None)
    judge = build("fid", reference)
    evaluator = Evaluator(model, load_features("small:features"))
    scores = evaluator.scores(list(plans.values()), judge, 400, derive_seed(0, "finalists"))
    best = min(zip(names, scores, strict=True), key=lambda pair: pair[1].value)[0]
    assert [row["name"] for row in result.rows][1:-1] == ([] if best == "uniform" else [f"{best} (best grid)"])
    [confirmed] = events(tmp_path / "run", "confirm")
    # what is found is compared with it, unless the best of the search is the result without a second look
    assert (plans[best].digest in confirmed["finalists"]) == (finalists > 1)
    assert result.plan.digest in confirmed["finalists"]


def test_grids_that_do_not_fit_are_not_compared(run: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(steps: int, schedule: NoiseSchedule) -> None:
        raise InputError("needs another schedule")

    for name in NAMED:
        if name != "uniform":
            monkeypatch.setitem(NAMED, name, refuse)
    assert [row["name"] for row in run(starts=["uniform"]).rows] == ["uniform", "found"]


# which are compared again

TIMES = st.lists(st.sampled_from([5.0, 10.0, 14.0, 30.0, 35.0, 60.0, 62.0, 90.0]), min_size=1, max_size=3, unique=True)
LEFT_OUT = st.lists(st.frozensets(st.integers(0, 5), max_size=6), min_size=3, max_size=3)


def planned(times: Sequence[float], skips: Sequence[Set[int]] = (), end: float | None = None) -> Plan:
    plan = Plan.of("ddim", times, end=end)
    steps = [step.model_copy(update={"skip": frozenset(skip)}) for step, skip in zip(plan.steps, skips, strict=False)]
    return plan.model_copy(update={"steps": (*steps, *plan.steps[len(steps) :])})


def test_finalists_differ() -> None:
    """By a twentieth of the time range in one node, by their number of steps, or by a tenth of the layers left out."""
    best = planned([90, 50, 20])
    near, moved = planned([94.9, 45.1, 15.1]), planned([90, 50, 15])
    assert choice([best, near, moved], 4, 100, ()) == [best, moved]
    assert choice([near, best, moved], 4, 100, ()) == [
        near
    ]  # compared with those that are chosen, of which it is the first
    far = planned([70, 50, 20])
    assert choice([best, far, near, moved], 4, 100, ()) == [best, far, moved]  # with all of them, not the last alone
    assert choice([best, near, moved], 1, 100, ()) == [best]
    assert choice([best, near, moved], 4, 98, ()) == [best, near, moved]
    fewer = planned([90, 50])
    assert choice([best, fewer, moved], 2, 100, ()) == [best, fewer]
    assert choice([planned([90, 50], end=e) for e in (0, 4.9, 5)], 3, 100, ()) == [
        planned([90, 50], end=0),
        planned([90, 50], end=5),
    ]
    pairs = [{0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}, set()]  # ten are left out
    one_more, two_more = [*pairs[:2], {3}], [*pairs[:2], {3, 4}]
    thin, thinner, thinnest = (planned([90, 50, 20], skips) for skips in (pairs, one_more, two_more))
    assert choice([thin, thinner, thinnest], 4, 100, ()) == [thin, thinnest]
    assert choice([best, thin], 4, 100, ()) == [best, thin]


def test_finalists_differ_in_free_numbers_from_the_plain_value() -> None:
    """That of DDIM is its eta, 0; that of ancestral sampling likewise, 1."""
    for solver, alike, other in (("ddim", 0.2, 0.8), ("euler_ancestral", 0.8, 0.2)):
        free = build_solver(solver, NoiseSchedule.linear(100)).free(2)
        plan = Plan.of(solver, [90, 50])
        # neither is plain, and the second step of the first does not say its eta
        first, near, far = (plan.tuned([{"eta": 0.5}, says]) for says in ({}, {"eta": alike}, {"eta": other}))
        assert choice([first, near, far], 4, 100, free) == [first, far]
        assert choice([plan, plan.tuned([{"eta": alike}, {}])], 4, 100, free) == [
            plan,
            plan.tuned([{"eta": alike}, {}]),
        ]  # of which one alone is plain


@given(st.lists(st.builds(planned, TIMES.map(lambda t: sorted(t)[::-1]), LEFT_OUT), max_size=12), st.integers(1, 5))
def test_finalists_are_the_first_that_differ(ranked: list[Plan], count: int) -> None:
    def near(one: Plan, other: Plan) -> bool:
        if len(one.steps) != len(other.steps):
            return False
        moves = [abs(a - b) for a, b in zip(one.times, other.times, strict=True)]
        changed = sum(len(a.skip ^ b.skip) for a, b in zip(one.steps, other.steps, strict=True))
        most = max(sum(len(step.skip) for step in plan.steps) for plan in (one, other))
        return max(moves) < 5 and 10 * changed <= most

    chosen = choice(ranked, count, 100, ())
    assert len(chosen) <= count
    assert not any(near(one, other) for one, other in itertools.combinations(chosen, 2))
    places = [ranked.index(plan) for plan in chosen]
    assert places == sorted(places)
    for place, plan in enumerate(ranked):  # what is not chosen comes too late or is near one that is and comes before
        before = [ranked[other] for other in places if other < place]
        assert plan in chosen or len(before) == count or any(near(plan, other) for other in before)


@pytest.mark.parametrize("metric", ["fid", "kid", "kl"])
def test_the_figure_reported_is_what_evaluate_says(run: Search, tmp_path: Path, real_images: Path, metric: str) -> None:
    result = run(metric=metric, seed=4)
    [found] = [row for row in result.rows if row["name"] == "found"]
    given = f"--model small:model --features small:features --reference {real_images} --metric {metric},fid"
    file = str(tmp_path / "run" / "plan.json")
    done = CliRunner().invoke(app, ["evaluate", file, *given.split(), "--samples", "96", "--seed", "4", "--json"])
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said["scores"] == found["scores"]
    assert Plan.model_validate(said["plan"]) == result.plan
    assert result.plan.origin["value"] == said["scores"][metric]["value"]


# failures


def test_candidates_that_are_not_finite_are_never_chosen(run: Search, tmp_path: Path) -> None:
    result = run(model="small:broken_model", finalists=8)
    failed = [score for event in events(tmp_path / "run") for score in event["scores"] if score["problem"]]
    finite = [plan for plan, value in candidates(tmp_path / "run") if value is not None]
    assert failed
    assert finite
    assert len(failed) + len(finite) == 24  # the search went on
    for score in failed:
        assert score["plan"]["steps"][0]["t"] > 70
        assert score["value"] is None
        assert score["problem"] == "8 of samples 0 to 7 are not finite"  # the first rung of a race
    assert all(plan.times[0] <= 70 for plan in finite)
    assert result.plan in finite
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["origin"]["value"] >= 0


def test_when_all_fail(run: Search, tmp_path: Path) -> None:
    for _ in range(2):  # the second time from the ledger
        with pytest.raises(RunError) as caught:
            run(model="small:broken_model", gap=40)  # the first of three steps lies at 80 or above
        ledger = tmp_path / "run" / "study.jsonl"
        assert str(caught.value) == (
            f"no candidate could be scored, the first because 8 of samples 0 to 7 are not finite; {ledger} says why "
            "for each. They count as done: mend it and give another --out, or delete the folder"
        )
        assert len(candidates(tmp_path / "run")) == 24
        assert not (tmp_path / "run" / "plan.json").exists()


def test_uniform_steps_may_fail(run: Search) -> None:
    result = run(model="small:broken_model", steps=6, starts=["uniform", "quadratic"])  # 80, 64, ...
    rows = {row["name"]: row for row in result.rows}
    assert rows["uniform"]["problem"] == "96 of samples 0 to 95 are not finite"
    assert rows["uniform"]["scores"] == {}
    assert rows["found"]["problem"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "small:modl"}, "model 'small:modl': module small has no attribute 'modl'"),
        ({"solver": "dim"}, "solver 'dim' is unknown (did you mean 'ddim'?"),
        ({"solver_options": {"eat": 1.0}}, "solver ddim: option 'eat' is unknown (did you mean 'eta'?"),
        ({"solver_options": {"eta": 2.0}}, "solver ddim: eta = 2.0 lies outside 0 to 1"),
        ({"metric": "fdi"}, "metric 'fdi' is unknown (did you mean 'fid'?"),
        ({"metric": "kl", "reference": "teacher:20"}, "metric kl needs real images"),
        ({"metric": "kl", "samples": 601}, "reference "),
        ({"metric": "sfid", "reference": "teacher:20"}, "reference teacher:20: the sfid metric needs spatial features"),
        ({"metric": "precision", "reference": "teacher:20:3"}, "reference teacher:20:3: "),
        ({"metric": "small:Sideways"}, "metric small:Sideways: better = 'max' is none of lower, higher"),
        ({"metric": "small:Sideways", "reference": "teacher:20"}, "metric small:Sideways: better = 'max' is none"),
        ({"metric": "autodiffusion.metrics:Metric"}, "metric autodiffusion.metrics:Metric: better = None is none of"),
        ({"metric": "kid", "samples": 3}, "metric kid: 3 samples are too few; give 4 or more"),
        ({"metric": "recall", "confirm_samples": 2}, "metric recall: 2 samples are too few"),
        ({"strategy": "evolutoin", "strategy_options": {}}, "strategy 'evolutoin' is unknown"),
        ({"strategy_options": {"populaton": 3}}, "strategy evolution: option 'populaton' is unknown"),
        ({"steps": 0}, "steps = 0 is out of range"),
        ({"steps": 101}, "steps = 101 is out of range"),
        ({"gap": 60}, "steps = 3 do not fit"),
        (
            {"budget": 143},
            "budget = 143 is less than one candidate costs, 144 network evaluations times samples; give at least",
        ),
        ({"reference": "nowhere.npz"}, "nowhere.npz: does not exist"),
        ({"reference": "teacher:zero"}, "reference 'teacher:zero': write teacher:STEPS"),
        ({"teacher": 101}, "steps = 101 is out of range"),
        ({"device": "cdua"}, "device 'cdua' cannot be used"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_said_before_anything_is_written(
    run: Search, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(**given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_another_search_is_refused(run: Search, tmp_path: Path) -> None:
    run()
    before = files(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds a search with other settings \(samples: 48 there, 49 here\)"):
        run(samples=49)
    assert files(tmp_path / "run") == before


def test_the_ledger_of_other_plans_is_refused(run: Search, tmp_path: Path) -> None:
    run(**WIDE)
    ledger = tmp_path / "run" / "study.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)[:3]
    event = json.loads(lines[1])
    event["scores"][0]["plan"]["steps"][0]["t"] -= 1
    ledger.write_text(lines[0] + json.dumps(event) + "\n" + lines[2])
    with pytest.raises(
        InputError, match=r"study.jsonl: round 0 scores other plans than this search asks for; .*restore"
    ):
        run(**WIDE)


# interrupted anywhere

VARIANTS = {
    "common": {},
    "budget": {"budget": 1500},
    "ladder": WIDE | {"steps": 2},
    "ladder, budget": LADDER | {"budget": 3000},
    "ladder, some fail": WIDE | {"model": "small:broken_model", "steps": 2},
    "ladder, fresh": LADDER | {"noise": "fresh", "budget": 3000},
    "budget, fresh": {"budget": 1500, "noise": "fresh"},
    "fresh": {"noise": "fresh", "strategy_options": FEW | {"generations": 2}},
}
every_variant = pytest.mark.parametrize("given", list(VARIANTS.values()), ids=list(VARIANTS))


@every_variant
def test_cut_off_anywhere_it_goes_on_as_if_nothing_had_been(run: Search, tmp_path: Path, given: dict[str, Any]) -> None:
    run("whole", **given)
    whole, ledger = tmp_path / "whole", (tmp_path / "whole" / "study.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(ledger) if byte == ord("\n")]
    cuts = [0, *ends[:: max(1, len(ends) // 3)], len(ledger)]  # after whole lines
    torn = [end + offset for end, offset in zip(cuts[1:-1], (1, 40, 200, -1), strict=False)]
    for number, cut in enumerate(cuts + torn):
        folder = tmp_path / f"cut {number}"
        shutil.copytree(whole, folder)
        (folder / "plan.json").unlink()
        (folder / "study.jsonl").write_bytes(ledger[:cut])
        if cut in cuts:
            run(folder.name, **given)
        else:
            with pytest.warns(UserWarning, match="the last line was cut off"):
                run(folder.name, **given)
        assert files(folder) == files(whole)


def test_cut_off_among_scores_of_more_samples_it_goes_on_as_if_nothing_had_been(run: Search, tmp_path: Path) -> None:
    given = WIDE | {"budget": 11_000}
    result = run("whole", **given)
    lines = (tmp_path / "whole" / "study.jsonl").read_bytes().splitlines(keepends=True)
    wide = [i for i, event in enumerate(map(json.loads, lines)) if event.get("samples", 0) > 48]
    assert len(wide) > 3
    anchored = next(i for i in range(wide[0], len(lines)) if json.loads(lines[i])["anchor"])
    # before the first of them, after it, after the first difference from it, and before the last
    for cut in (wide[0], wide[0] + 1, anchored + 1, wide[-1]):
        folder, progress = tmp_path / f"cut {cut}", Counting()
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "plan.json").unlink()
        (folder / "study.jsonl").write_bytes(b"".join(lines[:cut]))
        assert run(folder.name, progress=progress, **given) == result
        assert files(folder) == files(tmp_path / "whole")


def test_a_teachers_reference_is_kept(run: Search, tmp_path: Path) -> None:
    run("whole", reference="teacher:20:300")
    whole = files(tmp_path / "whole")
    folder, progress = tmp_path / "whole", Counting()
    (folder / "study.jsonl").write_bytes(b"".join(whole[1].splitlines(keepends=True)[:3]))
    run("whole", reference="teacher:20:300", progress=progress)
    assert "teacher" not in progress.phases
    assert files(folder) == whole


LONG = {"population": 8, "generations": 12, "parents": 3, "mutations": 4, "crossovers": 2}


@pytest.mark.parametrize(
    ("lines", "given"),
    [(1, WIDE), (5, {"noise": "fresh", "budget": 20_000})],
    ids=["1 line, ladder", "5 lines, fresh noise, torn"],
)
def test_killed_it_goes_on_as_if_nothing_had_been(
    run: Search, tmp_path: Path, real_images: Path, lines: int, given: dict[str, Any]
) -> None:
    given = {"strategy_options": LONG, "samples": 100, **given}
    run("whole", **given)
    folder = tmp_path / "killed"
    kill_after(lines, folder, settings(real_images, **given))
    ledger = folder / "study.jsonl"
    left = ledger.read_bytes()
    assert left.count(b"\n") < (tmp_path / "whole" / "study.jsonl").read_bytes().count(b"\n") - 1
    assert not (folder / "plan.json").exists()
    if "noise" in given:
        ledger.write_bytes(left[:-30])
        with pytest.warns(UserWarning, match="the last line was cut off"):
            result = run("killed", **given)
    else:
        result = run("killed", **given)
    assert files(folder) == files(tmp_path / "whole")
    if given.get("strategy") != "ladder":
        assert_sound(result, folder, len(candidates(folder)), 3, samples=100)


def kill_after(lines: int, folder: Path, chosen: Settings) -> None:
    """Starts the search from the command line and kills it once its ledger holds so many scores."""
    config = folder.with_suffix(".yaml")
    config.write_text(chosen.dump())
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "autodiffusion",
            "search",
            "--config",
            str(config),
            "--threads",
            "1",
            "--out",
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ledger, deadline = folder / "study.jsonl", time.monotonic() + 120
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < lines + 1:  # the first line is no score
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
