"""The measurements of large searches and of many workers, in small; and that what they measure stays linear."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from autodiffusion import Plan, search
from autodiffusion._sampling.errands import Here
from autodiffusion._search.loop import explore
from autodiffusion._study.study import LEDGER

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import driver_share, sizes, workers
from bench.driver_share import Recorder, Round, simulate

ROOT = Path(__file__).parents[1]


def test_workers_gain_until_there_are_as_many_as_blocks() -> None:
    rounds = [Round([1.0] * 8), Round([1.0] * 8)]
    for count, seconds in ((1, 16), (2, 8), (3, 6), (4, 4), (8, 2), (256, 2)):
        run = simulate(rounds, count, 1, 0.0)
        assert run.seconds == seconds
        assert run.share == 0
        assert run.busy == pytest.approx(16 / (seconds * count))


def test_the_driver_works_alone_between_rounds_and_while_it_hands_out() -> None:
    rounds = [Round([2.0] * 4, 1.0)] * 3
    run = simulate(rounds, 4, 1, 0.0)
    assert (run.seconds, run.share) == (9.0, 1 / 3)
    slower = simulate(rounds, 4, 10, 0.0)
    assert (slower.seconds, slower.share) == (63.0, pytest.approx(1 / 21))
    # with a second to hand out each, the last is begun after four
    assert simulate(rounds[:1], 4, 1, 1.0).seconds == 4 + 2 + 1
    # however many workers there are, there are no more blocks in a second than the driver hands out
    many = simulate([Round([1.0] * 1000)], 1000, 1, 0.01)
    assert many.seconds == pytest.approx(1000 * 0.01 + 1)


def test_a_recording_has_every_block_of_every_round(tmp_path: Path) -> None:
    given = sizes.settings(tmp_path, 6, 40, "common").model_copy(update={"batch_size": 16})
    recorder = Recorder(Here(driver_share.Sampler(sizes.model(), driver_share.load_features("bench.sizes:features"))))
    explore(given, tmp_path / "run", 1.0, workers=recorder)
    assert [len(one.blocks) for one in recorder.rounds] == [4]  # 8, 12, 16 and 4: cut where a first look ends
    assert all(seconds > 0 for one in recorder.rounds for seconds in one.blocks)
    assert recorder.rounds[0].driver > 0


def test_the_page_has_a_row_for_each_number_of_workers() -> None:
    recorded = {"hand_out": 0.002, "searches": {"one": [{"blocks": [0.5, 0.5], "driver": 0.1}]}}
    page = driver_share.text(recorded)
    assert page.count("\n| ") - page.count("\n| ---") == 1 + len(driver_share.WORKERS)  # and its head
    assert "| 2 | 1.8 (17%) |" in page  # 1.104 s as against 0.604, of which the driver takes 0.104


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("noise", ["common", "fresh"])
def test_a_ledger_is_read_in_proportion_to_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    validated = [0]
    whole = BaseModel.model_validate.__func__  # type: ignore[attr-defined]

    def counting(cls: type[BaseModel], *parts: object, **more: object) -> object:
        validated[0] += cls is Plan
        return whole(cls, *parts, **more)

    counts = []
    for candidates in (20, 40, 80):
        folder = tmp_path / str(candidates)
        folder.mkdir()
        given = sizes.settings(folder, candidates, 4, noise)
        given = given.model_copy(update={"strategy_options": {"candidates": candidates, "population": 4}})
        search(given, folder / "run")
        lines = (folder / "run" / LEDGER).read_bytes().splitlines(keepends=True)
        (folder / "run" / LEDGER).write_bytes(b"".join(lines[:-2]))
        with monkeypatch.context() as patch:
            patch.setattr(Plan, "model_validate", classmethod(counting))
            validated[0] = 0
            search(given, folder / "run")
        counts.append(validated[0])
        assert (folder / "run" / LEDGER).read_bytes() == b"".join(lines)
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), abs=8)


def test_blocks_of_the_bench_share_nothing() -> None:
    work = workers.tasks(3, 4)
    assert [len(task.block) for task in work] == [4] * 3
    assert len({task.block.start for task in work}) == 3
    times = [plan.times for plan in work[0].plans]
    assert len({first for first, *_ in times}) == len(times)


# what the page says is what was measured


def test_the_pages_figures_are_those_of_the_measurements() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    rows = json.loads((ROOT / "bench" / "results" / "sizes.json").read_text())
    assert sizes.table(rows) in page
    assert max(row["peak"] for row in rows) < 1024
    assert rows[-1]["candidates"] == 2000
    recorded = json.loads((ROOT / "bench" / "results" / "driver_share.json").read_text())
    assert (ROOT / "bench" / "results" / "driver_share.md").read_text() == driver_share.text(recorded)
    found = {name: [Round(**one) for one in kept] for name, kept in recorded["searches"].items()}

    def gain(name: str, count: int, slower: float) -> float:
        one, many = (simulate(found[name], n, slower, recorded["hand_out"]) for n in (1, count))
        return one.seconds / many.seconds

    words = " ".join(page.split())
    usual, small, wide = found
    assert f"a round has {np.mean([len(one.blocks) for one in found[usual]]):.1f} blocks on average" in words
    assert f"more than one worker makes it {gain(usual, 256, 100):.1f} times as fast, however" in words
    assert f"With blocks of 16 that is {gain(small, 256, 100):.1f} times" in words
    assert f"a round has {len(found[wide][0].blocks)}, and" in words
    assert f"is sampled {math.floor(gain(wide, 32, 10))} times as fast by 32 workers" in words
    assert f"the gain ends at {gain(wide, 256, 1):.0f}" in words
