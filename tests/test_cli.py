"""The command line: exit statuses, what goes to which stream, and one line for everything that cannot be used."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command, Done
from PIL import Image
from pydantic import BaseModel, field_serializer
from typer.main import get_command

from autodiffusion import Plan, Settings
from autodiffusion import _cli as cli
from autodiffusion._cli._help import GROUPS
from autodiffusion._references.reference import load as load_reference
from autodiffusion._study.settings import read_yaml

TESTS = Path(__file__).parent
FEW = (
    "--samples 24 --confirm-samples 60 --strategy evolution --population 6 --generations 3 --parents 3 --mutations 3 "
    "--crossovers 1"
)


@pytest.fixture
def on_small(real_images: Path) -> str:
    """The small model and its reference."""
    return f"--model small:model --reference {real_images}"


# done


def test_a_search_prints_a_table_and_where_things_are(command: Command, real_images: Path, tmp_path: Path) -> None:
    done = command(f"search small:model --steps 3 --reference {real_images} {FEW} --out run")
    assert done.status == 0
    assert done.err == ""
    assert "60 samples on fresh noise, seed 0, 95 % intervals" in done.out
    for word in ("uniform", "found", "fid", "ddim at"):
        assert word in done.out
    names = ("config.yaml", "study.jsonl", "plan.json", "grid.png", "report.html")
    assert all((tmp_path / "run" / name).stat().st_size > 0 for name in names)
    assert done.out.splitlines()[-1].split() == ["run/plan.json", "run/grid.png", "run/report.html"]
    # run again, it is there already
    ledger = (tmp_path / "run" / "study.jsonl").read_bytes()
    again = command(f"search small:model --steps 3 --reference {real_images} {FEW} --out run --batch-size 7")
    assert (again.status, again.out) == (0, done.out)
    assert (tmp_path / "run" / "study.jsonl").read_bytes() == ledger


def only_json(done: Done) -> Any:
    assert (done.status, done.err) == (0, "")
    assert done.out.count("\n") == 1
    return json.loads(done.out)


def test_evaluate_as_json_is_one_object(command: Command, on_small: str) -> None:
    line = f"evaluate karras:3 {on_small} --metric fid,recall --samples 50 --seed 4"
    found = only_json(command(f"{line} --json"))
    assert list(found) == ["plan", "samples", "seed", "nfe", "scores"]
    assert (found["samples"], found["seed"], found["nfe"]) == (50, 4, 3)
    assert list(found["scores"]) == ["fid", "recall"]
    for score in found["scores"].values():
        assert list(score) == ["value", "low", "high"]
        assert score["low"] <= score["value"] <= score["high"]
    plan = Plan.model_validate(found["plan"])
    assert (plan.solver, len(plan.steps)) == ("ddim", 3)
    # the table has the same figure, and a plan's file is the same plan as the grid
    shown = command(line)
    assert f"{found['scores']['fid']['value']:.4g} [" in shown.out
    plan.save("plan.json")
    assert only_json(command(f"evaluate plan.json {on_small} --metric fid --samples 50 --seed 4 --json"))["scores"] == {
        "fid": found["scores"]["fid"]
    }


@pytest.mark.usefixtures("plain")
def test_search_as_json_is_one_object(command: Command, real_images: Path, on_small: str) -> None:
    found = only_json(
        command(f"search small:model --steps 2 --reference {real_images} {FEW} --solver plms --out run --json")
    )
    assert list(found) == ["out", "plan", "rows", "search_cost", "confirm_cost"]
    assert found["plan"] == json.loads(Path("run/plan.json").read_text())
    assert {"uniform", "found"} <= {row["name"] for row in found["rows"]}
    # what it says is what evaluate says
    row = next(row for row in found["rows"] if row["name"] == "found")
    checked = only_json(command(f"evaluate run/plan.json {on_small} --samples 60 --json"))
    assert checked["scores"]["fid"] == pytest.approx(row["scores"]["fid"], rel=1e-6)
    assert checked["nfe"] == row["nfe"] == 3


def test_sample_draws_a_square_and_two_beside_each_other(command: Command) -> None:
    done = command("sample uniform:3 --model small:model -n 9 --out one.png")
    assert (done.status, done.out, done.err) == (0, "one.png\n", "")
    assert command("sample uniform:3 --model small:model -n 9 --out two.png --compare karras").status == 0
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert one.format == two.format == "PNG"
        assert two.width == pytest.approx(2 * one.width, abs=20)  # of two margins beside each other one is enough
        assert two.height == one.height
        whole = np.asarray(two.convert("L"))
        left, right = np.array_split(whole, 2, axis=1)
        for half in (left, right):  # dark tiles on a white page
            assert (half < 100).mean() > 0.1
        assert (left[:, : right.shape[1]] != right).mean() > 0.05


def test_sample_is_the_same_for_the_same_seed(command: Command) -> None:
    drawn = []
    Plan.of("ddim", [60.0, 20.0]).save("plan")
    for name, options in [("a", ""), ("b", "--batch-size 2"), ("c", "--seed 1"), ("d", "--compare plan")]:
        assert command(f"sample karras:3 --model small:model -n 6 --out {name}.png {options}").status == 0
        drawn.append(np.asarray(Image.open(f"{name}.png")))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert drawn[3].shape[1] > drawn[0].shape[1]


def test_a_reference_is_made_once_and_used(command: Command, real_images: Path, on_small: str) -> None:
    done = command(f"reference {real_images} --model small:model --out ref.npz")
    assert (done.status, done.out, done.err) == (0, "ref.npz: 8 dimensions, features of 600 images\n", "")
    line = "evaluate uniform:3 --samples 40 --json"
    direct = only_json(command(f"{line} {on_small}"))
    kept = only_json(command(f"{line} --model small:model --reference ref.npz"))
    assert kept["scores"]["fid"] == pytest.approx(direct["scores"]["fid"])
    assert command("reference teacher:5:30 --model small:model --out t.npz").out.endswith("features of 30 images\n")
    assert command(f"reference {real_images} --features small:features --out f.npz").status == 0
    from autodiffusion.features._base import load as load_features

    extractor = load_features("small:features")
    np.testing.assert_array_equal(load_reference("ref.npz", extractor).mu, load_reference("f.npz", extractor).mu)


@pytest.mark.usefixtures("plain")
def test_a_yaml_file_is_the_same_as_options(command: Command, real_images: Path) -> None:
    options = {
        "model": "small:model",
        "steps": 3,
        "reference": str(real_images),
        "solver": "dpm_solver++",
        "solver_options": {"order": 1},
        "samples": 24,
        "confirm_samples": 60,
        "starts": ["uniform", "karras"],
        "seed": 3,
        "free_end": True,
        "strategy": "evolution",
        "strategy_options": {"population": 5, "generations": 2, "parents": 2, "mutations": 2, "crossovers": 1},
    }
    Path("a.yaml").write_text(yaml.safe_dump(options))
    assert command("search --config a.yaml --out by_file").status == 0
    flags = (
        f"search small:model --steps 3 --reference {real_images} --solver dpm_solver++ --solver-option order=1 "
        "--samples 24 --confirm-samples 60 --starts uniform,karras --seed 3 --free-end --strategy evolution "
        "--population 5 --generations 2 "
        "--parents 2 --mutations 2 --crossovers 1"
    )
    assert command(f"{flags} --out by_options").status == 0
    for name in ("config.yaml", "study.jsonl", "plan.json"):
        assert Path("by_file", name).read_text() == Path("by_options", name).read_text()
    # the configuration that a run keeps is one to start from
    assert command("search --config by_file/config.yaml --out by_file").status == 0
    # options win over the file, one by one
    line = "search --config a.yaml --steps 2 --no-free-end --generations 1 --strategy-option parents=1 --out other"
    assert command(line).status == 0
    kept = yaml.safe_load(Path("other/config.yaml").read_text())
    assert (kept["steps"], kept["free_end"], kept["seed"], kept["solver_options"]["order"]) == (2, False, 3, 1)
    changed = {key: kept["strategy_options"][key] for key in ("population", "generations", "parents")}
    assert changed == {"population": 5, "generations": 1, "parents": 1}


def test_what_the_user_named_is_printed_as_it_is(command: Command, on_small: str) -> None:
    name = "[bold]my [/red] :smile: $x$ plan.json"
    Path(name).parent.mkdir()
    Plan.of("ddim", [60.0, 20.0]).save(name)
    done = command(f"evaluate {shlex.quote(name)} {on_small} --samples 20")
    assert done.status == 0
    assert name in done.out
    assert command(f"sample {shlex.quote(name)} --model small:model -n 4 --out '[x].png'").out == "[x].png\n"
    Plan.of("ddim", [60.0, 20.0]).save("a$\\frac$b.json")  # no formula
    assert command("sample 'a$\\frac$b.json' --model small:model -n 4 --out y.png").status == 0
    assert "[red]gone.json: cannot be read" in command("evaluate '[red]gone.json' --model small:model").err


# failed while running


def test_samples_that_are_not_finite_fail_the_evaluation(command: Command, real_images: Path) -> None:
    done = command(f"evaluate trailing:3 --model small:broken_model --reference {real_images} --samples 20 --json")
    assert (done.status, done.out) == (1, "")
    assert done.err == "autodiffusion: trailing:3: 20 of samples 0 to 19 are not finite\n"


@pytest.mark.usefixtures("plain")
def test_a_search_in_which_everything_fails_fails(command: Command, real_images: Path) -> None:
    # one step has a single start, at 99
    done = command(
        f"search small:broken_model --steps 3 --reference {real_images} --samples 8 --starts trailing "
        "--strategy evolution --population 1 --generations 1 --parents 1 --mutations 0 --crossovers 0 --out run"
    )
    assert (done.status, done.out) == (1, "")
    assert "no candidate could be scored, the first because 8 of samples 0 to 7 are not finite" in done.err
    assert "mend it and give another --out, or delete the folder" in done.err
    assert done.err.count("\n") == 1
    assert command("report run").status == 0
    page = Path("run/report.html").read_text()
    assert "No candidate could be scored: 8 of samples 0 to 7 are not finite, for all 1." in page
    assert "not finished" not in page


# unusable input


def searching(real: str, rest: str) -> str:
    return f"search small:model --steps 3 --reference {real} --out run {rest}"


BAD_SEARCHES = {
    "unknown model": ("search mnsit --steps 3 --out run", "did you mean 'mnist'"),
    "unknown factory": ("search small:modle --steps 3 --out run", "no attribute 'modle'"),
    "unknown solver": ("{search} --solver ddmi", "did you mean 'ddim'"),
    "no solver": ("{search} --solver small:Projection", "not a class derived from autodiffusion.solvers.Solver"),
    "unknown metric": ("{search} --metric fidd", "did you mean 'fid'"),
    "metric in capitals": ("{search} --metric FID", "did you mean 'fid'"),
    "several metrics": ("{search} --metric fid,kid", "a search has one, evaluate takes more"),
    "no metric": ("{search} --metric small:Projection", "not a class derived from autodiffusion.metrics.Metric"),
    "unknown strategy": ("{search} --strategy evolutoin", "did you mean 'evolution'"),
    "no strategy": ("{search} --strategy small:SHAPE", "not a class derived from autodiffusion.strategies.Strategy"),
    "unknown preset": ("{search} --preset papr", "did you mean 'paper'"),
    "unknown features": ("{search} --features incption", "did you mean 'inception'"),
    "unknown start": ("{search} --starts uniform,karas", "did you mean 'karras'"),
    "option without value": ("search small:model --out run --steps", "'--steps' requires an argument"),
    "unknown option": ("{search} --sampels 5", "No such option: --sampels"),
    "steps 2.5": ("search small:model --steps 2.5 --out run", "--steps 2.5: is not a whole number"),
    "steps 0": ("{search} --steps 0", "1 to 100 time steps"),
    "steps above T": ("{search} --steps 101", "1 to 100 time steps"),
    "steps too wide": ("{search} --gap 80", "do not fit"),
    "no steps": ("search small:model --out run", "--steps is missing; give the number of steps"),
    "no model": ("search --steps 3 --out run", "no model is given; name one, such as"),
    "two models": ("{search} --model small:other", "two models, small:model and small:other"),
    "model by its option": ("search --model small:modle --steps 3 --out run", "no attribute 'modle'"),
    "no module": ("search nowhere:model --steps 3 --out run", "run the command where nowhere lies"),
    "samples 1": ("{search} --samples 1", "samples: 1 should be at least 2"),
    "budget 1e5": ("{search} --budget 1e5", "'--budget': '1e5' should be a valid integer"),
    "seed -1": ("{search} --seed -1", "seed"),
    "unknown noise": ("{search} --noise loud", "noise"),
    "no reference": ("search small:model --steps 3 --out run", "give --reference"),
    "missing reference": ("{search} --reference none.npz", "none.npz: does not exist"),
    "other features": ("{search} --reference wrong.npz", "wrong.npz: has 5 features"),
    "cut reference": ("{search} --reference cut.npz", "cut.npz: is not a complete .npz file"),
    "teacher:abc": ("{search} --reference teacher:abc", "write teacher:STEPS"),
    "teacher above T": ("{search} --reference teacher:500", "1 to 100 time steps"),
    "kl of statistics": ("{search} --reference moments.npz --metric kl", "needs real images"),
    "kl of a teacher": ("{search} --reference teacher:10 --metric kl", "needs real images"),
    "kl without null class": ("{search} --classes 3 --metric kl", "give --null-class"),
    "guidance": ("{search} --guidance-scale 2", "--null-class"),
    "small budget": ("{search} --budget 100", "network evaluations times samples; give at least that"),
    "other solver option": ("{search} --solver-option etaa=1", "did you mean 'eta'"),
    "bad eta": ("{search} --solver-option eta=2", "eta = 2 lies outside 0 to 1"),
    "eta of another type": ("{search} --solver-option eta=much", "eta = 'much' is not a float"),
    "no pair": ("{search} --solver-option eta", "is not NAME=VALUE"),
    "broken value": ("{search} --solver-option 'eta=[1'", "eta=[1"),
    "other strategy option": ("{search} --strategy-option sise=4", "option 'sise' is unknown"),
    "no day": ("{search} --strategy-option size=2026-02-30", "--strategy-option size=2026-02-30: the value is not a"),
    "option of the other strategy": ("{search} --candidates 5", "option 'candidates' is of strategy optuna or random"),
    "device": ("{search} --device nonsense", "device 'nonsense' cannot be used"),
    "dtype": ("{search} --dtype nonsense", "dtype"),
    "unknown schedule": ("{search} --schedule cosin", "did you mean 'cosine'"),
    "out in a file": ("search --config out.yaml --out run", "out.yaml: out: is given on the command line (--out)"),
    "mps": ("{search} --device mps", "cpu always can"),
    "missing file": ("search --config none.yaml --out run", "none.yaml: cannot be read"),
    "unknown key": ("search --config typo.yaml --out run", "typo.yaml: sampels: unknown key (did you mean 'samples'"),
    "no mapping": ("search --config list.yaml --out run", "is not a mapping"),
    "no yaml": ("search --config torn.yaml --out run", "is not YAML"),
    "below a file": ("{search} --out typo.yaml/run", "cannot be written"),
    "a file": ("{search} --out typo.yaml", "is a file"),
    "no out": ("search small:model --steps 3", "--out is missing"),
}


def write_bad_files(folder: Path) -> None:
    np.savez(folder / "wrong.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez(folder / "moments.npz", mu=np.zeros(8), sigma=np.eye(8))
    (folder / "cut.npz").write_bytes((folder / "wrong.npz").read_bytes()[:100])
    (folder / "typo.yaml").write_text("model: small:model\nsteps: 3\nsampels: 5\n")
    (folder / "out.yaml").write_text("model: small:model\nsteps: 3\nout: run\n")
    (folder / "list.yaml").write_text("- 3\n")
    (folder / "torn.yaml").write_text("model: [small\n")
    Plan.of("ddim", [60.0, 20.0]).save(folder / "good.json")
    good = (folder / "good.json").read_text()
    (folder / "done").mkdir()
    (folder / "done" / "plan.json").write_text(good)
    (folder / "cut.json").write_text(good[:50])
    (folder / "rising.json").write_text(good.replace('"t": 60', '"t": 15'))
    (folder / "key.json").write_text(good.replace('"origin":', '"orgin":'))
    (folder / "far.json").write_text(good.replace('"t": 60', '"t": 600'))
    (folder / "layers.json").write_text(good.replace('"skip": []', '"skip": [2]'))


def assert_one_line(done: Done, told: str) -> None:
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith("autodiffusion: ")
    assert done.err.count("\n") == 1
    assert told in done.err
    assert len(done.err) < 600


@pytest.mark.parametrize(("line", "told"), BAD_SEARCHES.values(), ids=BAD_SEARCHES)
def test_a_search_that_cannot_be_done_writes_nothing(
    command: Command, real_images: Path, tmp_path: Path, line: str, told: str
) -> None:
    write_bad_files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    start = f"search small:model --steps 3 --reference {real_images} --out run"
    assert_one_line(command(line.format(search=start)), told)
    assert sorted(tmp_path.rglob("*")) == before


LONG = 300 * "a"
BAD_COMMANDS = {
    "no verb": ("", "autodiffusion --help"),
    "unknown verb": ("serach", "No such command 'serach'"),
    "no plan": ("evaluate --model small:model", "Missing argument 'plan'"),
    "no model": ("evaluate uniform:3", "Missing option '--model'"),
    "option without value": ("sample uniform:3 --model", "'--model' requires an argument"),
    "no out": ("sample uniform:3 --model small:model", "Missing option '--out'"),
    "no plan or grid": ("{evaluate} unifrm:3", "did you mean 'uniform'"),
    "grid without steps": ("{evaluate} uniform", "write uniform:4"),
    "grid above T": ("{evaluate} uniform:101", "1 to 100 time steps"),
    "a run's folder": ("{evaluate} done", "plan 'done' is a folder; give done/plan.json"),
    "grid without a schedule": ("plans karras:4", "depend on the noise schedule; give --sigmas"),
    "missing plan": ("{evaluate} none.json", "none.json: cannot be read"),
    "cut plan": ("{evaluate} cut.json", "cut.json: is not a complete JSON file"),
    "rising steps": ("{evaluate} rising.json", "steps[1].t = 20 is not below steps[0].t = 15"),
    "unknown key": ("{evaluate} key.json", "did you mean 'origin'"),
    "beyond the schedule": ("{evaluate} far.json", "t = 600 lies outside the time steps of small, 0 to 99"),
    "layers": ("{evaluate} layers.json", "network of small is a function"),
    "unknown metric": ("{evaluate} uniform:3 --metric fid,kdi", "did you mean 'kid'"),
    "no metric": ("{evaluate} uniform:3 --metric ,", "no metric is named"),
    "too few": ("{evaluate} uniform:3 --metric recall --samples 2", "give 4 or more"),
    "samples 1": ("{evaluate} uniform:3 --samples 1", "'--samples'"),
    "batch 0": ("{evaluate} uniform:3 --batch-size 0", "'--batch-size'"),
    "option of a list": ("{evaluate} uniform:3 --solver-option 'eta=[1]'", "option eta = [1] is not a float"),
    "option of a date": ("{evaluate} uniform:3 --solver-option eta=2020-01-01", "is not a float"),
    "broken option": ("{evaluate} uniform:3 --solver-option 'eta={{'", "--solver-option eta={"),
    "no solver": ("{evaluate} uniform:3 --solver small:SHAPE", "not a class derived from"),
    "device": ("{evaluate} uniform:3 --device nonsense", "device 'nonsense' cannot be used"),
    "meta device": ("{evaluate} uniform:3 --device meta", "device 'meta' cannot be used"),
    "dtype": ("{evaluate} uniform:3 --dtype float23", "did you mean 'float32'"),
    "kl of a teacher": ("{evaluate} uniform:3 --reference teacher:5 --metric kl", "needs real images"),
    "no metric class": ("{evaluate} uniform:3 --reference teacher:5 --metric small:model", "not a class derived from"),
    "n 0": ("sample uniform:3 --model small:model --out a.png -n 0", "'--samples'"),
    "no folder": ("sample uniform:3 --model small:model --out none/a.png", "none/a.png: cannot be written"),
    "a folder": ("sample uniform:3 --model small:model --out .", "is a folder"),
    "other to compare": ("sample uniform:3 --model small:model --out a.png --compare unifrom", "mean 'uniform'"),
    "not npz": ("reference cut.npz --model small:model --out ref.npy", "must end in .npz"),
    "cut source": ("reference cut.npz --model small:model --out ref.npz", "is not a complete .npz file"),
    "no device for features": (
        "reference cut.npz --features small:features --device nonsense --out ref.npz",
        "device 'nonsense' cannot be used",
    ),
    "teacher of nobody": ("reference teacher:5 --out ref.npz", "needs --model"),
    "layers of a function": ("layers small:model", "network of small is a function"),
    "no run": ("report .", "holds no search"),
    "missing run": ("report none", "none: holds no search"),
    "long run": (f"report {LONG}", "File name too long; give another name"),
    "long out": (f"sample uniform:3 --model small:model --out {LONG}.png", "File name too long"),
    "long plan": (f"sample {LONG} --model small:model --out a.png", "File name too long"),
    "long model": (f"layers {LONG}", "File name too long"),
}


@pytest.mark.parametrize(("line", "told"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_a_command_that_cannot_be_done_writes_nothing(
    command: Command, on_small: str, tmp_path: Path, line: str, told: str
) -> None:
    write_bad_files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(command(line.format(evaluate=f"evaluate {on_small}")), told)
    assert sorted(tmp_path.rglob("*")) == before


FAULTY = {
    "few_channels": "network of faulty:few_channels returns [1, 1, 8, 8] for x [1, 3, 8, 8]; return x's shape",
    "no_tensor": "not a tensor; return a tensor of the shape of x, [1, 3, 8, 8], such as .sample",
    "two_arguments": "'faulty:two_arguments': its network failed on x [1, 3, 8, 8], t [1], label None (TypeError: ",
    "raising": "cannot be multiplied (24x8 and 5x5)); it takes (x, t, label) and returns a tensor of x's shape",
}


ON_OWN = (
    "sample uniform:3 --out a.png --model {}",
    "layers {}",
    "evaluate uniform:3 --model {} --reference teacher:5",
    "search {} --steps 3 --reference teacher:5 --out run",
)


@pytest.mark.parametrize("line", ON_OWN)
@pytest.mark.parametrize(("name", "told"), FAULTY.items(), ids=FAULTY)
def test_a_network_that_does_not_answer_as_it_must_is_one_line(
    command: Command, tmp_path: Path, line: str, name: str, told: str
) -> None:
    assert_one_line(command(line.format(f"faulty:{name}")), told)
    assert not list(tmp_path.iterdir())


CHEAP = {
    "search into a file": ("search mnist --steps 3 --out typo.yaml", "is a file"),
    "search below a file": ("search mnist --steps 3 --out typo.yaml/run", "cannot be written"),
    "several into a file": ("search mnist --steps 3,4 --out typo.yaml", "is a file"),
    "solvers into a file": ("search mnist --steps 3 --solver ddim,plms --out typo.yaml", "is a file"),
    "search into another folder": ("search mnist --steps 3 --out done", "is not empty and holds no search"),
    "strategy": ("search mnist --steps 3 --out run --strategy evolutoin", "did you mean 'evolution'"),
    "strategy option": ("search mnist --steps 3 --out run --strategy-option sise=4", "option 'sise' is unknown"),
    "metric": ("search mnist --steps 3 --out run --metric fidd", "did you mean 'fid'"),
    "solver option": ("search mnist --steps 3 --out run --solver-option etaa=1", "did you mean 'eta'"),
    "start": ("search mnist --steps 3 --out run --starts cut.json", "cut.json: is not a complete JSON file"),
    "threads": ("search mnist --steps 3 --out run --threads 100000", "threads = 100000 is more than"),
    "one of several metrics": ("evaluate uniform:3 --model mnist --metric fid,kdi", "did you mean 'kid'"),
    "plan": ("evaluate cut.json --model mnist", "cut.json: is not a complete JSON file"),
    "grid": ("evaluate unifrm:3 --model mnist", "did you mean 'uniform'"),
    "option of a grid": ("evaluate uniform:3 --model mnist --solver-option etaa=1", "did you mean 'eta'"),
    "threads to evaluate": ("evaluate uniform:3 --model mnist --threads 100000", "threads = 100000 is more than"),
    "picture": ("sample uniform:3 --model mnist --out none/a.png", "none/a.png: cannot be written"),
    "compared": ("sample uniform:3 --model mnist --out a.png --compare cut.json", "cut.json: is not a complete JSON"),
}


@pytest.mark.parametrize(("line", "told"), CHEAP.values(), ids=CHEAP)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, told: str
) -> None:
    def loaded(*parts: object, **more: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("autodiffusion.models.mnist.model", loaded)
    write_bad_files(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert_one_line(command(line), told)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_is_priced_beside_the_whole_network_where_layers_are_left_out(
    command: Command, real_images: Path, tmp_path: Path
) -> None:
    evaluate = f"--model small:layered_model --features small:features --reference {real_images} --samples 24 --time"
    whole = Plan.of("ddim", [60.0, 20.0])
    whole.save(tmp_path / "whole.json")
    text = (tmp_path / "whole.json").read_text()
    (tmp_path / "partial.json").write_text(text.replace('"skip": []', '"skip": [1]'))
    lines = [command(f"evaluate {name}.json {evaluate}").out.splitlines()[-1] for name in ("whole", "partial")]
    assert re.fullmatch(r"a sample costs 10 layers, [\d,]+ MACs, [\d.]+ ms, quartiles [\d.]+ and [\d.]+ ms", lines[0])
    assert "a sample costs 8 of 10 layers (80.0 %), " in lines[1]


@pytest.mark.usefixtures("plain")
def test_a_search_that_finds_a_grid_says_so(command: Command, real_images: Path) -> None:
    few = f"--reference {real_images} --samples 24 --confirm-samples 60 --budget 48 --out run"
    done = command(f"search small:model --steps 2 --strategy random --candidates 1 --starts uniform {few}")
    assert "\nfound: the plan of uniform; nothing else was better on fresh noise." in done.out


@pytest.mark.usefixtures("plain")
def test_a_run_of_another_search_is_left_alone(command: Command, real_images: Path, tmp_path: Path) -> None:
    line = f"search small:model --steps 2 --reference {real_images} {FEW} --out run"
    assert command(line).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert_one_line(command(f"{line} --seed 9"), "holds a search with other settings (seed: 0 there, 9 here)")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert_one_line(command(line.replace("--out run", "--out mine")), "is not empty and holds no search")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_help_is_no_error(command: Command) -> None:
    done = command("--help")
    assert (done.status, done.err) == (0, "")
    for verb in ("search", "evaluate", "sample", "reference", "report"):
        assert verb in done.out
        assert command(f"{verb} --help").status == 0


def test_help_has_every_option_once_in_its_group(command: Command) -> None:
    text = command("search --help").out
    options = [option for parameter in get_command(cli.app).commands["search"].params for option in parameter.opts]  # type: ignore[attr-defined]
    for option in options:
        if option.startswith("--") and option != "--model":  # that is taken, and not shown
            assert len(re.findall(rf"^  {option}\b(?!-)", text, re.MULTILINE)) == 1, option
    headings = [heading for heading in GROUPS if f"{heading}:\n" in text]
    assert headings == list(GROUPS)
    assert (
        text.index("The model:") < text.index("--checkpoint") < text.index("Where it runs:") < text.index("--workers")
    )
    assert "The search:" not in command("sample --help").out  # a group of one is none


def test_help_says_what_is_done_where_nothing_is_said(command: Command) -> None:
    text = " ".join(command("search --help").out.split())
    for option, default in (("solver", "ddim"), ("metric", "fid"), ("batch_size", 128), ("device", "cpu"), ("seed", 0)):
        assert Settings.model_fields[option].default == default
        assert f"[{default}]" in text.partition(f"--{option.replace('_', '-')} ")[2].partition(" --")[0]


@pytest.mark.usefixtures("plain")
def test_warnings_are_one_line(command: Command, real_images: Path) -> None:
    assert command(f"search small:model --steps 2 --reference {real_images} {FEW} --out run").status == 0
    with open("run/study.jsonl", "a") as file:
        file.write('{"event": "sco')
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = command("report run")
    assert (done.status, done.out) == (0, "run/report.html\n")
    assert done.err == "autodiffusion: warning: run/study.jsonl: the last line was cut off and is dropped\n"


# as a process of its own


def process(line: str, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # where the tests are run from, the package may be found by a relative path
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(place).resolve()) for place in sys.path if place)
    arguments = [sys.executable, "-m", "autodiffusion", *shlex.split(line)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # tests that run in the background ignore it, and so would this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_an_unknown_model_is_one_line_for_a_shell_too(tmp_path: Path) -> None:
    with process("search nobody/nothing --steps 3 --out run", tmp_path) as running:
        out, err = running.communicate(timeout=120)
    assert_one_line(Done(running.returncode, out, err), "model 'nobody/nothing' is unknown")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("plain")
def test_an_interrupted_search_says_how_to_go_on(command: Command, real_images: Path, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    line = (
        f"search small:model --steps 3 --reference {real_images} --samples 24 --confirm-samples 60 "
        "--strategy evolution --population 6 --generations 40 --parents 3 --mutations 3 --crossovers 1 "
        "--out 'a folder/run'"
    )
    ledger = tmp_path / "a folder" / "run" / "study.jsonl"
    with process(line, tmp_path) as running:
        while not (ledger.exists() and ledger.read_bytes().count(b'"scores"') > 2):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    before = ledger.read_bytes()
    assert before.endswith(b"\n")
    *_, last = err.strip().splitlines()
    told = last.removeprefix("interrupted; to go on: autodiffusion ")
    assert shlex.split(told) == shlex.split(line)
    done = command(told)
    assert done.status == 0
    after = ledger.read_bytes()
    assert after.startswith(before)
    events = [json.loads(event) for event in after.splitlines()]
    assert [event["generation"] for event in events if event["event"] == "scores"] == list(range(40))
    assert Plan.load(ledger.with_name("plan.json")).origin["metric"] == "fid"


def test_an_interruption_that_a_serializer_wraps(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    # pydantic raises a PydanticSerializationError from the KeyboardInterrupt that lands in a serializer of a plan
    class Interrupted(BaseModel):
        steps: int = 4

        @field_serializer("steps")
        def stop(self, _: int) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", lambda **_: Interrupted().model_dump())
    done = command("search mnist")
    assert (done.status, done.out, done.err) == (130, "", "interrupted; to go on: autodiffusion search mnist\n")


def test_what_the_system_refuses_is_one_line(
    command: Command, real_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*parts: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/study.jsonl")

    monkeypatch.setattr("autodiffusion._study.study.Study.record", full)
    status, out, err = command(f"search small:model --steps 2 --reference {real_images} --out run")
    told = "autodiffusion: run/study.jsonl: No space left on device; mend that and call it again\n"
    assert (status, out, err) == (1, "", told)


def test_a_shell_that_closes_the_output_gets_no_traceback() -> None:
    line = f"{sys.executable} -m autodiffusion plans >&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_numbers_with_an_exponent_are_numbers(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("budget: 1e5\nreference: '1e5'\nsolver_options: {eta: 1e-1}\n")
    read = read_yaml(tmp_path / "a.yaml")
    assert read == {"budget": 100_000, "reference": "1e5", "solver_options": {"eta": 0.1}}
    assert isinstance(read["budget"], int)
    settings = Settings.of(model="mnist", steps=4, **read)
    (tmp_path / "b.yaml").write_text(settings.dump())
    assert Settings.of(**read_yaml(tmp_path / "b.yaml")) == settings
    done = command("sample uniform:3 --model small:model -n 4 --solver-option eta=1e-1 --out a.png")
    assert (done.status, done.err) == (0, "")


def test_a_single_search_is_not_searched_into(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: mnist\nsteps: 4\n")
    for more in ("--steps 4,6", "--steps 4 --solver ddim,plms"):
        assert_one_line(command(f"search mnist --out run {more}"), "run: holds a single search, not several")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    line = f"{sys.executable} -m autodiffusion plans --json | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("[")
    assert "Traceback" not in done.stderr


# a bar on a terminal, lines elsewhere


def test_progress_is_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autodiffusion._views import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress() as shown:
        shown.phase("search", 1000)
        shown.note("best [x]:fid 3.5")
        for now[0] in (5.0, 20.0, 21.0):  # too early, a line, too early again
            shown.tick(100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "search: 200 of at most 1,000 evaluations, best [x]:fid 3.5, at most about 80 s left\n"
