"""The page on solvers: its table is that of the files, its plan can be walked, its commands and its example run."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import draw_nothing
from torch import Tensor

from autodiffusion import Plan, Settings
from autodiffusion._cli import main
from autodiffusion._errors import InputError
from autodiffusion._names import known
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._search.contest import LOOKS
from autodiffusion._search.job import Job
from autodiffusion.solvers import Solver
from autodiffusion.solvers._base import build, solve

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "solvers.md").read_text()
SCHEDULE = NoiseSchedule.linear()
COMMANDS = re.findall(r"^    autodiffusion (search (?!.* --solver \S+,).*)$", PAGE, re.MULTILINE)
CONTEST = re.findall(r"^    autodiffusion (search .* --solver \S+,.*)$", PAGE, re.MULTILINE)


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}(?: title=\"[^\"]*\")?\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def tables() -> list[list[list[str]]]:
    """The cells of each table of the page, without its head."""
    found = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]] for table in found]


def options(solver: Solver) -> dict[str, Any]:
    parameters = inspect.signature(type(solver)).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("schedule", "clip")}


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the page's own solver, which lies in the working directory."""
    (tmp_path / "carried.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield "carried:Carried"
    sys.modules.pop("carried", None)


def wavy(x: Tensor, t: float) -> Tensor:
    return torch.tanh(x + t / 500)


# the table


def test_it_lists_every_solver_with_its_options() -> None:
    listed = {row[0].strip("`"): row for row in tables()[0]}
    assert sorted(listed) == known("solvers")
    said: dict[str, Any] = {}
    for name, (_, cell, _, times, _) in listed.items():
        pairs = [text.split("=") for text in re.findall(r"`(\w+=[\w.]+)`", cell)]
        said[name] = said["dpm_solver"] if cell == "the same" else {key: yaml.safe_load(value) for key, value in pairs}
        solver = build(name, SCHEDULE)
        assert said[name] == options(solver), name
        assert times == ("real" if solver.continuous else "whole"), name
        for key, low, high in re.findall(r"`(\w+)=[\w.]+` \((\d) to (\d)\)", cell):
            for value in (int(low), int(high)):
                build(name, SCHEDULE, {key: value})
            with pytest.raises(InputError):
                build(name, SCHEDULE, {key: int(high) + 1})


def test_it_says_what_each_costs() -> None:
    for row in tables()[0]:
        name, cost, solver = row[0].strip("`"), row[2], build(row[0].strip("`"), SCHEDULE)
        clean, ended = ([len(move.ask) for move in solver.moves([900, 600, 300], end)] for end in (None, 0))
        expected = {
            "1 a step": ([1, 1, 1], [1, 1, 1]),
            "2 a step, 1 for a step to clean data": ([2, 2, 1], [2, 2, 2]),
            "2 for the first step, 1 for each other": ([2, 1, 1], [2, 1, 1]),
        }
        if cost == "those of its plain solver":
            heun = build(name, SCHEDULE, {"plain": "heun"})
            assert [len(move.ask) for move in heun.moves([900, 600, 300])] == [2, 2, 1]
        else:
            assert (clean, ended) == expected[cost], name


def test_what_the_readme_names_is_there() -> None:
    [row] = re.findall(r"^\| solvers.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = set(re.findall(r"`([\w+]+)`", row))
    assert named
    assert named <= {
        *known("solvers"),
        *(key for name in known("solvers") for key in options(build(name, SCHEDULE))),
    } | {"clip"}


def test_it_lists_every_free_number() -> None:
    said: dict[str, dict[str, tuple[float, float]]] = {}
    names: list[str] = []
    for cell, numbers, between, *_ in tables()[1]:
        names = re.findall(r"`(\w+)`", cell) or names
        low, high = (float(number) for number in between.split(" and "))
        for name in names:
            said.setdefault(name, {}).update(dict.fromkeys(re.findall(r"`(\w+)`", numbers), (low, high)))
    given = {"gls": {"memory": 2, "scale": True}}
    solvers = {name: build(name, SCHEDULE, given.get(name)) for name in known("solvers")}
    found = {name: {n.name: (n.low, n.high) for step in s.free(4) for n in step} for name, s in solvers.items()}
    assert said == {name: numbers for name, numbers in found.items() if numbers}


def test_the_plan_can_be_walked() -> None:
    plan = Plan.from_json(block("json"))
    solver = build(plan.solver, SCHEDULE, plan.solver_options)
    x = torch.ones(2, 3, dtype=torch.float64)
    plain, tuned = (solve(solver, wavy, x, plan.times, plan.end, params=params) for params in (None, plan.params))
    assert not torch.allclose(plain, tuned, atol=1e-3)
    assert [len(numbers) for numbers in build("gls", SCHEDULE).free(4)] == [1, 2, 2, 1]


# the example


def test_the_example_is_gls_with_one_number(carried: str) -> None:
    times, x = [930, 700, 480, 300], torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3)
    for clip in (True, False):
        own, gls = (build(name, SCHEDULE, {"clip": clip}) for name in (carried, "gls"))
        for end in (None, 0):
            for values in ([0.0, 0.0, 0.0], [1.05, -0.4, 2.0]):
                got, expected = (
                    solve(solver, wavy, x, times, end, params=[{}, *({name: value} for value in values)])
                    for solver, name in ((own, "carry"), (gls, "data1"))
                )
                assert torch.allclose(got, expected, rtol=1e-10)


def test_the_example_is_searched(
    carried: str, real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    few = "--samples 24 --confirm-samples 60 --strategy evolution --population 6 --generations 2 --parents 2"
    line = f"search small:model --steps 3 --solver {carried} --reference {real_images} {few} --out run"
    monkeypatch.setattr(sys, "argv", ["autodiffusion", *line.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code, capsys.readouterr().err
    ledger = (tmp_path / "run" / "study.jsonl").read_text()
    assert '"params":{"carry":' in ledger
    assert Plan.load(tmp_path / "run" / "plan.json").solver == carried


# the commands


@pytest.mark.parametrize(
    ("line", "numbers"),
    list(zip(COMMANDS, [6, 6, 4, 0, 3, 3], strict=True)),
    ids=[re.sub(r".*--solver | --out run", "", line) for line in COMMANDS],
)
@pytest.mark.usefixtures("carried")
def test_the_commands_search_what_the_page_says(line: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []

    def search(settings: Settings, *_: Any) -> None:
        asked.append(settings)
        raise InputError("enough")

    monkeypatch.setattr("autodiffusion._search.loop.search", search)
    monkeypatch.setattr(sys, "argv", ["autodiffusion", *shlex.split(line)])
    with pytest.raises(SystemExit):
        main()
    job = Job.of(asked[0])
    assert len(job.space.numbers) == numbers
    assert job.settings.free_end is False


def test_the_command_of_several_solvers_is_a_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = CONTEST
    asked: list[list[str]] = []

    def contest(solvers: list[str], *_: Any, **options: Any) -> None:
        asked.append(solvers)
        assert options["steps"] == 4
        raise InputError("enough")

    monkeypatch.setattr("autodiffusion._search.contest.search_solvers", contest)
    monkeypatch.setattr(sys, "argv", ["autodiffusion", *shlex.split(line)])
    with pytest.raises(SystemExit):
        main()
    assert asked == [["ddim", "dpm_solver++", "pfdiff", "gls"]]
    assert set(asked[0]) <= set(known("solvers"))
    for share in LOOKS:
        assert f"{share:.0%}".replace("%", " %") in PAGE
