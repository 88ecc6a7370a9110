"""Blocks of what has no score yet, on disk: a search that is interrupted does not sample them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autodiffusion._errors import InputError
from autodiffusion._npz import Arrays
from autodiffusion._sampling.blocks import Done, Task, Workers
from autodiffusion._sampling.sampling import Cost, Tick
from autodiffusion.features import Features

FOLDER = "unfinished"
"""Where a study keeps them."""
WORTH = 1.0
"""Seconds of sampling that are worth files; what took less is in memory only, until it is that much together."""
PARTS = ("vectors", "logits", "spatial")


@dataclass
class Unfinished:
    """Workers whose blocks are kept until the scores that stand on them are in the ledger.

    Attributes:
        workers: who samples.
        folder: where the blocks are kept; not there while there are none.
        events: how many the ledger has. With the next one all blocks before it are done with.
    """

    workers: Workers
    folder: Path
    events: Callable[[], int]
    _fresh: dict[str, tuple[Task, Done]] = field(default_factory=dict)
    _seconds: float = 0.0

    def __post_init__(self) -> None:
        self._at = self.events()

    def each(self, tasks: Sequence[Task], tick: Tick | None = None) -> Iterator[tuple[int, Done]]:
        """What comes of tasks, as it comes, each with its place among them; first what is kept."""
        if self.events() != self._at:
            self.clear()
        left = []
        for place, task in enumerate(tasks):
            kept = load(self.folder / _name(task), task)
            if kept is None:
                left.append((place, task))
                continue
            if tick:
                tick(kept.cost.evaluations)
            yield place, kept
        try:
            for number, done in self.workers.each([task for _, task in left], tick):
                place, task = left[number]
                self._fresh[_name(task)] = (task, done)
                self._seconds += done.seconds
                if self._seconds >= WORTH:
                    self._save()
                yield place, done
        except KeyboardInterrupt:
            self._save()
            raise

    def forget(self, noise: str) -> None:
        """Frees the states of a noise."""
        self.workers.forget(noise)

    def clear(self) -> None:
        """Removes them all: what stands on them is in the ledger."""
        self._fresh, self._seconds, self._at = {}, 0.0, self.events()
        if self.folder.is_dir():
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()

    def _save(self) -> None:
        for name, (task, done) in self._fresh.items():
            save(self.folder / name, task, done)
        self._fresh, self._seconds = {}, 0.0


def save(path: Path, task: Task, done: Done) -> None:
    """Writes what came of a task in one piece, as arrays and JSON in an ``.npz`` file."""
    arrays: dict[str, Any] = {
        f"{part} {i}": tensor.numpy()
        for i, found in enumerate(done.found)
        if isinstance(found, Features)
        for part in PARTS
        if (tensor := getattr(found, part)) is not None
    }
    about = {
        "problems": [None if isinstance(found, Features) else found for found in done.found],
        "evaluations": done.cost.evaluations,
        "saved": done.cost.saved,
        "runs": [[task.plans.index(plan) for plan in run] for run in done.runs],
    }
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    partial.replace(path)


def load(path: Path, task: Task) -> Done | None:
    """What came of ``task``, if it is there whole."""
    if not path.exists():
        return None
    try:
        arrays = Arrays(path)
        about = json.loads(arrays.read("about").tobytes())
        found = [problem or _features(arrays, i, len(task.block)) for i, problem in enumerate(about["problems"])]
        runs = tuple(tuple(task.plans[i] for i in run) for run in about["runs"])
        cost = Cost(int(about["evaluations"]), int(about["saved"]))
        return Done(found, cost, runs) if len(found) == len(task.plans) else None
    except (InputError, ValueError, TypeError, KeyError, IndexError):  # torn or damaged: it is sampled again
        return None


def _features(arrays: Arrays, i: int, samples: int) -> Features:
    there = [part for part in PARTS if f"{part} {i}" in arrays.shapes]
    parts = {
        part: torch.from_numpy(arrays.numbers(f"{part} {i}", 2, np.float16 if part == "spatial" else np.float32))
        for part in there
    }
    if any(len(tensor) != samples for tensor in parts.values()):
        raise ValueError
    return Features(**parts)


def _name(task: Task) -> str:
    """Of the file for a task. That it may go on from states changes neither what is found nor what it counts."""
    block = (task.block.start, task.block.stop)
    content = json.dumps([task.seed, *block, *(plan.digest for plan in task.plans)])
    return f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.npz"
