"""Blocks that are kept until their scores are in the ledger: whole or not at all, and never sampled twice."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from torch import Tensor

from autodiffusion import Plan, Settings, search
from autodiffusion._sampling import unfinished
from autodiffusion._sampling.blocks import Done, Task
from autodiffusion._sampling.sampling import Cost
from autodiffusion._sampling.unfinished import load, save
from autodiffusion.features import Features

PLANS = (Plan.of("ddim", [90.0, 50.0]), Plan.of("ddim", [90.0, 40.0]), Plan.of("ddim", [80.0, 40.0]))
TASK = Task("a", 5, range(8, 12), PLANS)


def done(*parts: str) -> Done:
    """The first and last plan of the task have features, with these parts too; the other has a reason instead."""
    rng = np.random.default_rng(0)

    def features() -> Features:
        vectors, logits, spatial = (torch.from_numpy(rng.normal(size=(4, n)).astype(np.float32)) for n in (3, 2, 5))
        given = {"logits": logits, "spatial": spatial.half()}
        return Features(vectors, **{part: given[part] for part in parts})

    return Done([features(), "größer\n", features()], Cost(20, 4), ((PLANS[2],), (PLANS[0],)))


def assert_same(one: Done, other: Done) -> None:
    assert (one.cost, one.runs) == (other.cost, other.runs)
    for here, there in zip(one.found, other.found, strict=True):
        if isinstance(here, Features) and isinstance(there, Features):
            for part in unfinished.PARTS:
                first, second = getattr(here, part), getattr(there, part)
                assert (first is None) == (second is None)
                assert first is None or (torch.equal(first, second) and first.dtype == second.dtype)
        else:
            assert here == there


@pytest.mark.parametrize("parts", [(), ("logits",), ("spatial",), ("logits", "spatial")])
def test_what_is_kept_comes_back(tmp_path: Path, parts: Sequence[str]) -> None:
    file = tmp_path / "kept" / "a.npz"
    assert load(file, TASK) is None
    save(file, TASK, done(*parts))
    kept = load(file, TASK)
    assert kept
    assert_same(kept, done(*parts))
    assert [entry.name for entry in file.parent.iterdir()] == ["a.npz"]


def test_what_is_not_whole_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    save(file, TASK, done("logits"))
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert load(file, TASK) is None, length
    rng = np.random.default_rng(0)
    for _ in range(300):  # a byte that is another is seen, or is none that matters
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        kept = load(file, TASK)
        if kept:
            assert_same(kept, done("logits"))
    file.write_bytes(whole)
    assert load(file, replace(TASK, block=range(8, 13))) is None
    assert load(file, replace(TASK, plans=PLANS[:2])) is None


# whole searches

OPTIONS = {"samples": 48, "confirm_samples": 60, "batch_size": 4, "budget": 2500, "threads": 1}


def settings(images: Path, cache_mb: int) -> Settings:
    model = {"model": "small:model", "features": "small:features", "reference": str(images)}
    return Settings.of(**model, steps=3, cache_mb=cache_mb, **OPTIONS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int], None]], list[tuple[float, int]]]]:
    """Counts what the network is asked, after doing something at each count."""
    whole = small.model

    def counting(deed: Callable[[int], None]) -> list[tuple[float, int]]:
        seen: list[tuple[float, int]] = []

        def model() -> object:
            made = whole()

            def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
                seen.append((float(t[0]), len(x)))
                deed(len(seen))
                return made.network(x, t, label)

            return replace(made, network=network)

        monkeypatch.setattr(small, "model", model)
        return seen

    return counting


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("worth", "cache_mb"), [(0.0, 0), (1.0, 0), (1.0, 1024)])
def test_interrupted_it_samples_nothing_twice(
    real_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: Callable[..., list[tuple[float, int]]],
    worth: float,
    cache_mb: int,
) -> None:
    monkeypatch.setattr(unfinished, "WORTH", worth)
    given = settings(real_images, cache_mb)
    seen = asked(lambda _: None)
    search(given, tmp_path / "whole")
    whole, first = len(seen), json.loads((tmp_path / "whole" / "study.jsonl").read_text().splitlines()[1])
    assert first["samples"] == 8  # two blocks of 4
    blocks = [n for n, (_, samples) in enumerate(seen, 1) if samples == 4]  # before, one sample counts the layers
    # while the first block is sampled: it is finished, and the second is not begun
    seen = asked(lambda count: signal.raise_signal(signal.SIGINT) if count == blocks[1] else None)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(given, folder)
    assert len(list((folder / "unfinished").iterdir())) == 1
    assert len((folder / "study.jsonl").read_text().splitlines()) == 1  # its start
    before = [samples for _, samples in seen].count(4)
    assert before > 2
    seen = asked(lambda _: None)
    search(given, folder)
    if not cache_mb:  # or the states of the block are made again when later plans go on from them
        assert before + len(seen) == whole
    assert not (folder / "unfinished").exists()
    for name in ("study.jsonl", "plan.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
