"""Every number that a report says is in the study's files, or is a sum, a count or a ratio of what is in them."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import Page, copied, finished, keep, ledger, of, parsed
from test_report_figures import layered

from autodiffusion._report import report
from autodiffusion._report.mosaics import panels
from autodiffusion._search.loop import search

__all__ = ["copied", "finished", "layered"]  # fixtures of the reports' tests

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w]|\.\d)")
SAID = {95, 15}
"""Per cent of the intervals, and of how many plans the time steps are counted."""
PARTS = ("p", "td", "th", "h1", "h2", "h3", "figcaption", "span", "li", "title")
"""What is read. Commands and options in ``pre`` are held to the settings elsewhere; axes of figures have no data."""


def numbers(page: Page) -> Iterator[str]:
    """Every number that a reader sees, as it is written."""
    hashes = re.compile(r"SHA-256|\b[0-9a-f]{64}\b")
    for text in [*("\n".join(page.texts.get(tag, [])) for tag in PARTS), *page.alts]:
        yield from NUMBER.findall(hashes.sub("", text))


def leaves(content: Any) -> Iterator[float]:
    """Every number in a file, those within its texts too."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(key)
            yield from leaves(value)
    elif isinstance(content, list):
        for value in content:
            yield from leaves(value)
    elif isinstance(content, str):
        yield from (float(text.replace(",", "")) for text in NUMBER.findall(content))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield float(content)


def known(folder: Path) -> set[float]:
    """The numbers of a study's files, and what is worked out of them."""
    events, config = ledger(folder), yaml.safe_load((folder / "config.yaml").read_text())
    times = folder / "sampling_times.json"
    ms = json.loads(times.read_text()) if times.exists() else {"ms": {}}
    titles = list(panels(folder / "grid.png")) if (folder / "grid.png").exists() else []
    found = {*leaves(events), *leaves(config), *leaves(ms), *leaves(titles), *SAID}
    scored = [event for event in events if event["event"] == "scores"]
    entries = [(event, score) for event in scored for score in event["scores"]]
    plans = {json.dumps(score["plan"], sort_keys=True): len(score["plan"]["steps"]) for _, score in entries}
    spent, saved = (sum(event[key] for event in scored) for key in ("evaluations", "saved"))
    found |= {spent, saved, len(plans), len(entries), len(scored), len({event["generation"] for event in scored})}
    # candidates with all samples, less what was made and shared: of solvers with one evaluation a step
    found.add(sum(plans.values()) * config["samples"] - spent - saved)
    found.add(sum(event["samples"] == config["samples"] and event.get("anchor") is None for event, _ in entries))
    rows = next((event["rows"] for event in events if event["event"] == "confirm"), [])
    layers = next((event.get("layers", []) for event in events if event["event"] == "start"), [])
    found |= {len(rows), len(layers)}
    for row in rows:
        skips = [len(step["skip"]) for step in row["plan"]["steps"]]
        found |= {len(skips), sum(skips), len(skips) * len(layers), *range(1, len(skips) + 1)}
        found |= {len(layers) - skip for skip in skips}
        found |= {row["nfe"] / other["nfe"] for other in rows}
        found |= {row.get("cost", {}).get("macs", 0) / factor for factor in (1e3, 1e6, 1e9)}
    middles = [quartiles[1] for quartiles in ms["ms"].values()]
    return found | {one / other for one in middles for other in middles}


def unknown(page: Page, folder: Path) -> list[str]:
    """The numbers of a page that are none of its study's, as far as the page writes them out."""
    values = known(folder)

    def close(text: str) -> bool:
        said = float(text.replace(",", ""))
        digits, _, exponent = text.replace(",", "").partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
        return any(abs(value - said) <= 0.5001 * unit for value in values if math.isfinite(value))

    return [text for text in numbers(page) if not close(text)]


@pytest.mark.parametrize("of_layers", [False, True], ids=["whole", "layers"])
def test_every_number_is_the_studys(finished: Path, layered: Path, of_layers: bool) -> None:
    folder = layered if of_layers else finished
    page = parsed(folder)
    assert len(list(numbers(page))) > 60
    assert unknown(page, folder) == []


def test_every_number_of_a_race_with_free_numbers_is_the_studys(real_images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(of(real_images, strategy="ladder", strategy_options={}, solver="gls", budget=6000, steps=3), folder)
    page = parsed(folder)
    cost = dict(map(tuple, page.tables["What it cost"][1:]))  # type: ignore[arg-type]
    assert "saved by racing: candidates that were out with fewer samples" in cost
    assert unknown(page, folder) == []


def test_every_number_of_an_interrupted_search_is_the_studys(copied: Path) -> None:
    keep(copied, lambda event: event["event"] == "start" or event.get("generation") == 0)
    for name in ("grid.png", "sampling_times.json"):
        (copied / name).unlink()
    page = parsed(copied)
    assert "not finished" in page.text("p")
    assert unknown(page, copied) == []


def test_a_number_of_nobodys_is_seen(copied: Path) -> None:
    """Each number of the first sentences and of the tables, moved by some digits, is one that no file has."""
    html = report(copied).read_text(encoding="utf-8")
    [confirmed] = [event for event in ledger(copied) if event["event"] == "confirm"]
    shown = [f"{row['scores'][metric]['value']:.4g}" for row in confirmed["rows"] for metric in ("kid", "fid")]
    shown += [f"{event['evaluations']:,}" for event in ledger(copied) if event["event"] == "confirm"]
    for text in shown:
        assert text in html
        wrong = f"{7.3 * float(text.replace(',', '')) + 1234.5678:.8g}"
        assert wrong in unknown(Page(html.replace(text, wrong)), copied)


def test_another_studys_report_is_not_this_ones(finished: Path, layered: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    assert len(unknown(parsed(layered), folder)) > 5
