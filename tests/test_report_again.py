"""The command that a report gives for running a search again: what a shell makes of it is that search."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from autodiffusion import InputError, Settings
from autodiffusion._report import again

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "as resolved": {
        "solver": "gls",
        "solver_options": {"clip": True, "plain": "dpm_solver++", "order": 2},
        "free_end": False,
        "free_numbers": True,
        "features": "mnist",
        "budget": 80_000,
    },
    "ends": {"free_end": True, "free_numbers": False, "gap": 3, "seed": 7, "teacher": 50, "noise": "fresh"},
    "layers": {"layers": True, "max_cost": "232 layers", "min_steps": 3, "max_steps": 9},
    "paper": {"preset": "paper"},
    "paper with layers": {"preset": "paper", "layers": True, "max_cost": "60%"},
    "paper, otherwise": {"preset": "paper", "strategy": "random", "samples": 100, "starts": ["karras", "uniform"]},
    "evolution": {"strategy": "evolution", "strategy_options": {"population": 30, "mutation_scale": 0.1}},
    "a strategy's own": {"strategy": "optuna:TPESampler", "strategy_options": {"tries": 30}},
    "no starts": {"starts": []},
    "a model's": {
        "guidance_scale": 1.5,
        "classes": 10,
        "null_class": 0,
        "schedule": "cosine",
        "checkpoint": "my weights/$HOME 'x'.pt",
        "captions": "käse;ls `x`.txt",
        "model_options": {
            "a": "1e3",
            "b": "true",
            "c": "null",
            "d": "two words",
            "e": 1e-07,
            "f": -2,
            "g": "#",
            "h": "",
        },
    },
    "running": {
        "batch_size": 8,
        "device": "cuda:1",
        "dtype": "float16",
        "threads": 3,
        "cache_mb": 0,
        "tensorboard": True,
    },
}


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of the searches that are begun, none of which runs."""
    import importlib

    found: list[Settings] = []

    def search(settings: Settings, *_: Any) -> None:
        found.append(settings)
        raise InputError("enough")

    importlib.import_module("autodiffusion._search.several")  # or it would first be imported with what is put in here
    importlib.import_module("autodiffusion._search.contest")
    monkeypatch.setattr("autodiffusion._search.loop.search", search)
    return found


@pytest.mark.parametrize("given", CASES.values(), ids=list(CASES))
def test_the_command_is_the_search(
    given: dict[str, Any], searched: list[Settings], command: Command, tmp_path: Path
) -> None:
    settings = Settings.of(**{"model": "my:model", "steps": 4, **given})
    text = again.command(settings)
    assert all(len(line) <= again.WIDTH or "model_options" in given for line in text.splitlines())
    # what a shell makes of it, not our own idea of that
    script = f"autodiffusion() {{ printf '%s\\0' \"$@\"; }}\n{text}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    words = done.stdout.split("\0")[:-1]
    assert words[0] == "search"
    assert words[-2:] == ["--out", "RUN"]
    assert command(shlex.join(words)).err == "autodiffusion: enough\n"
    assert searched == [settings]


def test_what_the_preset_fills_in_is_not_said() -> None:
    assert again.command(Settings.of(model="mnist", steps=4)) == "autodiffusion search mnist --steps 4 --out RUN"
    said = again.command(Settings.of(model="mnist", steps=4, solver="gls", budget=80_000, seed=3, samples=300))
    assert said.splitlines() == [
        "autodiffusion search mnist --steps 4 \\",
        "    --solver gls \\",
        "    --samples 300 \\",
        "    --seed 3 \\",
        "    --budget 80000 \\",
        "    --out RUN",
    ]
