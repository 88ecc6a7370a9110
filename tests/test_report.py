"""Reports: of finished, unfinished and troubled searches; whole, self-contained, and true to the ledger."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
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
from autodiffusion._plans.plan import Plan
from autodiffusion._report import mosaic, picture, report
from autodiffusion._report.figures import charts
from autodiffusion._report.mosaics import panels
from autodiffusion._report.run import Run
from autodiffusion._search.loop import search
from autodiffusion._study.study import stored_settings

VOID = {"meta", "img", "br", "hr", "link", "input", "source"}


class Page(HTMLParser):
    """A page taken apart; fails where tags are not closed in the order in which they were opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.images: list[dict[str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.heading = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "h2":
            self.heading = ""
        if tag == "table":
            self.tables[self.heading] = []
        if tag == "tr":
            self.tables[self.heading].append([])
        if tag in ("th", "td"):
            self.tables[self.heading][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)
            if self.open[-1] == "h2":
                self.heading += data
            if {"th", "td"} & set(self.open):
                self.tables[self.heading][-1][-1] += data

    def text(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))

    @property
    def rows(self) -> list[list[str]]:
        """The final table."""
        return self.tables.get("On fresh noise", [])

    @property
    def alts(self) -> list[str]:
        return [image["alt"] or "" for image in self.images]


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
    assert not [value for name, value in page.attributes if name in ("href", "action") or name[:2] == "on"]
    assert all(len(alt) > 10 for alt in page.alts)
    for source in [value or "" for name, value in page.attributes if name in ("src", "srcset")]:
        kind, _, data = source.partition(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind in ("data:image/png", "data:image/webp"):
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


def begun(alts: Sequence[str], beginnings: Sequence[str]) -> bool:
    """Whether the texts begin so, in this order; there may be others among them."""
    rest = iter(alts)
    return all(any(alt.startswith(begins) for alt in rest) for begins in beginnings)


def test_the_final_table_is_the_ledgers(copied: Path) -> None:
    page = parsed(copied)
    [confirmed] = [event for event in ledger(copied) if event["event"] == "confirm"]
    header, *rows = page.rows
    assert header == ["plan", "network evaluations", "kid", "fid", "ms a sample", "time steps"]
    times = json.loads((copied / "sampling_times.json").read_text())
    assert [row[0] for row in rows] == [row["name"] for row in confirmed["rows"]]
    assert {"uniform", "found", "teacher (30 steps)"} <= {row[0] for row in rows}
    for shown, known in zip(rows, confirmed["rows"], strict=True):
        assert int(shown[1]) == known["nfe"]
        for metric, cell in zip(("kid", "fid"), shown[2:4], strict=True):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", cell)]
            expected = [known["scores"][metric][key] for key in ("value", "low", "high")]
            assert numbers == pytest.approx(expected, rel=1e-3)
        middle, *ends = [float(number) for number in re.findall(r"[\d.]+", shown[4])]
        assert [ends[0], middle, ends[1]] == pytest.approx(times["ms"][known["name"]], rel=1e-2)
        said = [float(number) for number in re.findall(r"[\d.]+", shown[5])]
        taken = [step["t"] for step in known["plan"]["steps"]]
        assert said == (taken if known["nfe"] <= 20 else [30])
    paragraphs = page.text("p")
    assert f"{confirmed['rows'][0]['samples']} samples, seed 0" in paragraphs
    assert "not finished" not in paragraphs
    values = {row["name"]: row["scores"]["kid"]["value"] for row in confirmed["rows"]}
    assert f"has kid {values['found']:.4g} against {values['uniform']:.4g} of uniform steps" in paragraphs
    assert f" {values['teacher (30 steps)']:.4g} of the teacher (30 steps)" in paragraphs
    assert "The teacher (30 steps): 10 times as many network evaluations." in paragraphs
    assert f"on {times['device']} in batches of {times['batch_size']}" in paragraphs


def test_what_it_cost_is_the_ledgers(copied: Path) -> None:
    events = ledger(copied)
    scored = [event for event in events if event["event"] == "scores"]
    plans = {json.dumps(score["plan"]) for event in scored for score in event["scores"]}
    spent, saved = (sum(event[key] for event in scored) for key in ("evaluations", "saved"))
    rows = dict(map(tuple, parsed(copied).tables["What it cost"][1:]))  # type: ignore[arg-type]
    assert rows == {
        "candidates": f"{len(plans):,}",
        "scores, some of them with few samples": f"{sum(len(event['scores']) for event in scored):,}",
        "network evaluations times samples for them": f"{spent:,}",
        "saved by sharing beginnings": f"{saved:,}",
        "choice and confirmation on fresh noise": f"{events[-1]['evaluations']:,}",
    }
    # every plan had all samples and was scored once: the race saved nothing
    assert spent + saved == len(plans) * 3 * 24


def test_what_racing_saved_is_the_rest_of_full_scores(copied: Path) -> None:
    def fewer(event: dict[str, Any]) -> bool:
        if event["event"] == "scores":
            event |= {"samples": 6, "evaluations": event["evaluations"] // 4, "saved": event["saved"] // 4}
        return True

    events = [event for event in keep(copied, fewer) if event["event"] == "scores"]
    asked = sum(event["evaluations"] + event["saved"] for event in events)
    alone = sum(len(event["scores"]) for event in events) * 3 * 24
    rows = dict(map(tuple, parsed(copied).tables["What it cost"][1:]))  # type: ignore[arg-type]
    assert rows["saved by racing: candidates that were out with fewer samples"] == f"{alone - asked:,}"


FIGURES = [
    "Scores of the candidates over network evaluations",
    "Time steps on the log-SNR curve of the model",
    "Occurrences of time steps among the best 15 candidates",
    "kid against network evaluations of a sample",
    "Network evaluations of 3 rounds of the search",
]
"""How the alternative texts of the small search's figures begin."""


def test_it_shows_pictures_and_how_to_run_it_again(copied: Path) -> None:
    page = parsed(copied)
    names = sorted((row["name"] for row in ledger(copied)[-1]["rows"]), key=lambda name: "teacher" not in name)
    assert page.alts[: len(names)] == [f"Samples of the same seeds by {name}" for name in names]
    figures = page.alts[len(names) :]
    assert begun(figures, FIGURES)
    assert len(figures) == len(list(charts(Run.of(copied))))
    again, config = page.texts["pre"]
    assert again.startswith("autodiffusion search small:model --steps 3 ")
    assert Settings.of("page", **yaml.safe_load(config)) == stored_settings(copied)
    identity = dict(map(tuple, page.tables["To run it again"][1:]))  # type: ignore[arg-type]
    assert identity == {
        "model": "small:model",
        "autodiffusion": ledger(copied)[0]["autodiffusion"],
        "SHA-256 of the plan found": Plan.load(copied / "plan.json").digest,
    }


def test_pictures_of_before_are_shown_whole(copied: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(copied / "grid.png")
    page = parsed(copied)
    assert page.alts[0] == "Samples of the same seeds by each plan of the table"
    (copied / "grid.png").write_bytes(b"not a picture")
    assert len(parsed(copied).images) == len(list(charts(Run.of(copied))))


def test_the_same_run_is_the_same_page(copied: Path) -> None:
    first = report(copied).read_bytes()
    assert report(copied).read_bytes() == first
    assert report(copied, copied / "other.html").read_bytes() == first


def test_of_an_unfinished_search(copied: Path) -> None:
    events = keep(copied, lambda event: event["event"] == "start" or event.get("generation") == 0)
    (copied / "grid.png").unlink()
    page = parsed(copied)
    assert page.rows == []
    begins = (
        "Scores of",
        "Time steps on the log-SNR curve of the model, of best so far",
        "Occurrences",
        "Network eval",
    )
    assert begun(page.alts, begins)
    assert f"not finished: {len(events[1]['scores'])} candidates are scored" in page.text("p")
    best = min(score["value"] for score in events[1]["scores"])
    assert f"kid {best:.4g} on 24 samples of the search's own noise" in page.text("p")
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
    assert len(items) == len({score["problem"] for score in failed}) < len(failed)
    told = next(item for item in items if item.startswith("8 of samples 0 to 7 are not finite: "))
    plans = told.partition(": ")[2].split("; ")
    assert "ddim at 99, 66, 32" in plans
    assert len(plans) == len(set(plans))
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
    assert page.texts["li"][0].startswith("<img src=x onerror=alert(1)>: ")
    assert yaml.safe_load(page.texts["pre"][1])["model"] == name
    assert "Samples of the same seeds by uniform" in page.alts


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
    steps = [
        {"t": 95, "skip": [], "params": {"noise": 2.4}},
        {"t": 60.25, "skip": []},
        {"t": 31, "skip": [], "params": {"data1": -1.05, "noise": 0.0001}},
        {"t": 4, "skip": [], "params": {"data1": 0.43}},
    ]
    found_is(copied, {"solver": "gls", "steps": steps})
    page = parsed(copied)
    assert "Free numbers" in page.text("h2")
    assert page.tables["Free numbers of the solver"] == [
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


def test_a_plan_that_differs_in_its_end_or_solver_is_no_plan_of_the_table(copied: Path) -> None:
    uniform = next(
        row["plan"]
        for line in (copied / "study.jsonl").read_text().splitlines()
        for row in json.loads(line).get("rows", [])
        if row["name"] == "uniform"
    )

    def said(**changed: Any) -> str:
        found_is(copied, uniform | changed)
        return " ".join(parsed(copied).texts["p"])

    assert "It is the plan of uniform" in said()
    assert "It is the plan of" not in said(solver="plms")
    assert "It is the plan of" not in said(solver_options={"clip": False})
    assert "It is the plan of" not in said(solver="dpm_solver++", steps=[{"t": 95, "skip": []}], end=0.5)


def test_folders_without_a_search_are_refused(tmp_path: Path, finished: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", finished / "plan.json"):
        with pytest.raises(InputError, match="holds no search; give the folder"):
            report(folder)
    assert list(tmp_path.iterdir()) == []


# the pictures


def test_a_mosaic_holds_each_image_once() -> None:
    images = torch.arange(1, 8, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 4, 5)
    tiles = mosaic(images)
    assert tiles.shape == (3 * 5 - 1, 3 * 6 - 1, 3)
    for i in range(7):
        top, left = (i // 3) * 5, (i % 3) * 6
        assert (tiles[top : top + 4, left : left + 5] == i + 1).all()
    assert (tiles == 0).sum() == tiles.size - 7 * 3 * 4 * 5


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_picture_keeps_colours(tmp_path: Path, channels: int) -> None:
    colour = torch.tensor([250, 20, 90, 7], dtype=torch.uint8)[:channels].view(1, channels, 1, 1)
    picture({"a": colour.expand(4, channels, 8, 8), "b $x$": colour.expand(4, channels, 8, 8)}, tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).reshape(-1, 3)
    expected = (250, 20, 90) if channels >= 3 else (250, 250, 250)
    assert (pixels == expected).all(1).mean() > 0.2


def test_a_picture_is_taken_apart_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    named = {
        name: torch.from_numpy(rng.integers(0, 256, (9, 3, 8, 6), dtype=np.uint8)) for name in ("found", "$1 <b>", "x")
    }
    picture(named, tmp_path / "p.png")
    parts = panels(tmp_path / "p.png")
    assert list(parts) == list(named)
    for name, image in parts.items():
        tiles = mosaic(named[name])
        times = image.height // tiles.shape[0]
        assert times > 1
        np.testing.assert_array_equal(np.asarray(image), tiles.repeat(times, 0).repeat(times, 1))


def test_a_large_picture_is_shrunk(tmp_path: Path) -> None:
    grey = torch.full((4, 1, 1000, 900), 77, dtype=torch.uint8)
    picture({"large": grey}, tmp_path / "p.png")
    [image] = panels(tmp_path / "p.png").values()
    assert image.size == (1440, 1600)
    assert np.median(np.asarray(image)) == 77
