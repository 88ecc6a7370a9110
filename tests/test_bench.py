"""The comparison of searches: its reduced form end to end, and its table on made-up runs whose answer is known."""

from __future__ import annotations

import importlib
import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from conftest import draw_nothing
from filelock import FileLock
from PIL import Image

from autodiffusion import Plan, load_model, sample
from autodiffusion._evaluation.evaluate import derive_seed
from autodiffusion._study.study import read_events

sys.path.insert(0, str(Path(__file__).parents[1]))
compare = importlib.import_module("bench.compare")
best = importlib.import_module("bench._best")
curves = importlib.import_module("bench._curves")
models = importlib.import_module("bench.models")

METHODS = ("paper", "common", "random", "default")
ROW = "mixture-ddim-4"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reduced comparison, run once; the working directory is where it keeps its references."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(models, "REAL", 4000)
        draw_nothing(patch)
        compare.main(["--reduced", "--runs", "runs"])
        yield folder


def results(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "runs/results").glob("*.json"))}


def cells(text: str, start: str) -> list[list[str]]:
    """The cells of the lines of a table that begin with ``start``."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[2:].startswith(start)
    ]


# the reduced form


def test_curves_are_what_the_ledgers_say(done: Path) -> None:
    for method in METHODS:
        kept = results(done)[f"{ROW}-{method}-0"]
        evaluations, times, ends, scores, fids = zip(*kept["curve"], strict=True)
        assert list(evaluations) == sorted(set(evaluations))
        if method != "default":  # whose first looks are estimates
            assert list(scores) == sorted(set(scores), reverse=True)
        assert all(len(t) == 4 for t in times)
        assert set(ends) == {None}
        assert all(0 < fid < 10 for fid in fids)
        events = [e for e in read_events(done / f"runs/{ROW}-{method}-0/study.jsonl") if e["event"] == "scores"]
        assert evaluations[-1] <= kept["evaluations"] == sum(e["evaluations"] for e in events)
        full = [score for e in events if e["samples"] == kept["samples"] for score in e["scores"]]
        best = min(full, key=lambda score: score["value"])
        assert scores[-1] == pytest.approx(best["value"], abs=1e-5)
        assert list(times[-1]) == [step["t"] for step in best["plan"]["steps"]]


def test_figures_are_on_fresh_noise(done: Path) -> None:
    """Sampled one plan at a time, and the FID by a general matrix root."""
    reference = np.load(done / "runs/references/mixture.npz", allow_pickle=False)
    for name in ("paper", "default"):
        kept = results(done)[f"{ROW}-{name}-0"]
        plan = Plan.of("ddim", kept["curve"][-1][1], solver_options=kept["solver_options"])
        images = sample(load_model("bench.models:mixture"), plan, kept["fresh_samples"], derive_seed(0, "confirm"))
        vectors = models.Projection()(images.float() / 127.5 - 1).double().numpy()
        mean, covariance = vectors.mean(0), np.cov(vectors, rowvar=False)
        root = scipy.linalg.sqrtm(covariance @ reference["sigma"]).real
        fid = np.sum((mean - reference["mu"]) ** 2) + np.trace(covariance + reference["sigma"] - 2 * root)
        assert kept["curve"][-1][-1] == pytest.approx(fid, abs=2e-3)


def test_nothing_is_run_twice(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((done / "runs/results").iterdir())
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]

    def never(*_: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(compare, "search", never)
    monkeypatch.setattr(compare, "judge", never)
    compare.main(["--reduced", "--runs", "runs"])
    compare.main(["--reduced", "--runs", "runs", "--table-only"])
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before


def test_results_are_small_and_whole(done: Path) -> None:
    assert set(results(done)) == {f"{ROW}-grids", *(f"{ROW}-{method}-0" for method in METHODS)}
    assert all(path.stat().st_size < 3000 for path in (done / "runs/results").iterdir())
    assert not list((done / "runs/results").glob("*.partial"))
    assert Image.open(done / "runs/compare.png").size[0] > 200


def test_the_table_says_what_the_files_say(done: Path) -> None:
    kept = results(done)
    grids = kept[f"{ROW}-grids"]["fid"]
    first, second = cells((done / "runs/results.md").read_text(), "mixture | ddim | 4 |")
    best = min(grids, key=grids.__getitem__)
    assert first[3:5] == [f"{grids['uniform']:.4g}", f"{grids[best]:.4g} ({best})"]
    for method, cell in zip(METHODS, first[5:], strict=True):
        run = kept[f"{ROW}-{method}-0"]
        fid = f"{run['curve'][-1][-1]:.4g}"
        assert cell == f"{fid} [{fid}, {fid}], {run['evaluations'] / 1000:,.0f}k"
    default = kept[f"{ROW}-default-0"]["curve"]
    for opponent, cell in (("paper", second[3]), ("common", second[6])):
        run = kept[f"{ROW}-{opponent}-0"]
        soon = [spent for spent, *_, fid in default if fid <= run["curve"][-1][-1]]
        expected = (
            f"{soon[0] / 1000:,.1f}k = {curves.short(100 * soon[0] / run['evaluations'])} %"
            if soon
            else "never (0 of 1 seeds)"
        )
        assert cell == expected
    assert second[5].startswith("yes") == (default[-1][-1] < kept[f"{ROW}-paper-0"]["curve"][-1][-1])


def test_finished_studies_are_imported(done: Path) -> None:
    compare.main(["--reduced", "--runs", "other", "--import-runs", "runs", "--methods", "paper"])
    imported = done / f"other/results/{ROW}-paper-0.json"
    assert imported.read_bytes() == (done / f"runs/results/{ROW}-paper-0.json").read_bytes()
    with pytest.raises(SystemExit, match="noise is fresh, and common in this benchmark"):
        compare.result(compare.Job("mixture", "ddim", 4, "common", reduced=True), done / f"runs/{ROW}-paper-0")


def test_what_another_process_does_is_left_to_it(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "search", lambda *_: pytest.fail("begun"))
    job = compare.Job("mixture", "ddim", 4, "paper", seed=7, reduced=True)
    args = Namespace(runs=done / "runs", import_runs=None)
    with FileLock(done / f"runs/{job.name}.lock"):
        compare.work(job, args, done / "none.json")
    assert "left to the process" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception, match="begun"):
        compare.work(job, args, done / "none.json")


def test_again_drops_what_was_selected(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(compare, "work", lambda job, *_: begun.append(job.name))
    for name in ("paper", "common"):
        path = done / f"third/results/{ROW}-{name}-0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((done / f"runs/results/{ROW}-{name}-0.json").read_bytes())
    compare.main(["--reduced", "--runs", "third", "--again", "--methods", "common"])
    assert begun == [f"{ROW}-grids", f"{ROW}-common-0"]
    assert [path.stem for path in (done / "third/results").glob("*.json")] == [f"{ROW}-paper-0"]


@pytest.mark.parametrize("options", [["--models", "mixtur"], ["--steps", "5"], ["--again", "--table-only"]])
def test_unknown_selections_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(options)
    assert "error: " in capsys.readouterr().err


# curves


def event(evaluations: int, samples: int, *values: float | None) -> dict[str, Any]:
    plans = (Plan.of("ddim", [900 - evaluations / 10, i]).model_dump(mode="json") for i in range(len(values)))
    scores = [{"plan": plan, "value": value} for plan, value in zip(plans, values, strict=True)]
    return {"event": "scores", "evaluations": evaluations, "samples": samples, "scores": scores}


def test_more_samples_come_before_lower_scores_and_all_cost() -> None:
    events = [
        {"event": "start"},
        event(100, 50, 1.0, 2.0),
        event(150, 50, 0.9),
        event(200, 100, None, 9.0, 8.0),
        event(300, 50, 0.5),
        event(350, 100, 0.1) | {"anchor": "a plan"},
        event(400, 100, 8.0),
        event(500, 100, 7.0, 6.0, 6.5),
        event(600, 100, None),
    ]
    found = best.improvements(events)
    assert [(point.evaluations, point.score) for point in found] == [(100, 1.0), (250, 0.9), (450, 8.0), (2000, 6.0)]
    assert [point.plan.times for point in found] == [(890, 0), (885, 0), (880, 2), (850, 1)]


def test_thinning_keeps_the_ends_and_spreads_the_rest() -> None:
    plan = Plan.of("ddim", [1])
    points = [best.Best(n, plan, -n) for n in range(1, 1001)]
    thinned = [point.evaluations for point in best.thin(points, 4)]
    assert thinned == [1, 10, 100, 1000]
    assert best.thin(points[:4], 4) == points[:4]
    crowded = [best.Best(n, plan, -n) for n in (1, *range(990, 1001))]
    assert {1, 1000} <= {point.evaluations for point in best.thin(crowded, 4)}


def run(*curve: tuple[int, float], seed: int = 0, evaluations: int = 10_000) -> Any:
    return curves.Run(seed, 100, 1000, 500, evaluations, curve)


def test_the_middle_curve_is_the_median_at_each_place() -> None:
    runs = [run((1, 9.0), (50, 4.0)), run((10, 8.0), (60, 1.0)), run((5, 7.0), (20, 6.0), evaluations=400)]
    places, fids = curves.middle(runs)
    assert (places[0], places[-1]) == (10, 10_000)
    for place, fid in zip(places, fids, strict=True):
        at = [[value for spent, value in one.curve if spent <= place][-1] for one in runs]
        assert fid == sorted(at)[1]


# the table on made-up runs


def made(default: list[Any], paper: list[Any], common: list[Any]) -> dict[Any, Any]:
    runs = {"paper": paper, "common": common, "random": [], "default": default}
    return {curves.Row("bundled", "ddim", 4): curves.Kept({"uniform": 60.0, "beta": 30.0}, runs)}


PAPER = [run((10, 50.0), (9000, final), seed=seed) for seed, final in enumerate((19.0, 20.0, 30.0))]
COMMON = [run((10, 50.0), (9000, final), seed=seed) for seed, final in enumerate((9.0, 10.0, 11.0))]


def test_a_default_that_holds() -> None:
    default = [
        run((150, 20.0), (600, 9.5), seed=0),
        run((200, 19.0), (500, 8.0), seed=1),
        run((900, 40.0), seed=2),
    ]
    text = curves.table(made(default, PAPER, COMMON))
    first, second = cells(text, "bundled | ddim | 4 |")
    assert first[3:] == [
        "60",
        "30 (beta)",
        "20 [19, 30], 10k",
        "10 [9, 11], 10k",
        "not run",
        "9.5 [8, 40], 10k",
    ]
    # 150, 200 and never: in the middle 200 of 10,000; likewise 500, 600 and never
    assert second[3:] == ["0.2k = 2 %", "yes", "yes, 52 % lower", "0.6k = 6 %", "yes"]
    assert text.count("in 1 of the 1 rows") == 2


def test_a_default_that_does_not() -> None:
    default = [run((10, 60.0), (400, 19.0), (900, 21.0), seed=seed) for seed in range(3)]
    text = curves.table(made(default, PAPER, COMMON))
    _, second = cells(text, "bundled | ddim | 4 |")
    assert second[3:] == [
        "0.4k = 4 %",
        "**no**: 2 times that",
        "**no**, 5 % higher",
        "never (0 of 3 seeds)",
        "**no**: never",
    ]
    assert text.count("in 0 of the 1 rows") == 2


@pytest.mark.parametrize(
    ("value", "text"), [(0.0312, "0.031"), (1.96, "2"), (45.4, "45"), (99.6, "100"), (1234, "1,234")]
)
def test_shares_are_short(value: float, text: str) -> None:
    assert curves.short(value) == text


def test_quick_and_worse_in_the_end_does_not_hold() -> None:
    default = [run((100, 19.0), (900, 21.0), seed=seed) for seed in range(3)]
    one = next(iter(made(default, PAPER, COMMON).values()))
    assert curves.share(one, "paper") == 1
    assert not curves.holds(one, "paper")


def test_what_is_not_run_says_so(tmp_path: Path) -> None:
    kept = curves.read(tmp_path, [curves.Row("bundled", "ddim", 4)])
    text = curves.table(kept)
    assert [row[3:] for row in cells(text, "bundled | ddim | 4 |")] == [["not run"] * 6, ["not run"] * 5]
    assert "in 0 of the 0 rows" in text
    curves.draw(kept, tmp_path / "plot.png")
    fewer = curves.table(made(PAPER[:1], PAPER, COMMON))
    assert cells(fewer, "bundled | ddim | 4 |")[0][-1] == "19 [19, 19], 10k, 1 seed"


def test_figures_of_different_counts_are_not_put_together(tmp_path: Path) -> None:
    content = {
        "seed": 0,
        "samples": 9,
        "fresh_samples": 100,
        "candidates": 5,
        "evaluations": 9,
        "curve": [[1, [5], None, 3, None]],
    }
    (tmp_path / "bundled-ddim-4-paper-0.json").write_text(json.dumps(content))
    [kept] = curves.read(tmp_path, [curves.Row("bundled", "ddim", 4)]).values()
    assert kept.final("paper") == math.inf
    (tmp_path / "bundled-ddim-4-paper-1.json").write_text(json.dumps(content | {"fresh_samples": 200}))
    with pytest.raises(SystemExit, match="fresh_samples differ"):
        curves.read(tmp_path, [curves.Row("bundled", "ddim", 4)])
