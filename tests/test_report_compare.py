"""Several searches beside each other: the page and its figures say what each ledger says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command, draw_nothing
from test_report import Page, finished, keep, ledger, of
from test_report_figures import axes_of

from autodiffusion import InputError
from autodiffusion._evaluation.confirm import figure
from autodiffusion._report.comparison import SPREAD, charts, compare, labels, runs_in
from autodiffusion._report.figures import Chart
from autodiffusion._search.loop import search

__all__ = ["finished"]  # a fixture of the reports' tests


@pytest.fixture(scope="module")
def folders(finished: Path, real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Searches that differ in strategy, solver and number of steps."""
    base = tmp_path_factory.mktemp("compare")
    shutil.copytree(finished, base / "evolution")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        few: dict[str, Any] = {"strategy": "random", "strategy_options": {"candidates": 8}, "metric": "kid"}
        search(of(real_images, **few), base / "random")
        search(of(real_images, **few, solver="plms", steps=5), base / "plms")
    return [base / name for name in ("evolution", "random", "plms")]


def page_of(folders: list[Path], out: Path) -> Page:
    return Page(compare(runs_in(folders), out).read_text(encoding="utf-8"))


def chart(folders: list[Path], name: str) -> Chart:
    return next(made for made in charts(runs_in(folders)) if made.name == name)


def row(folder: Path, name: str) -> dict[str, Any]:
    return next(row for row in ledger(folder)[-1]["rows"] if row["name"].partition(" (")[0] == name)


def test_each_search_is_a_row(folders: list[Path], tmp_path: Path) -> None:
    page = page_of(folders, tmp_path / "page.html")
    assert page.text("h1") == "3 searches beside each other"
    header, *rows = page.tables["What each found"]
    assert header[:3] == ["search", "strategy", "network evaluations"]
    for cells, folder in zip(rows, folders, strict=True):
        said = dict(zip(header, cells, strict=True))
        found, uniform = row(folder, "found"), row(folder, "uniform")
        assert said["search"] == folder.name
        assert said["strategy"] == yaml.safe_load((folder / "config.yaml").read_text())["strategy"]
        assert said["network evaluations"] == str(found["nfe"])
        for metric in ("kid", "fid"):
            assert said[f"{metric}, found"] == figure(found["scores"][metric])
            assert said[f"{metric}, uniform"] == figure(uniform["scores"][metric])
        assert said["plan"].startswith(found["plan"]["solver"])
    header, *rows = page.tables["What they cost"]
    for cells, folder in zip(rows, folders, strict=True):
        *scored, confirmed = [event for event in ledger(folder) if event["event"] != "start"]
        plans = {json.dumps(score["plan"]) for event in scored for score in event["scores"]}
        spent = sum(event["evaluations"] for event in scored)
        assert cells == [folder.name, f"{len(plans):,}", f"{spent:,}", f"{confirmed['evaluations']:,}"]
    assert "cannot all be compared" not in page.text("p")


def test_the_best_so_far_of_each_is_drawn(folders: list[Path]) -> None:
    made = chart(folders, "convergence")
    [axes] = axes_of(made)
    lines = {line.get_label(): line for line in axes.get_lines() if len(np.atleast_1d(line.get_ydata())) > 1}
    assert list(lines) == [folder.name for folder in folders]
    for folder in folders:
        scored = [event for event in ledger(folder) if event["event"] == "scores"]
        values = [score["value"] for event in scored for score in event["scores"]]
        np.testing.assert_array_equal(lines[folder.name].get_ydata(), np.minimum.accumulate(values))
        assert np.asarray(lines[folder.name].get_xdata())[-1] == sum(event["evaluations"] for event in scored)


def test_quality_stands_at_its_number_of_evaluations(folders: list[Path]) -> None:
    made = chart(folders, "quality")
    expected = [
        (
            folder.name,
            kind,
            entry["nfe"],
            entry["samples"],
            *(entry["scores"]["kid"][k] for k in ("value", "low", "high")),
        )
        for folder in folders
        for kind in ("found", "uniform")
        for entry in [row(folder, kind)]
    ]
    assert list(made.table.rows) == expected
    [axes] = axes_of(made)
    drawn = [bar.lines[0].get_xydata()[0] for bar in axes.containers]
    assert [value for _, value in drawn] == [entry[4] for entry in expected]
    places = [place - entry[2] for (place, _), entry in zip(drawn, expected, strict=True)]
    # two with 3 evaluations, a little apart; the one of PLMS, with one more than its 5 steps, alone
    assert places == pytest.approx([-SPREAD / 2] * 2 + [SPREAD / 2] * 2 + [0.0] * 2)
    assert list(axes.get_xticks()) == [3, 6]


def test_what_cannot_be_compared_is_said(folders: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders[0], tmp_path / "other"))
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"metric": "fid", "seed": 4}))
    page = page_of([folders[0], other], tmp_path / "page.html")
    assert "cannot all be compared: metric: kid, fid; seed: 0, 4." in page.text("p")
    names = [made.name for made in charts(runs_in([folders[0], other]))]
    assert names == ["convergence_kid", "quality_kid", "convergence_fid", "quality_fid"]


def test_an_unfinished_search_is_shown_as_far_as_it_is(folders: list[Path], tmp_path: Path) -> None:
    half, none = (Path(shutil.copytree(folders[0], tmp_path / name)) for name in ("half", "none"))
    keep(half, lambda event: event["event"] == "start" or event.get("generation") == 0)
    keep(none, lambda event: False)
    page = page_of([folders[1], half, none], tmp_path / "page.html")
    _, whole, *rest = page.tables["What each found"]
    assert "not finished" not in whole
    assert all("not finished" in cells for cells in rest)
    assert page.tables["What they cost"][3][1:] == ["0", "0", "not finished"]
    assert "not finished" in "".join(page_of([none, half], tmp_path / "page.html").tables["What each found"][1])


def test_folders_are_called_by_what_differs(folders: list[Path], tmp_path: Path) -> None:
    for name in ("a/run", "b/run"):
        shutil.copytree(folders[0], tmp_path / name)
    assert labels(runs_in([tmp_path / "a/run", tmp_path / "b/run"])) == ["a/run", "b/run"]
    assert labels(runs_in([tmp_path / "a/run"])) == ["run"]


def test_a_folder_of_several_stands_for_all(folders: list[Path], tmp_path: Path) -> None:
    for name in ("10", "4", "6"):
        shutil.copytree(folders[0], tmp_path / name)
    assert [run.folder.name for run in runs_in([tmp_path])] == ["4", "6", "10"]
    with pytest.raises(InputError, match="is given twice"):
        runs_in([tmp_path, tmp_path / "4"])
    with pytest.raises(InputError, match="holds no search"):
        runs_in([folders[0], tmp_path / "none"])


def test_the_command_writes_page_and_figures(folders: list[Path], command: Command, tmp_path: Path) -> None:
    done = command(f"report {folders[0]} {folders[2]} --figures figures")
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "comparison.html").stat().st_size > 0
    names = {f"{name}.{kind}" for name in ("convergence", "quality") for kind in ("png", "pdf", "csv")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert set(done.out.splitlines()) == {"comparison.html", *(f"figures/{name}" for name in names)}
    assert command(f"report {folders[0]} --out one.html --figures one").status == 0
    assert (tmp_path / "one" / "samples.pdf").exists()
    for wrong in ("none", f"{folders[0]} {folders[0]}", f"{folders[0]} {folders[1]} --out none/page.html"):
        refused = command(f"report {wrong}")
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
