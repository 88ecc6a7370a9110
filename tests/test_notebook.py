"""Results in a notebook: escaped tables, and frames that say what the ledger says."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_nothing

from autodiffusion import InputError, Plan, Settings, Step
from autodiffusion._evaluation.evaluate import Score
from autodiffusion._search.loop import Result, search
from autodiffusion._study.study import LEDGER, Study, read_events

TAGS = {"div", "table", "caption", "tr", "th", "td"}


class Reader(HTMLParser):
    """What a browser makes of a text: rows of cells and notes; fails on other tags and on what is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.notes: list[str] = []
        self.caption = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"style"}
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self._open[-1] == "caption":
            self.caption += data
        else:
            self.notes.append(data)


def read(shown: Any) -> Reader:
    return Reader(shown._repr_html_())


@pytest.fixture(scope="module")
def found(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A search of the small model, and its folder."""
    folder = tmp_path_factory.mktemp("notebook") / "<run>"
    given: dict[str, Any] = {"model": "small:model", "features": "small:features", "reference": str(real_images)}
    given |= {"steps": 3, "samples": 40, "confirm_samples": 60, "strategy": "ladder"}
    options = {"explorations": 1, "children": 4, "elite": 2, "family": False, "step": 0.05, "smallest_step": 0.04}
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        return search(Settings.of(**given, strategy_options=options), folder), folder


# plans and scores


def test_a_plan_is_a_table_of_its_steps() -> None:
    shown = read(Plan.of("ddim", (926.5, 690.0), solver_options={"eta": 0.5, "clip": True}))
    assert shown.caption == "ddim (clip=True, eta=0.5)"
    assert shown.rows == [["step", "time"], ["1", "926.5"], ["2", "690"]]
    assert shown.notes == []


def test_a_plan_shows_layers_free_numbers_its_end_and_its_origin() -> None:
    steps = (Step(t=900, skip=frozenset({7, 2}), params={"noise": 1.25}), Step(t=100))
    shown = read(Plan(solver="gls", steps=steps, end=10, origin={"fid": 5.5, "model": "mnist"}))
    assert shown.rows == [
        ["step", "time", "layers left out", "noise"],
        ["1", "900", "2, 7", "1.25"],
        ["2", "100", "", "plain"],
    ]
    assert shown.notes == ["to 10", "fid: 5.5; model: mnist"]


def test_a_long_plan_is_cut() -> None:
    shown = read(Plan.of("ddim", tuple(range(999, -1, -1))))
    assert len(shown.rows) == 51
    assert shown.notes == ["and 950 more steps"]


def test_what_a_plan_says_is_text() -> None:
    evil = "<script>alert(1)</script>&\"'"
    shown = read(Plan.of(evil, (1.0,), solver_options={evil: evil}, origin={evil: evil}))
    assert shown.caption == f"{evil} ({evil}={evil})"
    assert shown.notes == [f"{evil}: {evil}"]


def test_a_score_says_its_samples_or_its_problem() -> None:
    assert read(Score(3.14159, 2000)).rows == [["value", "samples"], ["3.142", "2,000"]]
    assert read(Score(float("inf"), 8, "<not finite>")).rows[1] == ["<not finite>", "8"]


# searches


def test_a_result_is_its_final_table(found: tuple[Result, Path]) -> None:
    result, _ = found
    shown = read(result)
    assert shown.rows[0] == ["plan", "network evaluations", "fid", "time steps"]
    assert [row[0] for row in shown.rows[1:]] == [row["name"] for row in result.rows]
    for cells, row in zip(shown.rows[1:], result.rows, strict=True):
        assert float(cells[2].split()[0]) == pytest.approx(row["scores"]["fid"]["value"], rel=1e-3)
    assert f"{result.search_cost.evaluations:,} network evaluations" in shown.notes[0]
    failed = [{**result.rows[0], "scores": {}, "problem": "<b>no</b>"}, result.rows[-1]]
    assert read(Result(result.plan, failed, result.search_cost, result.confirm_cost)).rows[1][2] == "<b>no</b>"


def test_a_study_is_looked_at_finished_or_not(found: tuple[Result, Path], tmp_path: Path) -> None:
    result, folder = found
    study = Study.open(folder)
    assert read(study).rows == read(result).rows
    assert read(study).notes[-1] == f"in {folder}"
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    for name in ("config.yaml", LEDGER):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / LEDGER).write_bytes(b"".join(lines[:-1]))
    events = read_events(tmp_path / LEDGER)
    scored = [
        (-event["samples"], entry["value"], Plan.model_validate(entry["plan"]))
        for event in events
        if event["event"] == "scores" and event["anchor"] is None
        for entry in event["scores"]
    ]
    best = min(scored, key=lambda score: score[:2])
    shown = read(Study.open(tmp_path))
    assert shown.caption == "not finished"
    assert shown.rows[1][0] == f"best fid in the search {best[1]:.4g} on {-best[0]:,} samples"
    assert all(f"{round(t, 2):g}" in shown.rows[1][1] for t in best[2].times)
    (tmp_path / LEDGER).unlink()
    assert read(Study.open(tmp_path)).rows[1] == ["none", ""]


def test_looking_at_a_study_holds_and_changes_nothing(found: tuple[Result, Path]) -> None:
    _, folder = found
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    looking = Study.open(str(folder))
    with Study(folder, looking.settings) as writing, looking:
        assert looking.events == writing.events
        with pytest.raises(InputError, match="was opened to be looked at"):
            looking.record({"event": "scores"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no search; give the folder"):
        Study.open(tmp_path)


def test_frames_say_what_the_ledger_says(found: tuple[Result, Path]) -> None:
    result, folder = found
    frame = Study.open(folder).dataframe()
    events = [event for event in read_events(folder / LEDGER) if event["event"] == "scores"]
    entries = [(event, entry) for event in events for entry in event["scores"]]
    assert list(frame["fid"]) == [entry["value"] for _, entry in entries]
    assert list(frame["samples"]) == [event["samples"] for event, _ in entries]
    assert list(frame["own"]) == [event["anchor"] is None for event, _ in entries]
    assert list(frame["plan"]) == [Plan.model_validate(entry["plan"]) for _, entry in entries]
    assert frame["spent"].is_monotonic_increasing
    assert frame["spent"].iloc[-1] == result.search_cost.evaluations
    last = frame.groupby("round")["spent"].last()
    assert list(last.diff().dropna()) == [event["evaluations"] for event in events[1:]]
    table = result.dataframe().set_index("name")
    for row in result.rows:
        score = row["scores"]["fid"]
        assert list(table.loc[row["name"], ["fid", "fid_low", "fid_high"]]) == [
            score[key] for key in ("value", "low", "high")
        ]
    assert table.loc["found", "plan"] == result.plan


def test_pandas_is_asked_for_by_name(found: tuple[Result, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    result, folder = found
    monkeypatch.setitem(sys.modules, "pandas", None)
    for frame in (result.dataframe, Study.open(folder).dataframe):
        with pytest.raises(InputError, match=r"^dataframe: needs pandas; pip install pandas$"):
            frame()
