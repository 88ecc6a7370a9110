"""What is shown while something runs: on a terminal, below a notebook's cell, and of which search."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from autodiffusion import Plan, Settings, search
from autodiffusion._plans.resample import resample
from autodiffusion._search.contest import search_solvers
from autodiffusion._search.several import search_several
from autodiffusion._study.standing import Standing
from autodiffusion._views import progress
from autodiffusion._views.live import Doing, line, panel
from autodiffusion._views.progress import Progress, Quiet

TIMES = (968.0, 680.0, 455.0, 229.0)
STANDING = Standing("fid", 41, 312, 12_300, 8_400, 500, 5.6123, Plan.of("gls", TIMES))
BEST = "best fid in the search 5.612 on 500 samples"
FEW = {"strategy": "random", "strategy_options": {"candidates": 8, "population": 4}}


def drawn(doing: Doing, now: float, width: int = 80) -> list[str]:
    """The lines of a view, as a terminal of so many columns shows them."""
    console = Console(file=io.StringIO(), width=width, no_color=True)
    with console.capture() as capture:
        console.print(panel(doing, now))
    return [text.rstrip() for text in capture.get().splitlines()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


# how it looks


def test_a_view_says_all_in_three_lines() -> None:
    doing = Doing("search", "solver gls (1 of 3)", 20_000, 10.0, 9_300, 3_000, BEST, STANDING)
    head, where, best = drawn(doing, 103.0)
    assert head.startswith("search  ━")
    # 93 s for 9,300 evaluations: 7,700 more take 77 s
    assert head.endswith(" 12,300/20,000 evaluations  0:01:33  0:01:17 left")
    assert where == "solver gls (1 of 3), round 41, 312 candidates, 8,400 saved by sharing"
    assert best == f"{BEST}: gls at 968, 680, 455, 229"


def test_a_view_fits_its_columns() -> None:
    long = Standing("fid", 9, 99, 10**9, 10**9, 5000, 5.6, Plan.of("ddim", tuple(range(500, 0, -1))))
    doing = Doing("confirm", "solver dpm_solver++ (11 of 12, to 15%)", 2 * 10**7, 0.0, 10**7, 0, BEST, long)
    for width in (40, 80, 200):
        lines = drawn(doing, 36_000.0, width)
        assert len(lines) == 3
        assert max(map(cell_len, lines)) <= width
    assert "10,000,000/20,000,000 evaluations  10:00:00  10:00:00 left" in drawn(doing, 36_000.0)[0]


def test_a_view_of_nothing_and_of_what_has_no_length() -> None:
    assert drawn(Doing(), 0.0) == [""]
    assert drawn(Doing("time", started=1.0), 2.0)[0].endswith("0:00:01")
    [head] = drawn(Doing("teacher", total=100), 2.0)
    assert head.endswith("0/100 evaluations  0:00:02")  # how long it takes is not known yet


def test_a_line_says_which_search_and_what_is_known() -> None:
    doing = Doing("search", "4 steps (1 of 3)", 1000, 0.0, 200, 300, BEST)
    text = "search (4 steps (1 of 3)): 500 of at most 1,000 evaluations"
    assert line(doing, 20.0) == f"{text}, {BEST}, at most about 50 s left"
    assert line(Doing("search", "", 1000), 20.0) == "search: 0 of at most 1,000 evaluations"
    assert line(Doing("reference", total=300, unit="images"), 20.0) == "reference: 0 of at most 300 images"


# where it is shown


def test_a_terminal_keeps_a_line_of_what_is_done(clock: list[float]) -> None:
    shown = Progress()
    shown.console = Console(
        file=io.StringIO(), force_terminal=True, width=80, no_color=True, _environ={"TERM": "xterm"}
    )
    with shown:
        shown.part("solver [ddim] (1 of 2)")
        shown.phase("search", 1000)
        shown.stand(STANDING)
        clock[0] = 83.0
        shown.tick(900)
        shown.phase("confirm", 500)
        clock[0] = 90.0
        shown.tick(500)
    text = shown.console.file.getvalue()  # type: ignore[attr-defined]
    assert f"search, solver [ddim] (1 of 2), 900 evaluations, 0:01:23, {BEST}\n" in text
    assert "confirm, solver [ddim] (1 of 2), 500 evaluations, 0:00:07\n" in text
    assert "of at most" not in text


class Handle:
    """What ``IPython.display.display`` gives for ``display_id=True``."""

    def __init__(self) -> None:
        self.contents: list[dict[str, str]] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        self.contents.append(content)
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.contents.append(content)


def test_a_notebook_has_a_view_that_changes_in_place(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    handle, module = Handle(), ModuleType("IPython.display")
    module.display = handle.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    shown = Progress()
    shown.console = Console(force_jupyter=True, _environ={})
    clock[0] = 100.0
    with shown:
        shown.phase("search", 100_000)
        shown.note("best <b>:fid 3")
        for number in range(1, 1001):  # ten seconds
            clock[0] = 100 + number / 100
            shown.tick(100)
        shown.phase("confirm", 10)
    assert 10 <= len(handle.contents) <= 15  # not a thousand
    running = handle.contents[-5]
    assert running["text/plain"].startswith("search  ━")
    assert running["text/plain"].endswith("best <b>:fid 3")
    assert running["text/html"].startswith("<pre>search  ━")
    assert running["text/html"].endswith("best &lt;b&gt;:fid 3</pre>")
    last = handle.contents[-1]["text/plain"].splitlines()
    assert last[0] == "search, 100,000 evaluations, 0:00:10, best <b>:fid 3"
    assert last[1] == "confirm, 0:00:00"


def test_a_notebook_without_a_display_has_lines(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    shown, printed = Progress(), []
    shown.console = Console(force_jupyter=True, _environ={})
    monkeypatch.setattr(shown.console, "print", lambda text, **_: printed.append(text))
    with shown:
        shown.phase("search", 1000)
        clock[0] = 20.0
        shown.tick(200)
    assert printed == ["search: 200 of at most 1,000 evaluations, at most about 80 s left"]


# which search it is


class Parts(Quiet):
    """Keeps the names of the parts, and how far each phase was done before."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.done: list[int] = []

    def part(self, name: str) -> None:
        self.parts.append(name)

    def before(self, evaluations: int) -> None:
        self.done.append(evaluations)


GIVEN: dict[str, Any] = {"model": "small:model", "features": "small:features", "samples": 40, "confirm_samples": 60}


@dataclass
class Phases(Quiet):
    """Keeps what each phase says that it takes at most, and what it took."""

    most: list[int] = field(default_factory=list)
    took: list[int] = field(default_factory=list)

    def phase(self, name: str, total: int, unit: str = "evaluations") -> None:
        self.most.append(total)
        self.took.append(0)

    def tick(self, evaluations: int) -> None:
        self.took[-1] += evaluations


@pytest.mark.parametrize("given", [{"layers": True, "max_cost": "80%"}, {"solver": "gls"}], ids=["layers", "numbers"])
def test_nothing_takes_more_than_was_said(
    plain: None, real_images: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    seen = Phases()
    options = GIVEN | {"model": "small:layered_model", "reference": str(real_images), "steps": 4, "samples": 20} | given
    result = search(Settings.of(**options), tmp_path / "run", seen)
    assert result.search_cost.evaluations in seen.took
    assert all(took <= most for took, most in zip(seen.took, seen.most, strict=True))


def test_several_numbers_of_steps_say_which_one_runs(plain: None, real_images: Path, tmp_path: Path) -> None:
    seen, again = Parts(), Parts()
    given = GIVEN | FEW | {"reference": str(real_images)}
    found = search_several([3, 1], tmp_path, seen, **given)
    assert seen.parts == ["1 step (1 of 2)", "3 steps (2 of 2)"]
    assert seen.done == [0, 0]
    (tmp_path / "3" / "study.jsonl").write_bytes(
        b"".join((tmp_path / "3" / "study.jsonl").read_bytes().splitlines(keepends=True)[:-1])
    )
    search_several([3, 1], tmp_path, again, **given)
    assert again.done == [found[3].search_cost.evaluations]


def test_several_numbers_of_steps_where_a_named_grid_does_not_fit(
    plain: None, real_images: Path, tmp_path: Path
) -> None:
    """The second search begins with the grids that fit and the plan of the first."""
    given = GIVEN | FEW | {"reference": str(real_images), "model": "small:shifted_model"}
    found = search_several([1, 2], tmp_path, **given)
    assert sorted(found) == [1, 2]
    first = json.loads((tmp_path / "2" / "study.jsonl").read_text().splitlines()[1])
    tried = [tuple(step["t"] for step in score["plan"]["steps"]) for score in first["scores"]]
    assert resample(found[1].plan, 2).times in tried


def test_several_solvers_say_which_one_runs(plain: None, real_images: Path, tmp_path: Path) -> None:
    seen = Parts()
    [winner] = search_solvers(
        ["ddim", "euler"], tmp_path, seen, steps=3, **GIVEN | FEW | {"reference": str(real_images)}
    )
    assert seen.parts[:2] == ["solver ddim (1 of 2, to 15%)", "solver euler (2 of 2, to 15%)"]
    assert seen.parts[2:] == [f"solver {winner} (1 of 1, to 40%)", f"solver {winner}"]
