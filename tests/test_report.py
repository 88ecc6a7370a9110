"""Reports: of finished, unfinished and troubled searches; whole, self-contained, and true to the ledger."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from autodiffusion import InputError, Settings
from autodiffusion.loop import search
from autodiffusion.report import convergence, mosaic, picture, report, steps
from autodiffusion.study import read_events, stored_settings

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page taken apart; fails where tags are not closed in the order in which they were opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.images: list[dict[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)
            if self.open[-1] in ("th", "td"):
                self.rows[-1][-1] += data

    def text(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))


def of(real: Path, **given: Any) -> Settings:
    few = {"population": 6, "generations": 3, "parents": 3, "mutations": 3, "crossovers": 1}
    plain = {"model": "small:model", "reference": str(real), "steps": 3, "samples": 24, "confirm_samples": 60}
    plain["strategy"] = "evolution"
    return Settings.of(**{**plain, "starts": ["uniform", "trailing", "karras"], "strategy_options": few, **given})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, real_images: Path) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    search(of(real_images, metric="kid", teacher=30), folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def parsed(folder: Path) -> Page:
    """The report, drawn now and checked for what holds of every one."""
    path = report(folder)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", re.sub(r"base64,[\w+/=]+", "", html))
    page = Page(html)
    assert not [value for name, value in page.attributes if name in ("href", "srcset", "action") or name[:2] == "on"]
    for image in page.images:
        assert len(image["alt"] or "") > 10
        kind, _, data = (image["src"] or "").partition(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind == "data:image/png":
            Image.open(io.BytesIO(content)).verify()
        else:
            assert kind == "data:image/svg+xml"
            drawing = ElementTree.fromstring(content)
            links = [v for e in drawing.iter() for k, v in e.attrib.items() if k.endswith("href")]
            assert links
            assert all(link.startswith("#") for link in links)
    return page


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()]


def keep(folder: Path, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Cuts the ledger down to some of its events."""
    events = [event for event in ledger(folder) if wanted(event)]
    (folder / "study.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return events


def test_the_final_table_is_the_ledgers(copied: Path) -> None:
    page = parsed(copied)
    [confirmed] = [event for event in ledger(copied) if event["event"] == "confirm"]
    header, *rows = page.rows
    assert header == ["schedule", "network evaluations", "kid", "fid", "plan"]
    assert [row[0] for row in rows] == [row["name"] for row in confirmed["rows"]]
    assert {"uniform", "found", "teacher (30 steps)"} <= {row[0] for row in rows}
    for shown, known in zip(rows, confirmed["rows"], strict=True):
        assert int(shown[1]) == known["nfe"]
        for metric, cell in zip(("kid", "fid"), shown[2:4], strict=True):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", cell)]
            expected = [known["scores"][metric][key] for key in ("value", "low", "high")]
            assert numbers == pytest.approx(expected, rel=1e-3)
        times = [float(number) for number in re.findall(r"[\d.]+", shown[4])]
        taken = [step["t"] for step in known["plan"]["steps"]]
        assert times == (taken if known["nfe"] <= 20 else [30])
    paragraphs = page.text("p")
    assert f"{confirmed['rows'][0]['samples']} samples, seed 0" in paragraphs
    assert "not finished" not in paragraphs


def test_what_it_cost_is_the_ledgers(copied: Path) -> None:
    events = ledger(copied)
    scored = [event for event in events if event["event"] == "scores"]
    text = parsed(copied).text("p")
    assert f"{sum(len(event['scores']) for event in scored)} candidates" in text
    assert f"{sum(event['evaluations'] for event in scored):,} network evaluations" in text
    assert f"{sum(event['saved'] for event in scored):,} saved" in text
    assert f"fresh noise: {events[-1]['evaluations']:,}." in text


def test_it_shows_pictures_and_how_to_run_it_again(copied: Path) -> None:
    page = parsed(copied)
    assert [image["alt"] for image in page.images] == [
        "Samples of the same seeds by each plan of the table",
        "Scores of the candidates over network evaluations",
        "Time steps of the plans on the log-SNR curve",
    ]
    assert base64.b64encode((copied / "grid.png").read_bytes()).decode() in (page.images[0]["src"] or "")
    kept = Settings.of("page", **yaml.safe_load(page.text("pre")))
    assert kept == stored_settings(copied)


def test_of_an_unfinished_search(copied: Path) -> None:
    events = keep(copied, lambda event: event["event"] == "start" or event.get("generation") == 0)
    (copied / "grid.png").unlink()
    page = parsed(copied)
    assert page.rows == []
    assert [image["alt"] for image in page.images] == ["Scores of the candidates over network evaluations"]
    assert f"not finished: {len(events[1]['scores'])} candidates are scored" in page.text("p")
    # as it begins, and before that
    keep(copied, lambda event: event["event"] == "start")
    assert parsed(copied).images == []
    (copied / "study.jsonl").unlink()
    assert "0 candidates are scored" in parsed(copied).text("p")


def test_of_a_search_whose_last_line_is_torn(copied: Path) -> None:
    path = copied / "study.jsonl"
    torn = path.read_bytes()[:-20]
    path.write_bytes(torn)
    with pytest.warns(UserWarning, match="the last line was cut off"):
        report(copied)
    html = (copied / "report.html").read_text()
    assert "not finished" in html
    assert path.read_bytes() == torn  # it belongs to the search, which mends it


def test_of_a_search_with_failed_candidates(real_images: Path, tmp_path: Path) -> None:
    result = search(of(real_images, model="small:broken_model"), tmp_path / "run")
    page = parsed(tmp_path / "run")
    failed = [s for event in ledger(tmp_path / "run") for s in event.get("scores", []) if s["problem"]]
    assert failed
    items = page.texts["li"]
    assert len(items) == len(failed)
    assert any(item == "ddim at 99, 66, 32: 8 of samples 0 to 7 are not finite" for item in items)
    assert all(step.t <= 70 for step in result.plan.steps)


def test_of_a_table_with_a_failed_row(copied: Path) -> None:
    def spoil(event: dict[str, Any]) -> bool:
        if event["event"] == "confirm":
            event["rows"][0] |= {"scores": {}, "problem": "60 of samples 0 to 59 are not finite"}
            event["rows"][1]["scores"]["kid"] = {"value": None, "low": None, "high": None}
        return True

    keep(copied, spoil)
    _, first, second, *_ = parsed(copied).rows
    assert first[2:4] == ["60 of samples 0 to 59 are not finite"] * 2
    assert second[2] == "not finite"


def test_names_are_text(copied: Path) -> None:
    name = "<script>alert('x')</script>&amp;\"<b>"

    def rename(event: dict[str, Any]) -> bool:
        if event["event"] == "confirm":
            event["rows"][0] |= {"name": "<i>uniform</i>", "problem": "</table>"}
        if event["event"] == "scores":
            event["scores"][0]["problem"] = "<img src=x onerror=alert(1)>"
        return True

    keep(copied, rename)
    config = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump(config | {"model": name}))
    page = parsed(copied)
    assert page.text("h1") == f"{name}: 3 steps of ddim"
    assert page.rows[1][0] == "<i>uniform</i>"
    assert page.texts["li"][0].endswith("<img src=x onerror=alert(1)>")
    assert yaml.safe_load(page.text("pre"))["model"] == name
    assert len(page.images) == 3


def found_is(folder: Path, plan: dict[str, Any]) -> None:
    """Puts another plan where the ledger says what was found."""

    def replace(event: dict[str, Any]) -> bool:
        for row in event.get("rows", []):
            if row["name"] == "found":
                row["plan"] |= plan
        return True

    keep(folder, replace)


def test_the_free_numbers_of_the_plan_found(copied: Path) -> None:
    assert "Free numbers" not in parsed(copied).text("h2")
    before = len(parsed(copied).rows)
    steps = [
        {"t": 95, "skip": [], "params": {"noise": 2.4}},
        {"t": 60.25, "skip": []},
        {"t": 31, "skip": [], "params": {"data1": -1.05, "noise": 0.0001}},
        {"t": 4, "skip": [], "params": {"data1": 0.43}},
    ]
    found_is(copied, {"solver": "gls", "steps": steps})
    page = parsed(copied)
    assert "Free numbers" in page.text("h2")
    assert page.rows[before:] == [
        ["step", "time step", "data1", "noise"],
        ["1", "95", "plain", "2.4"],
        ["2", "60.25", "plain", "plain"],
        ["3", "31", "-1.05", "0.0001"],
        ["4", "4", "0.43", "plain"],
    ]
    # of a plan with none, and of an unfinished search, nothing
    found_is(copied, {"steps": [{"t": 95, "skip": []}]})
    assert "Free numbers" not in parsed(copied).text("h2")
    keep(copied, lambda event: event["event"] != "confirm")
    assert "Free numbers" not in parsed(copied).text("h2")


def test_the_title_says_what_was_found(copied: Path) -> None:
    def title(folder: Path) -> set[str]:
        page = parsed(folder)
        return {page.text("h1"), page.text("title").replace(", ", ": ")}

    assert title(copied) == {"small:model: 3 steps of ddim"}
    found_is(copied, {"steps": [{"t": t, "skip": [0]} for t in (95, 70, 50, 30, 10)]})
    assert title(copied) == {"small:model: 5 steps of ddim"}
    found_is(copied, {"solver": "plms", "steps": [{"t": 95, "skip": []}]})
    assert title(copied) == {"small:model: 1 step of plms"}
    # where nothing is found yet, what was asked for
    keep(copied, lambda event: event["event"] != "confirm")
    assert title(copied) == {"small:model: 3 steps of ddim"}


def test_folders_without_a_search_are_refused(tmp_path: Path, finished: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", finished / "plan.json"):
        with pytest.raises(InputError, match="holds no search; give the folder"):
            report(folder)
    assert list(tmp_path.iterdir()) == []


# the drawings


def test_the_convergence_shows_every_score_and_the_best(finished: Path) -> None:
    events = read_events(finished / "study.jsonl")
    drawing = convergence(events, "kid", 24)
    assert drawing is not None
    dots, best = drawing.axes[0].get_lines()
    values = [s["value"] for event in events if event["event"] == "scores" for s in event["scores"]]
    np.testing.assert_array_equal(dots.get_ydata(), values)
    np.testing.assert_array_equal(best.get_ydata(), np.minimum.accumulate(values))
    places = np.asarray(dots.get_xdata(), dtype=float)
    assert (np.diff(places) > 0).all()
    assert places[-1] == sum(event["evaluations"] for event in events if event["event"] == "scores")
    # of what grows with quality, the best is the largest
    rising = convergence(events, "recall", 24)
    assert rising is not None
    np.testing.assert_array_equal(rising.axes[0].get_lines()[1].get_ydata(), np.maximum.accumulate(values))
    assert convergence([], "kid", 24) is None


def test_the_convergence_leaves_out_scores_of_fewer_samples(finished: Path) -> None:
    events = read_events(finished / "study.jsonl")
    first = next(event for event in events if event["event"] == "scores")
    lucky = first | {"samples": 8, "scores": [score | {"value": -1.0} for score in first["scores"]]}
    plain, drawing = convergence(events, "kid", 24), convergence([lucky, *events], "kid", 24)
    assert plain is not None
    assert drawing is not None
    for before, after in zip(plain.axes[0].get_lines(), drawing.axes[0].get_lines(), strict=True):
        np.testing.assert_array_equal(after.get_ydata(), before.get_ydata())
        # what they cost counts
        np.testing.assert_allclose(np.subtract(after.get_xdata(), before.get_xdata()), first["evaluations"])


def test_time_steps_lie_on_the_curve_and_in_lanes(finished: Path) -> None:
    events = read_events(finished / "study.jsonl")
    drawing = steps(events)
    assert drawing is not None
    upper, lanes = drawing.axes
    curve, *marks = upper.get_lines()
    assert list(curve.get_ydata()) == events[0]["log_snr"]
    rows = [row for row in events[-1]["rows"] if row["nfe"] <= 20]
    assert len(rows) == len(events[-1]["rows"]) - 1  # without the teacher
    assert [label.get_text() for label in lanes.get_yticklabels()] == [row["name"] for row in rows]
    for lane, (row, mark, line) in enumerate(zip(rows, marks, lanes.get_lines(), strict=True)):
        times = [step["t"] for step in row["plan"]["steps"]]
        np.testing.assert_array_equal(mark.get_xdata(), times)
        np.testing.assert_array_equal(line.get_xdata(), times)
        expected = np.interp(times, np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata()))
        np.testing.assert_allclose(np.asarray(mark.get_ydata()), expected, atol=1e-9)
        assert list(line.get_ydata()) == [lane] * len(times)


def test_many_steps_are_not_drawn(copied: Path) -> None:
    def lengthen(event: dict[str, Any]) -> bool:
        if event["event"] == "confirm":
            for row in event["rows"]:
                row["nfe"] = 25
                row["plan"]["steps"] = [{"t": 96 - 4 * i} for i in range(25)]
        return True

    keep(copied, lengthen)
    page = parsed(copied)
    assert [row[-1] for row in page.rows[1:]] == ["25 steps"] * (len(page.rows) - 1)
    assert len(page.images) == 2


def test_a_mosaic_holds_each_image_once() -> None:
    images = torch.arange(1, 8, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 4, 5)
    tiles = mosaic(images)
    assert tiles.shape == (3 * 5 - 1, 3 * 6 - 1, 3)
    for i in range(7):
        top, left = (i // 3) * 5, (i % 3) * 6
        assert (tiles[top : top + 4, left : left + 5] == i + 1).all()
    assert (tiles == 0).sum() == tiles.size - 7 * 3 * 4 * 5
    assert mosaic(images, columns=7).shape == (4, 7 * 6 - 1, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_picture_keeps_colours(tmp_path: Path, channels: int) -> None:
    colour = torch.tensor([250, 20, 90, 7], dtype=torch.uint8)[:channels].view(1, channels, 1, 1)
    picture({"a": colour.expand(4, channels, 8, 8), "b $x$": colour.expand(4, channels, 8, 8)}, tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).reshape(-1, 3)
    expected = (250, 20, 90) if channels >= 3 else (250, 250, 250)
    assert (pixels == expected).all(1).mean() > 0.2
