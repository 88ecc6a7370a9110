"""Searches that leave out layers: what they may find, what they spend, say and keep, and what they refuse."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from conftest import Command
from rooms import SEARCH_LAYERS

from autodiffusion import InputError, Plan, RunError, Settings, Step, search
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._search.job import Job
from autodiffusion._search.loop import Result
from autodiffusion._search.several import search_several
from autodiffusion._spaces.costs import Costs, MaxCost, priced
from autodiffusion._spaces.layered import LayeredSpace
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.layers import _base, register
from autodiffusion.strategies._base import build
from autodiffusion.strategies.evolution import Evolution

FEW = {"population": 6, "generations": 5, "parents": 3, "mutations": 3, "crossovers": 2, "stage": 2}
LAYERS, WHOLE = len(small.WIDTHS), 32 * sum(small.WIDTHS) + 192
"""Of ``small:layered_model``: the layers, and the MACs of the whole network, 192 of them outside of layers."""
Search = Callable[..., Result]


def settings(images: Path, **given: Any) -> Settings:
    plain = {
        "model": "small:layered_model",
        "features": "small:features",
        "reference": str(images),
        "steps": 4,
        "layers": True,
        "samples": 24,
        "confirm_samples": 48,
        "strategy": "evolution",
        "strategy_options": FEW,
    }
    return Settings.of(**{**plain, **given})


def test_free_numbers_that_are_not_searched_with_layers_are_told(real_images: Path) -> None:
    with pytest.warns(UserWarning, match="free numbers of gls are not searched, only its time steps"):
        job = Job.of(settings(real_images, solver="gls", max_cost="60%"))
    assert not job.space.numbers


@pytest.fixture
def run(real_images: Path, tmp_path: Path, plain: None) -> Search:
    """Searches the small model with layers."""

    def searched(folder: str = "run", **given: Any) -> Result:
        return search(settings(real_images, **given), tmp_path / folder)

    return searched


def events(folder: Path, kind: str = "scores") -> list[dict[str, Any]]:
    lines = (folder / "study.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def scores(folder: Path) -> list[dict[str, Any]]:
    return [score for event in events(folder) for score in event["scores"]]


def evaluations(plan: dict[str, Any]) -> list[int]:
    """Of each step: PLMS asks twice in its first."""
    return [2 if i == 0 and plan["solver"] == "plms" else 1 for i in range(len(plan["steps"]))]


def cost(plan: dict[str, Any]) -> dict[str, int]:
    """Counted layer by layer."""
    kept = [
        (asked, layer)
        for asked, step in zip(evaluations(plan), plan["steps"], strict=True)
        for layer in range(LAYERS)
        if layer not in step["skip"]
    ]
    macs = sum(asked * 32 * small.WIDTHS[layer] for asked, layer in kept) + 192 * sum(evaluations(plan))
    return {"layers": sum(asked for asked, _ in kept), "macs": macs}


# the budget


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("60%", 60, None),
        (" 62.5 % ", 62.5, None),
        ("232 layers", 232, "layers"),
        ("1 layer", 1, "layers"),
        ("1.5 GMACs", 1.5e9, "macs"),
        ("300MMACs", 3e8, "macs"),
        ("2 kmacs", 2000, "macs"),
        ("19047424 MACs", 19047424, "macs"),
        (".5 TMACs", 5e11, "macs"),
        ("35 ms", 35, "ms"),
    ],
)
def test_budgets_are_read(text: str, amount: float, unit: str | None) -> None:
    assert MaxCost.parse(text, "x") == MaxCost(pytest.approx(amount), unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "60", "-5%", "0 layers", "0%", "5 seconds", "1e3 MACs", "nan ms", "9" * 400 + "%", f"1{'0' * 307} %"]
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(InputError, match=r"^search: max_cost '.*' is not a cost; give one such as 60%, 232 layers"):
        Settings.of("search", model="m", steps=4, layers=True, max_cost=text)


def test_costs_are_printed_for_people() -> None:
    assert priced({"layers": 1232, "macs": 1.234e9, "ms": 35.26}) == "1,232 layers, 1.23 GMACs, 35.3 ms"
    assert priced({"macs": 999_999, "ms": 12_345.6}) == "1,000 kMACs, 12,346 ms"
    assert [priced({"macs": macs}) for macs in (0, 7, 1472, 2e6)] == ["0 MACs", "7 MACs", "1.47 kMACs", "2 MMACs"]


@pytest.mark.parametrize(
    ("given", "budget", "whole", "steps"),
    [
        # the paper's: as many layers as 4 whole steps, up to 6 steps of them
        ({}, 4 * LAYERS, 4, (4, 6)),
        # 60 % of 5 steps are 3 whole ones; half as many again would be fewer than 5
        ({"steps": 5, "max_cost": "60%"}, 3 * WHOLE, 3, (3, 5)),
        ({"steps": 10, "max_cost": "90%"}, 9 * WHOLE, 9, (9, 14)),
        ({"max_cost": "7 layers"}, 7, 1, (1, 4)),
        ({"max_cost": "4 layers"}, 4, 1, (1, 4)),  # not even one whole step: the opponents have one all the same
        ({"max_cost": f"{5 * WHOLE} MACs"}, 5 * WHOLE, 5, (4, 8)),  # round(7.5), to even
        ({"max_cost": f"{5 * WHOLE - 1} MACs"}, 5 * WHOLE - 1, 4, (4, 7)),
        ({"min_steps": 2, "max_steps": 9}, 4 * LAYERS, 4, (2, 9)),
        # the first step of PLMS asks the network twice: 4 steps are 5 evaluations
        ({"solver": "plms"}, 5 * LAYERS, 4, (4, 6)),
        ({"solver": "plms", "max_cost": "80%"}, 4 * WHOLE, 3, (3, 5)),
        ({"gap": 25, "max_cost": "200%"}, 8 * WHOLE, 4, (4, 4)),  # no more than 4 steps fit
        ({"free_end": True, "gap": 24, "max_cost": "200%"}, 8 * WHOLE, 4, (4, 4)),
    ],
    ids=str,
)
def test_what_a_budget_allows(
    real_images: Path, given: dict[str, Any], budget: float, whole: int, steps: tuple[int, int]
) -> None:
    job = Job.of(settings(real_images, **given))
    assert job.layers is not None
    assert job.layers.budget == budget
    assert (job.layers.min_steps, job.layers.max_steps) == steps
    assert job.whole_steps == whole
    # what was left open is filled in, so that config.yaml says all
    assert (job.settings.min_steps, job.settings.max_steps) == steps
    assert job.settings.max_cost == given.get("max_cost", f"{budget} layers")
    assert Job.of(job.settings).settings == job.settings


# whole searches


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max_cost": "60%"},
        {"max_cost": "9 layers", "solver": "plms"},
        {"max_cost": f"{2 * WHOLE} MACs", "solver": "dpm_solver++", "noise": "fresh"},
        {"max_cost": "50%", "solver": "dpm_solver", "solver_options": {"order": 3, "method": "singlestep"}},
        {"preset": "paper", "finalists": 1, "max_cost": "75%"},
        {"metric": "kl", "max_cost": "75%", "teacher": 20},
        {"starts": [], "min_steps": 3, "max_cost": "40%"},
    ],
    ids=str,
)
def test_what_is_found_is_within_the_budget(run: Search, tmp_path: Path, given: dict[str, Any]) -> None:
    result = run(**given)
    job = Job.of(Settings.of(**json_settings(tmp_path / "run")))
    assert job.layers is not None
    unit, budget = job.layers.costs.unit, job.layers.budget
    rows = {row["name"]: row for row in result.rows}
    for row in rows.values():
        assert row["cost"] == cost(row["plan"])
        assert row["nfe"] == sum(evaluations(row["plan"]))
    assert rows["found"]["cost"][unit] <= budget
    assert result.plan == Plan.model_validate(rows["found"]["plan"])
    assert result.plan.origin["cost"] == rows["found"]["cost"]
    assert Plan.load(tmp_path / "run" / "plan.json").origin["cost"] == rows["found"]["cost"]
    # the opponents are whole, and one step more would be too much
    [uniform] = [row for name, row in rows.items() if name.startswith("uniform")]
    steps = len(uniform["plan"]["steps"])
    assert uniform["name"] == f"uniform ({steps} whole step{'s' * (steps > 1)})"
    assert not any(step["skip"] for step in uniform["plan"]["steps"])
    assert uniform["cost"][unit] <= budget or steps == 1
    assert budget < uniform["cost"][unit] + job.layers.costs.whole
    # every candidate says what it costs and whether it may be found
    for score in scores(tmp_path / "run"):
        assert score["cost"] == cost(score["plan"])
        steps = len(score["plan"]["steps"])
        fits = score["cost"][unit] <= budget and job.layers.min_steps <= steps <= job.layers.max_steps
        assert score["allowed"] == fits
    # what was spent, exactly
    spent = sum(event["evaluations"] + event["saved"] for event in events(tmp_path / "run"))
    if given.get("metric") != "kl":  # which shares time steps, not beginnings
        assert spent == 24 * sum(sum(evaluations(score["plan"])) for score in scores(tmp_path / "run"))


def json_settings(folder: Path) -> dict[str, Any]:
    from autodiffusion._study.settings import read_yaml

    return read_yaml(folder / "config.yaml")


def test_layers_that_do_nothing_go(run: Search, tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", arr_0=small.real(5000).permute(0, 2, 3, 1).numpy())
    # three steps for the price of one: layers 0, 2 and 4 do nothing, and are 61 % of all multiply-accumulates
    options = {"population": 20, "generations": 20, "stage": 2, "layer_share": 0.4, "mutations": 12, "crossovers": 4}
    given = {"reference": str(tmp_path / "many.npz"), "strategy_options": options}
    result = run(steps=3, max_cost="40%", samples=100, confirm_samples=1000, **given)
    rows = {row["name"]: row["scores"]["fid"] for row in result.rows}
    assert len(result.plan.steps) == 3
    assert not any(step.skip & {1, 3} for step in result.plan.steps)
    for name, score in rows.items():
        assert name == "found" or rows["found"]["high"] < 0.1 * score["low"]


def test_every_row_has_its_cost_without_a_search_of_layers(run: Search) -> None:
    result = run(layers=False, strategy_options=FEW | {"generations": 1})
    assert [row["cost"] for row in result.rows] == [cost(row["plan"]) for row in result.rows]
    assert result.rows[0]["name"] == "uniform"
    assert not any(row.get("cost") for row in run("other", model="small:model", layers=False).rows)


def test_a_rule_that_fails_stops_only_searches_with_layers(run: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "_registered", {})
    register(small.Shift, "shift", lambda module, x: x[:, :, 1:])
    result = run(layers=False, strategy_options=FEW | {"generations": 1})
    assert not any("cost" in row for row in result.rows)
    with pytest.raises(InputError, match=r"layer shifts.0: its bypass passes on \[1, 1, 3, 4\] where"):
        run("other")


@pytest.mark.parametrize("noise", ["common", "fresh"])
@pytest.mark.parametrize("budget", [97, 700, 1501])
def test_the_budget_of_the_search_is_used_and_never_exceeded(
    run: Search, tmp_path: Path, budget: int, noise: str
) -> None:
    spent = run(budget=budget, noise=noise, max_cost="150%", min_steps=2, starts=["uniform"]).search_cost.evaluations
    assert budget - 6 * 24 < spent <= budget  # no plan has more than 9 steps, and their beginnings are shared


@pytest.mark.parametrize("name", SEARCH_LAYERS)
def test_strategies_with_layers_are_searched_with(run: Search, tmp_path: Path, name: str) -> None:
    result = run(strategy=name, strategy_options={}, max_cost="60%", budget=2000)
    assert 0 < result.search_cost.evaluations <= 2000
    assert result.plan.origin["cost"]["macs"] <= 0.6 * 4 * WHOLE


# interrupted anywhere


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("plan.json", "study.jsonl", "config.yaml")]


@pytest.mark.parametrize("given", [{"max_cost": "60%", "budget": 2500}, {"noise": "fresh", "generations": 4}], ids=str)
def test_cut_off_anywhere_it_goes_on_as_if_nothing_had_been(run: Search, tmp_path: Path, given: dict[str, Any]) -> None:
    generations = given.pop("generations", 5)
    given["strategy_options"] = FEW | {"generations": generations}
    run("whole", **given)
    whole, ledger = tmp_path / "whole", (tmp_path / "whole" / "study.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(ledger) if byte == ord("\n")]
    for number, cut in enumerate([0, *ends[:: max(1, len(ends) // 5)]]):
        folder = tmp_path / f"cut {number}"
        shutil.copytree(whole, folder)
        (folder / "plan.json").unlink()
        (folder / "study.jsonl").write_bytes(ledger[:cut])
        run(folder.name, **given)
        assert files(folder) == files(whole)


# milliseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A machine on which each measurement takes twice as long as the one before; the list of what was measured."""
    measured: list[tuple[str, int]] = []

    def layer_times(model: Any, batch_size: int) -> Costs:
        measured.append((model.name, batch_size))
        return Costs("ms", 10.0 * 2 ** (len(measured) - 1), (2.0, 1.0, 1.0, 3.0, 0.0))

    monkeypatch.setattr("autodiffusion._evaluation.timing.layer_times", layer_times)
    return measured


def test_budgets_in_milliseconds(run: Search, tmp_path: Path, clock: list[tuple[str, int]]) -> None:
    result = run(max_cost="33 ms", batch_size=7)
    assert clock == [("layered", 7)]
    for row in result.rows:
        saved = sum((2.0, 1.0, 1.0, 3.0, 0.0)[layer] for step in row["plan"]["steps"] for layer in step["skip"])
        assert row["cost"] == {**cost(row["plan"]), "ms": 10.0 * len(row["plan"]["steps"]) - saved}
    assert result.plan.origin["cost"]["ms"] <= 33
    assert result.rows[0]["name"] == "uniform (3 whole steps)"
    # what was measured is kept: measured again on a busier machine, the search would be another
    before = files(tmp_path / "run")
    (tmp_path / "run" / "study.jsonl").write_bytes(b"".join(before[1].splitlines(keepends=True)[:3]))
    run(max_cost="33 ms", batch_size=7)
    assert len(clock) == 1
    assert files(tmp_path / "run") == before
    (tmp_path / "run" / "layer_times.json").write_text('{"whole": 10.0, "saved": [1, "x"]}')
    with pytest.raises(InputError, match=r"layer_times.json: is damaged; restore it or search into another folder$"):
        run(max_cost="33 ms", batch_size=7)


def test_several_searches_measure_once(
    run: Search, real_images: Path, tmp_path: Path, clock: list[tuple[str, int]]
) -> None:
    given = settings(real_images, max_cost="33 ms", starts=["uniform"]).model_dump()
    del given["steps"]
    results = search_several([4, 3], tmp_path / "both", **given)
    assert len(clock) == 1
    assert all(result.plan.origin["cost"]["ms"] <= 33 for result in results.values())
    search_several([4, 3], tmp_path / "both", **given)
    assert len(clock) == 1


# starts


def saved(path: Path, times: list[float], skips: list[set[int]]) -> str:
    steps = tuple(Step(t=t, skip=frozenset(skip)) for t, skip in zip(times, skips, strict=True))
    Plan(solver="ddim", steps=steps).save(path)
    return str(path)


def test_plans_to_begin_with_keep_their_layers(real_images: Path, tmp_path: Path) -> None:
    own = saved(tmp_path / "own.json", [90, 50, 10], [{0}, {2, 4}, set()])
    dear = saved(tmp_path / "dear.json", [90, 60, 40, 20], [{0}, set(), set(), set()])
    plain = saved(tmp_path / "plain.json", [90, 50, 10], [set()] * 3)
    short = saved(tmp_path / "short.json", [70], [{1, 2}])
    job = Job.of(settings(real_images, max_cost="60%", starts=["uniform", own, dear, plain, short]))
    assert job.layers is not None
    starts = job.starts
    assert starts[own].steps == Plan.load(own).steps
    assert job.layers.contains(starts[dear])  # further layers left
    assert starts[dear].steps[0].skip >= {0}
    assert starts[dear].times == (90, 60, 40, 20)
    assert len(starts[plain].steps) == 4
    assert not job.allows(starts[plain])  # whole plans are for the first stage
    assert job.layers.contains(starts[short])
    assert any(step.skip >= {1, 2} for step in starts[short].steps)
    # and the named grids at as many whole steps as the budget pays for
    assert starts["uniform:2"] == job.layers.spaces[2].named("uniform", job.evaluator.model.schedule)
    again = Job.of(settings(real_images, max_cost="60%", starts=["uniform", own, dear, plain, short]))
    assert again.starts == starts


# evolution in two stages

SCHEDULE = NoiseSchedule.linear(1000)


def room(steps: int, budget: float, least: int, most: int, count: int = 20) -> LayeredSpace:
    spaces = {n: SearchSpace.of(SCHEDULE, n, "ddim") for n in range(1, max(most, steps) + 1)}
    return LayeredSpace(spaces, least, most, Costs.layers(count), budget)


def generations(layers: LayeredSpace, steps: int, loss: Callable[[Plan], float], **options: Any) -> list[list[Plan]]:
    """What each generation of the paper's settings holds, of so many plans."""
    space = layers.spaces[steps]
    chosen = {"generations": 15, "population": 30, "mutations": 15, "crossovers": 6, **options}
    strategy = build("evolution", space, [space.named("uniform", SCHEDULE)], 0, chosen, layers)
    found = []
    while plans := strategy.ask():
        found.append(plans)
        strategy.tell([(plan, loss(plan)) for plan in plans])
    return found


def better_each_time() -> Callable[[Plan], float]:
    count = itertools.count()
    return lambda plan: -float(next(count))


def lost(plans: list[Plan]) -> int:
    return max(len(step.skip) for plan in plans for step in plan.steps)


@pytest.mark.parametrize(("budget", "needed"), [(80, 0), (79, 1), (60, 5), (50, 8), (1, 20)])
def test_two_stages(budget: int, needed: int) -> None:
    layers = room(4, budget, 1 if budget < 80 else 4, 6)
    found = generations(layers, 4, better_each_time(), layer_share=0.25)
    assert len(found) == 15
    for plans in found[:5]:
        assert all(layers.spaces[4].contains(plan) for plan in plans)  # the whole network
    # a fifth of 25 % of 20 layers more in each generation, from what 4 steps lose on average within the budget
    for number, plans in enumerate(found[5:]):
        most = min(20, needed + min(5, number + 1))
        assert all(layers.contains(plan) for plan in plans)
        assert lost(plans) == most
    kept = 20 - min(20, needed + 5)
    assert {len(plan.steps) for plans in found[5:] for plan in plans} == {
        n for n in layers.counts if n * kept <= budget
    }


def test_the_first_stage_ends_when_the_best_plan_stays() -> None:
    values = itertools.chain([5.0] * 30, [4.0], itertools.repeat(6.0))  # a better one in the second, none in the third
    found = generations(room(4, 80, 4, 6), 4, lambda plan: next(values), layer_share=0.25)
    assert [lost(plans) for plans in found[:10]] == [0, 0, 0, 1, 2, 3, 4, 5, 5, 5]


def test_parents_are_within_the_budget_where_there_are_any() -> None:
    layers = room(4, 60, 2, 6)
    space = layers.spaces[4]
    strategy = Evolution(space, [], 0, layers, population=8, generations=9, parents=4, stage=2)
    for _ in range(2):  # whole plans, better than all that follow
        strategy.tell([(plan, 0.0) for plan in strategy.ask()])
    first = strategy.ask()
    assert all(layers.contains(plan) for plan in first)  # children of repaired parents
    strategy.tell([(plan, 1.0 + i) for i, plan in enumerate(first)])
    assert strategy.best() == first[:4]
    assert strategy.second == 2


def test_the_limit_counts_evaluations() -> None:
    layers = room(4, 80, 2, 8)
    for limit in (1, 2.5, 7, 20):
        strategy = Evolution(layers.spaces[4], [], 0, layers, stage=1, generations=3, population=40)
        strategy.tell([(plan, 1.0) for plan in strategy.ask()])
        strategy.tell([(plan, 1.0) for plan in strategy.ask()])
        all_of_them = Evolution(layers.spaces[4], [], 0, layers, stage=1, generations=3, population=40)
        for _ in range(2):
            all_of_them.tell([(plan, 1.0) for plan in all_of_them.ask()])
        plans, further = strategy.ask(limit), all_of_them.ask()
        spent = sum(len(plan.steps) for plan in plans)
        assert plans == further[: len(plans)]
        assert spent <= 4 * limit < spent + len(further[len(plans)].steps)


def test_replaying_gives_the_same_search() -> None:
    layers = room(4, 60, 2, 6)

    def distance(plan: Plan) -> float:
        return float(sum(plan.times)) + sum(len(step.skip) for step in plan.steps)

    few = {"generations": 9, "population": 12, "mutations": 6, "crossovers": 3}
    whole = generations(layers, 4, distance, **few)
    space = layers.spaces[4]
    resumed = build("evolution", space, [space.named("uniform", SCHEDULE)], 0, few, layers)
    for plans in whole:
        assert resumed.ask() == plans
        resumed.tell([(plan, distance(plan)) for plan in plans])
    assert resumed.ask() == []


# presets and what is refused


def test_presets_with_layers() -> None:
    paper = Settings.of(model="mnist", steps=4, preset="paper", layers=True)
    assert (paper.strategy, paper.samples) == ("evolution", 1000)
    assert paper.strategy_options == {"generations": 15, "crossovers": 10}  # the others are the strategy's own
    own = Settings.of(model="mnist", steps=4, preset="paper", layers=True, strategy_options={"crossovers": 3})
    assert own.strategy_options == {"generations": 15, "crossovers": 3}
    default = Settings.of(model="mnist", steps=4, layers=True)
    assert default.strategy == "prune"
    again = Settings.of(**default.model_dump())
    assert again == default


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"layers": False, "max_cost": "60%"},
            "settings: max_cost is for a search that leaves out layers; give layers (--layers) too",
        ),
        ({"layers": False, "min_steps": 3}, "settings: min_steps is for a search that leaves out layers; give layers"),
        ({"layers": False, "max_steps": 5}, "settings: max_steps is for a search that leaves out layers; give layers"),
        ({"max_cost": 60}, "settings: max_cost: 60 should be a valid string"),
        ({"max_cost": "cheap"}, "settings: max_cost 'cheap' is not a cost; give one such as 60%, 232 layers"),
        ({"min_steps": 5}, "settings: min_steps = 5 is above steps = 4; give at most that"),
        ({"max_steps": 3}, "settings: max_steps = 3 is below steps = 4; give at least that"),
        ({"max_steps": 101}, "steps = 101 do not fit: "),
        ({"max_steps": 10**15}, "steps = 1000000000000000 do not fit: "),
        (
            {"model": "small:model"},
            "network of small is a function; name the torch module that it calls (Model(..., module=...))",
        ),
        (
            {"max_cost": "100 MACs"},
            "max_cost = 100 MACs: budget = 100 macs is below the cheapest plan: 1 steps that keep 0 of 5 layers cost "
            "192",
        ),
        (
            {"max_cost": "10%", "min_steps": 4},
            "max_cost = 10%: budget = 588.8 macs is below the cheapest plan: 4 steps that keep 0 of 5 layers cost 768",
        ),
        (
            {"strategy": "random", "strategy_options": {}},
            "strategy random does not leave out layers; give one that does: evolution, prune",
        ),
        ({"strategy": "optuna:TPESampler", "strategy_options": {}}, "strategy optuna:TPESampler does not leave out"),
        ({"strategy": "prune", "strategy_options": {}, "layers": False}, "strategy prune: searches which layers"),
        ({"strategy_options": {"layers": 3}}, "strategy evolution: option 'layers' is unknown (did you mean"),
        ({"strategy_options": {"stage": 0}}, "strategy evolution: stage = 0 must be at least 1"),
        ({"strategy_options": {"layer_share": 1.5}}, "strategy evolution: layer_share = 1.5 lies outside 0 to 1"),
        ({"starts": ["LAYER 7"]}, "layer 7 does not exist; layered has layers 0 to 4"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_said_before_anything_is_written(
    run: Search, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    if "starts" in given:
        plan = saved(tmp_path / "plan.json", [50, 20], [{7}, set()])
        given, message = {"starts": [plan]}, f"{plan}: {message}"
    with pytest.raises(InputError) as caught:
        run(**given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_search_too_short_for_the_second_stage(run: Search) -> None:
    with pytest.raises(RunError, match=r"^no candidate scored costs at most 60%; give the search a larger budget$"):
        run(max_cost="60%", min_steps=3, starts=[], strategy_options=FEW | {"generations": 1})


# what is said


def test_the_command_says_what_is_left_out_and_what_it_costs(command: Command, real_images: Path) -> None:
    options = " ".join(f"--strategy-option {name}={value}" for name, value in FEW.items())
    common = f"search --model small:layered_model --features small:features --reference {real_images} --steps 4"
    line = common.replace("--model ", "") + f" --samples 24 --confirm-samples 48 --strategy evolution {options}"
    status, out, _ = command(f"{line} --layers --max-cost 60% --out run --min-steps 3")
    assert status == 0
    plan = json.loads(Path("run/plan.json").read_text())
    found = cost(plan)
    assert plan["origin"]["cost"] == found
    assert any(step["skip"] for step in plan["steps"])  # three whole steps would be too much
    assert f"{found['layers']} layers, {found['macs'] / 1000:.3g} kMACs" in out
    html = Path("run/report.html").read_text()
    assert '<th scope="col">cost of a sample</th>' in html
    assert f"<td>{found['layers']} layers, {found['macs'] / 1000:.3g} kMACs</td>" in html
    for step in plan["steps"]:
        names = ", ".join(f"{layer} (shifts.{layer})" for layer in step["skip"]) or "none"
        assert f"<td>{step['t']}</td><td>{LAYERS - len(step['skip'])} of {LAYERS}</td><td>{names}</td>" in html
    status, out, err = command(f"{line} --max-cost 60% --out other")
    assert (status, out) == (2, "")
    assert err == "autodiffusion: search: max_cost is for a search that leaves out layers; give layers (--layers) too\n"
    assert not Path("other").exists()


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_plans_for_another_network_are_refused(command: Command, real_images: Path, tmp_path: Path, verb: str) -> None:
    plan = saved(tmp_path / "plan.json", [50, 20], [{7}, set()])
    more = "--out grid.png" if verb == "sample" else f"--features small:features --reference {real_images}"
    for model, reason in (
        ("layered_model", "layer 7 does not exist; layered has layers 0 to 4"),
        ("model", "network of small is a function; name the torch module that it calls"),
    ):
        status, out, err = command(f"{verb} {plan} --model small:{model} {more}")
        assert (status, out) == (2, "")
        assert reason in err
        assert err.count("\n") == 1
        assert not Path("grid.png").exists()
