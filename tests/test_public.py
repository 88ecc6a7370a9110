"""What users may import: what is documented, typed as a strict checker sees it from outside, and nothing more."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import autodiffusion

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".mypy_cache"
API = (ROOT / "docs" / "api.md").read_text()
ROOMS = {"features", "layers", "metrics", "models", "solvers", "strategies"}
"""Packages whose files are names that users give."""


def documented() -> set[str]:
    return {line.removeprefix("::: ").strip() for line in API.splitlines() if line.startswith("::: ")}


def test_the_package_offers_what_is_documented() -> None:
    offered = {f"autodiffusion.{name}" for name in autodiffusion.__all__}
    for room in (*ROOMS, "export"):
        module = import_module(f"autodiffusion.{room}")
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"]
        offered |= {f"autodiffusion.{room}.{name}" for name in getattr(module, "__all__", own)}
    assert offered == documented()
    assert sorted(dir(autodiffusion)) == sorted(["__version__", *autodiffusion.__all__])


def test_whatever_else_there_is_is_private_by_name() -> None:
    public = {module.name for module in pkgutil.iter_modules(autodiffusion.__path__) if module.name[0] != "_"}
    assert public == ROOMS | {"export"}


PROJECT = '''
"""A user's own project."""
from __future__ import annotations

from pathlib import Path

import autodiffusion
import torch
from autodiffusion import (
    Model,
    NoiseSchedule,
    Plan,
    Progress,
    Reference,
    Settings,
    load_model,
    load_plan,
    sample,
    search,
)
from autodiffusion.features import Features
from autodiffusion.metrics import Metric
from autodiffusion.solvers import FreeNumber, Move, Predict, Solver, State
from autodiffusion.strategies import Strategy
from torch import Tensor


class Wasserstein(Metric):
    better = "lower"
    needs = "features"

    def measure(self, features: Features) -> float:
        return float(features.vectors.mean())


def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    return x


def factory() -> Model:
    return Model(network, NoiseSchedule.linear(1000), shape=(3, 32, 32), device="cpu")


def main() -> None:
    with Progress() as progress:
        result = search(Settings.of(model="mnist", steps=4, solver="gls", budget=20_000), Path("run"), progress)
    times: tuple[float, ...] = result.plan.times
    plan = Plan.load("run/plan.json")
    model = load_model("mnist")
    images: Tensor = sample(model, plan, 64, seed=1) + sample(model, load_plan("karras:4", model), 64, seed=1)
    try:
        applied = autodiffusion.apply(plan, object())
        applied.remove()
    except autodiffusion.InputError as error:
        print(error, times, images.shape)
'''


def mypy(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    # the options of this repository, so that what it knows of torch serves here as well
    exclude = "untyped_calls_exclude = diffusers, numpy.lib.format, torch"
    (folder / "mypy.ini").write_text(f"[mypy]\nstrict = true\npython_version = 3.10\ncache_dir = {CACHE}\n{exclude}\n")
    there = {**os.environ, "MYPYPATH": "", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-m", "mypy", "mine.py"], cwd=folder, env=there, capture_output=True, text=True
    ).stdout


def test_a_project_outside_is_type_checked(tmp_path: Path) -> None:
    """Under mypy's strict rules, by the types that the installed package has, with its mistakes seen."""
    assert mypy(tmp_path, PROJECT) == "Success: no issues found in 1 source file\n"
    wrong = PROJECT.replace("times: tuple[float, ...] =", "times: str =").replace('"run/plan.json"', "5")
    assert mypy(tmp_path, wrong).count("error: ") == 2


def test_what_is_private_is_not_exported(tmp_path: Path) -> None:
    told = mypy(tmp_path, "from autodiffusion import Watch\nfrom autodiffusion.solvers import solve\n")
    assert told.count("error: ") == 2
