"""The second feature network and the table that it is made for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frechet import frechet_distance
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from autodiffusion import Plan, load_model
from autodiffusion._evaluation.confirm import confirm
from autodiffusion._evaluation.evaluate import Evaluator
from autodiffusion._references import reference
from autodiffusion._references.reference import Reference
from autodiffusion.features import Extractor, Features
from autodiffusion.features._base import load
from autodiffusion.metrics.fid import FID
from bench import second_features, second_opinion

SAMPLES = 24
TIMES = {"few": [900.0, 500.0], "fewer": [900.0]}


@pytest.fixture(scope="module")
def second() -> Extractor:
    return load(second_features.NAME)


@pytest.fixture(scope="module")
def real(second: Extractor) -> Reference:
    return reference.load(second_features.REFERENCE, second)


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Real images: those of the bundled reference."""
    model = load_model("mnist")
    assert model.reference is not None
    images = reference.load(model.reference, load(model.features)).images
    assert images is not None
    return images


# the second network


def test_features_are_the_same_again_and_in_any_batch(second: Extractor, digits: torch.Tensor) -> None:
    whole = second(digits[:50])
    again = load(second_features.NAME)(digits[:50])
    apart = Features.cat([second(digits[i : i + 1]) for i in range(50)])
    assert whole.logits is not None
    assert apart.logits is not None
    assert torch.equal(whole.vectors, again.vectors)
    assert torch.allclose(whole.vectors, apart.vectors, atol=1e-5)
    assert torch.allclose(whole.logits, apart.logits, atol=1e-4)


def test_it_is_another_network_that_reads_the_same_digits(second: Extractor, digits: torch.Tensor) -> None:
    theirs, ours = load("mnist")(digits), second(digits)
    assert theirs.logits is not None
    assert ours.logits is not None
    assert (theirs.logits.argmax(1) == ours.logits.argmax(1)).float().mean() > 0.98
    assert theirs.vectors.shape[1] != ours.vectors.shape[1] == second_features.SecondClassifier.dimension
    assert sum(path.stat().st_size for path in (second_features.WEIGHTS, second_features.REFERENCE)) < 1_000_000


def test_the_reference_is_of_real_digits(second: Extractor, real: Reference, digits: torch.Tensor) -> None:
    assert real.vectors is not None
    assert frechet_distance(real.mu, real.sigma, real.mu, real.sigma) == pytest.approx(0, abs=1e-6)
    fid, spread = FID(real), float(np.trace(real.sigma))
    assert fid.value(Features(real.vectors)) < 0.01 * spread
    # other features of real images are near, those of other images are not
    assert fid.value(second(digits)) < 0.02 * spread
    assert fid.value(second(255 - digits)) > 0.5 * spread
    # MNIST's labels, written down in the benchmark, against what the network reads
    with torch.inference_mode():
        read = Features(real.vectors, second.module.get_submodule("head")(real.vectors))
    assert second_opinion.distance(second_opinion.drawn(read)) < 0.03


# shares of classes


def features_of(counts: list[int]) -> Features:
    classes = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    return Features(torch.zeros(len(classes), 1), torch.nn.functional.one_hot(classes, 10).float())


def test_shares_of_classes(real: Reference) -> None:
    far, least = second_opinion.ClassDistance(real), second_opinion.LeastClass(real)
    like_real = features_of(second_opinion.COUNTS.tolist())
    assert far.value(like_real) == pytest.approx(0, abs=1e-12)
    assert least.value(like_real) == pytest.approx(5421 / 60000)
    no_fives = features_of([c if digit != 5 else 0 for digit, c in enumerate(second_opinion.COUNTS.tolist())])
    assert far.value(no_fives) == pytest.approx(5421 / 60000)  # all that is missing is too much elsewhere
    assert least.value(no_fives) == 0
    assert far.value(features_of([100] + [0] * 9)) == pytest.approx(1 - 5923 / 60000)


# the table


def run(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The reduced table: two plans, two short grids; its rows."""
    files = {name: folder / f"{name}.json" for name in TIMES}
    for name, file in files.items():
        Plan.of("ddim", TIMES[name]).save(file)
    plans = ",".join(f"{name}={file}" for name, file in files.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_opinion, "GRIDS", ("uniform:2", "uniform:5"))
        patch.setattr(second_opinion, "BASE", "uniform:5")
        second_opinion.main(["--plans", plans, "--samples", str(SAMPLES), "--out", str(folder / "out"), *options])
    rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
    return rows


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("second")
    return folder, run(folder)


def test_rows_are_what_evaluate_says(done: tuple[Path, list[dict[str, Any]]], real: Reference) -> None:
    _, rows = done
    assert [row["name"] for row in rows] == ["uniform:2", "uniform:5", "few", "fewer"]
    model = load_model("mnist")
    assert model.reference is not None
    first = load(model.features)
    few = {"few": Plan.of("ddim", TIMES["few"])}
    names = ["fid", "kid", "precision", "recall"]
    [row] = confirm(Evaluator(model, first), reference.load(model.reference, first), few, names, SAMPLES, 1)
    [other] = confirm(Evaluator(model, load(second_features.NAME)), real, few, ["fid"], SAMPLES, 1)
    for key, score in (*row.scores.items(), ("second_fid", other.scores["fid"])):
        made = rows[2]["scores"][key]
        assert made["value"] == pytest.approx(score.value, rel=1e-4, abs=1e-6)
        assert made["low"] <= made["value"] <= made["high"]
    assert rows[2]["nfe"] == 2
    assert sum(rows[2]["classes"]) == pytest.approx(1)
    assert rows[2]["scores"]["least_class"]["value"] == min(rows[2]["classes"])


def test_the_table_says_what_the_rows_say(done: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = done
    text = (folder / "out.md").read_text()
    head, *lines = [line for line in text.splitlines() if line.startswith("| ")]
    width = head.count("|")
    assert [line.split(" | ")[0][2:] for line in lines[1:6]] == [
        *(row["name"] for row in rows),
        "the classes asked for",
    ]
    assert all(line.count("|") == width for line in lines[:6])
    few = next(line for line in lines if line.startswith("| few "))
    assert few.split(" | ")[2] == second_opinion.figure(rows[2]["scores"]["fid"])
    assert Image.open(folder / "out.png").size[0] > 1000


def test_nothing_is_made_twice_but_what_changed(
    done: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = done
    monkeypatch.setattr(second_opinion, "picture", lambda *_: None)
    before = (folder / "out.json").stat().st_mtime_ns
    assert run(folder) == rows
    assert (folder / "out.json").stat().st_mtime_ns == before
    made: list[str] = []

    def counted(name: str, plan: Plan, *_: object) -> dict[str, Any]:
        made.append(name)
        return rows[3] | {"plan": plan.model_dump(mode="json")}

    monkeypatch.setattr(second_opinion, "row_of", counted)
    monkeypatch.setitem(TIMES, "fewer", [901.0])
    changed = run(folder)
    assert made == ["fewer"]
    assert [row["name"] for row in changed] == [row["name"] for row in rows]
    assert changed[3]["plan"]["steps"][0]["t"] == 901


def test_a_verdict_names_what_is_worse() -> None:
    def row(name: str, **scores: tuple[float, float, float]) -> dict[str, Any]:
        plain = dict.fromkeys(second_opinion.FIGURES, (0.5, 0.4, 0.6)) | scores
        values = {key: dict(zip(("value", "low", "high"), three, strict=True)) for key, three in plain.items()}
        return {"name": name, "scores": values}

    base = row(second_opinion.BASE)
    assert second_opinion.verdict(row("same"), [base]).endswith("in nothing; within them in nothing.")
    # lower is worse for recall and better for the FIDs; 0.15 and 0.13 lie on both sides of sqrt(0.1^2 + 0.1^2)
    mixed = row(
        "mixed", recall=(0.35, 0.1, 0.45), fid=(0.2, 0.1, 0.3), kid=(0.63, 0.53, 0.9), precision=(0.8, 0.7, 0.9)
    )
    said = second_opinion.verdict(mixed, [base])
    beyond, within = said.split("; within")
    assert "recall (0.35 [0.1, 0.45]; 0.5 [0.4, 0.6])" in beyond
    assert "KID (0.63 [0.53, 0.9]; 0.5 [0.4, 0.6])" in within
    assert not any(word in said for word in ("FID (", "precision"))
    worse_kid = second_opinion.verdict(row("kid", kid=(0.65, 0.55, 0.9)), [base])
    assert "KID" in worse_kid.split("; within")[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--plans", "mine"], "--plans: 'mine' is not name=plan.json with a name of its own"),
        (["--plans", "a=uniform:2,a=uniform:3"], "--plans: 'a=uniform:3' is not name=plan.json with a name of its own"),
        (["--plans", "a=none.json"], "--plans: none.json: cannot be read"),
        (["--samples", "0"], "--samples: give 4 or more"),
    ],
)
def test_what_cannot_be_used_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    with pytest.raises(SystemExit):
        second_opinion.main([*given, "--out", str(tmp_path / "out")])
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
