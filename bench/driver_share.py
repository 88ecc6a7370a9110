"""How a search scales with its workers: a simulation with recorded times of blocks and of the driver.

    .venv/bin/python -m bench.driver_share [--record] [--budget 20000] [--out FOLDER]

``--record`` searches on the bundled model, in one process on one thread, and notes how long each block of noise and
each round's own work (strategy, metric, ledger) take; then how long the driver is busy with each block that it hands to
a Ray actor; all in time of the processor. Without it the times in bench/results/driver_share.json are taken. The
simulation hands the blocks of a round to whoever is free, one after the other, and begins no round before the driver is
done with the one before, as a search does. A slower network is the same search with longer blocks. Writes
driver_share.md.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autodiffusion import Plan, Settings, load_model
from autodiffusion._sampling.actor import Recipe
from autodiffusion._sampling.blocks import Done, Sampler, Task, Workers
from autodiffusion._sampling.cluster import Cluster
from autodiffusion._sampling.errands import Here
from autodiffusion._sampling.sampling import Tick
from autodiffusion._search.loop import explore
from autodiffusion.features._base import load as load_features

RESULTS = Path(__file__).parent / "results"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SLOWER = (1, 10, 100)
"""Times as long as the bundled model's that a network takes for a block."""
SEARCHES: dict[str, dict[str, Any]] = {
    "default, blocks of 128": {"samples": 500, "batch_size": 128},
    "default, blocks of 16": {"samples": 500, "batch_size": 16},
    "evolution on 5,000 samples, blocks of 16": {"samples": 5000, "batch_size": 16, "strategy": "evolution"}
    | {"strategy_options": {"population": 6, "generations": 2, "parents": 2, "mutations": 3, "crossovers": 1}},
}
"""What is recorded: a budget is given to the default searches."""


@dataclass
class Round:
    """One round of a search: what goes out to workers together.

    Attributes:
        blocks: seconds that each takes whoever samples it.
        driver: seconds of the driver's own until the next round begins.
    """

    blocks: list[float]
    driver: float = 0.0


@dataclass
class Recorder:
    """Workers that note what they and their driver do.

    Attributes:
        workers: who samples.
        rounds: what was noted.
    """

    workers: Workers
    rounds: list[Round] = field(default_factory=list)
    _since: float | None = None

    def each(self, tasks: Sequence[Task], tick: Tick | None = None) -> Iterator[tuple[int, Done]]:
        found, before = self.workers.each(tasks, tick), self._book()
        if tasks:
            self.rounds.append(Round([]))
        for place, done in found:
            self.rounds[-1].blocks.append(time.process_time() - before)
            self._since = time.process_time()
            yield place, done
            before = self._book()
        self._since = time.process_time()

    def _book(self) -> float:
        """Counts for the driver what has passed since a block was done; gives the time."""
        now = time.process_time()
        if self._since is not None and self.rounds:
            self.rounds[-1].driver += now - self._since
        return now

    def forget(self, noise: str) -> None:
        self.workers.forget(noise)


def record(options: dict[str, Any]) -> list[Round]:
    """The rounds of a search on the bundled model, its confirmation left out."""
    settings, model = Settings.of(model="mnist", steps=4, threads=1, **options), load_model("mnist")
    recorder = Recorder(Here(Sampler(model, load_features(model.features))))
    with tempfile.TemporaryDirectory() as folder:
        explore(settings, Path(folder) / "run", 1.0, workers=recorder)
    return recorder.rounds


def handing_out(blocks: int = 400) -> float:
    """Seconds of the driver's processor time for each block that a Ray actor samples."""
    plans = tuple(Plan.of("ddim", [900.0, 600.0, 300.0, float(t)]) for t in range(20, 38))
    with Cluster(Recipe("mnist", {"device": "cpu"}), 2) as workers:
        tasks = [Task("a", 0, range(i, i + 1), plans, 2**20) for i in range(blocks)]
        list(workers.each(tasks[:20]))
        before = time.process_time()
        list(workers.each(tasks))
        return (time.process_time() - before) / blocks


@dataclass(frozen=True)
class Run:
    """A simulated search.

    Attributes:
        seconds: that it takes.
        share: of that in which the driver alone works, 0 to 1.
        busy: share of their time in which the workers sample, 0 to 1.
    """

    seconds: float
    share: float
    busy: float


def simulate(rounds: Sequence[Round], workers: int, slower: float, hand_out: float) -> Run:
    """A search with so many workers, all alike.

    Args:
        slower: times as long that a block takes.
        hand_out: seconds of the driver for each block.
    """
    now, alone = 0.0, 0.0
    for one in rounds:
        free, driver = [now] * workers, now
        heapq.heapify(free)
        for block in one.blocks:
            driver = max(driver, heapq.heappop(free)) + hand_out
            heapq.heappush(free, driver + slower * block)
        now = max(driver, *free) + one.driver
        alone += one.driver
    sampled = slower * sum(sum(one.blocks) for one in rounds)
    handed = hand_out * sum(len(one.blocks) for one in rounds)
    return Run(now, (alone + handed) / now, sampled / (workers * now))


def text(recorded: dict[str, Any]) -> str:
    """The page of results."""
    hand_out = recorded["hand_out"]
    lines = [
        "# The driver's share",
        "",
        "Made by `.venv/bin/python -m bench.driver_share` from times recorded on the bundled model, on one thread. The",
        f"driver is busy for {1000 * hand_out:.1f} ms with each block that it hands to a worker. Speed is that of so",
        "many workers over one; in brackets, the share of the time in which the driver works: it scores, chooses,",
        "writes, hands out. Where that is small and more workers gain nothing, a round has fewer blocks than workers.",
    ]
    for name, kept in recorded["searches"].items():
        rounds = [Round(**one) for one in kept]
        blocks, driver = sum(len(one.blocks) for one in rounds), sum(one.driver for one in rounds)
        sampled = sum(sum(one.blocks) for one in rounds)
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        most = max(len(one.blocks) for one in rounds)
        lines += [
            f"{len(rounds)} rounds of {blocks / len(rounds):.1f} blocks on average, {most} at most; a block takes",
            f"{1000 * sampled / blocks:.0f} ms, the driver's own work {1000 * driver / len(rounds):.0f} ms a round.",
        ]
        lines += [
            "",
            "| workers | " + " | ".join(f"network {slower} x" for slower in SLOWER) + " |",
            "|" + " --- |" * 4,
        ]
        for workers in WORKERS:
            cells = []
            for slower in SLOWER:
                one, many = (simulate(rounds, count, slower, hand_out) for count in (1, workers))
                cells.append(f"{one.seconds / many.seconds:.1f} ({many.share:.0%})")
            lines.append(f"| {workers} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="record the times anew, which takes minutes")
    parser.add_argument("--budget", type=int, default=20_000, help="network evaluations of each default search")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of driver_share.json and driver_share.md")
    args = parser.parse_args()
    kept = args.out / "driver_share.json"
    if args.record:
        searches = {}
        for name, options in SEARCHES.items():
            budget = {} if "strategy" in options else {"budget": args.budget}
            searches[name] = [vars(one) for one in record(options | budget)]
        kept.write_text(json.dumps({"hand_out": handing_out(), "searches": searches}) + "\n")
    page = text(json.loads(kept.read_text()))
    (args.out / "driver_share.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
