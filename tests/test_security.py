"""Nothing that is read runs code, leaves its folder or takes more memory than it should; see docs/security.md."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from autodiffusion import InputError, Plan, Settings
from autodiffusion._references.reference import load as load_reference
from autodiffusion._report import report
from autodiffusion._study.settings import read_yaml
from autodiffusion._study.study import CONFIG, LEDGER, Study
from autodiffusion.features._base import load as load_features

TRAP = """
from importlib import import_module
from pathlib import Path
from autodiffusion.solvers import Solver
Path("sprung").touch()
class Own(Solver):
    pass
"""
"""A module that leaves a file where it is imported."""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there if code of the module ``trap_module`` has run."""
    (tmp_path / "trap_module.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    return tmp_path / "sprung"


def named(**given: Any) -> dict[str, Any]:
    return {"format": "autodiffusion.plan/1", "solver": "ddim", "steps": [{"t": 50.0}]} | given


NAMED = [named(solver="trap_module:Own"), named(solver="gls", solver_options={"plain": "trap_module:Own"})]


@pytest.mark.parametrize("content", NAMED, ids=["solver", "option"])
def test_a_plan_brings_no_code(command: Command, trap: Path, content: dict[str, Any]) -> None:
    Path("plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"plan.json: names code, 'trap_module:Own', which is not run because a plan"):
        Plan.load("plan.json")
    for words in ("evaluate plan.json --model small:model", "sample plan.json --model small:model --out x.png"):
        done = command(words)
        assert (done.status, done.out) == (2, "")
        assert "names code, 'trap_module:Own'" in done.err
    done = command("search small:model --steps 1 --starts plan.json --out run")
    assert done.status == 2
    assert not trap.exists()


def test_code_that_the_user_names_is_run(trap: Path) -> None:
    Path("plan.json").write_text(json.dumps(NAMED[0]))
    import_module("trap_module")
    assert trap.exists()
    assert Plan.load("plan.json").solver == "trap_module:Own"


@pytest.mark.usefixtures("plain")
def test_a_search_of_somebody_else_brings_no_code(command: Command, trap: Path, real_images: Path) -> None:
    line = f"search small:model --steps 2 --reference {real_images} --samples 16 --confirm-samples 40 --budget 600"
    assert command(f"{line} --out run").status == 0
    config, ledger = Path("run") / CONFIG, Path("run") / LEDGER
    whole = ledger.read_text()
    # a plan in the ledger, which a search that goes on may choose
    ledger.write_text(whole.replace('"solver":"ddim"', '"solver":"trap_module:Own"'))
    report(Path("run"))  # to draw it no solver is needed
    Path("run/plan.json").unlink()
    done = command(f"{line} --out run")
    assert done.status == 2
    assert "names code, 'trap_module:Own'" in done.err
    # a metric in the settings, of which a report asks which direction is better
    ledger.write_text(whole)
    config.write_text(config.read_text().replace("metric: fid", "metric: trap_module:Own"))
    report(Path("run"))
    Study.open("run")._repr_html_()
    assert not trap.exists()


# what a file makes of a few bytes


def test_references_in_yaml_are_not_followed(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))]
    file = tmp_path / "search.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"search.yaml: has references, such as \*this, which are not taken"):
        read_yaml(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 5000, "is nested too deeply"),
        ("x: !!python/object/apply:os.system [touch sprung]", "is not YAML"),
        ("#" * 70_000, "is larger than 64 KiB"),
    ],
    ids=["nested", "object", "large"],
)
def test_a_configuration_is_plain_and_small(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "search.yaml").write_text(content)
    with pytest.raises(InputError, match=f"search.yaml: {reason}"):
        read_yaml(tmp_path / "search.yaml")


def test_an_array_that_grows_out_of_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (100, 1024, 1024, 1)}
        )
        for _ in range(100):
            member.write(bytes(2**20))
    assert file.stat().st_size < 2**20
    with pytest.raises(InputError, match=r"bomb.npz: array 'arr_0' would be 100 MiB, out of \d+ KiB"):
        load_reference(file, load_features("small:features"))


def test_a_ledger_and_a_plan_have_a_size(tmp_path: Path) -> None:
    with Study(tmp_path / "run", Settings.of(model="mnist", steps=4)):
        pass
    for name, most in ((LEDGER, "256 MiB"), ("plan.json", "16777216 bytes")):
        with open(tmp_path / "run" / name, "wb") as file:
            file.truncate(2**40)  # of which nothing is on the disk
        with pytest.raises(InputError, match=f"{name}: is larger than {most} and cannot be a"):
            Study.open(tmp_path / "run") if name == LEDGER else Plan.load(tmp_path / "run" / name)


# what is printed


def test_a_message_is_one_line_that_no_terminal_obeys() -> None:
    message = str(InputError("a\x1b[2Jb\nc\u202ed\x00e\x9bf"))
    assert message == "a\\x1b[2Jb c\\u202ed\\x00e\\x9bf"


# where files are written


@pytest.mark.usefixtures("plain")
def test_a_search_writes_in_its_folder_alone(command: Command, real_images: Path, tmp_path: Path) -> None:
    given = {"model": "small:model", "reference": str(real_images), "samples": 16, "confirm_samples": 40}
    (tmp_path / "search.yaml").write_text(json.dumps(given | {"budget": 3000, "steps": 2}))
    hostile = named(origin={"../../out": "../x"}, steps=[{"t": 50.0}, {"t": 10.0}])
    (tmp_path / "start.json").write_text(json.dumps(hostile))
    before = set(tmp_path.rglob("*"))
    done = command("search --config search.yaml --solver ddim,plms --starts uniform,start.json --out deep/run")
    assert done.status == 0, done.err
    assert all(path.is_relative_to(tmp_path / "deep") for path in set(tmp_path.rglob("*")) - before)


def test_the_page_says_what_is_checked() -> None:
    page = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    assert set(re.findall(r"`tests/(\w+)\.py`", page)) >= {
        "test_security",
        "test_fuzz",
        "test_house",
        "test_cluster_cli",
    }
