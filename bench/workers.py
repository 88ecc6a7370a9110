"""How much faster two Ray actors are than one, and one than this process, where the network takes the time.

    .venv/bin/python -m bench.workers [--workers 1 2] [--blocks 24] [--samples 128] [--rounds 3] [--json FILE]

The bundled model, one thread each, the same blocks of noise, by turns; wall time, of which the least counts. Starting
the actors is not counted. Two actors need two cores that nobody else uses.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse
import json
import time
from pathlib import Path

import torch

from autodiffusion import Plan, load_model
from autodiffusion._sampling.actor import Recipe
from autodiffusion._sampling.blocks import Sampler, Task, Workers
from autodiffusion._sampling.cluster import Cluster
from autodiffusion._sampling.errands import Here
from autodiffusion.features._base import load as load_features

HERE = "this process"


def tasks(blocks: int, samples: int) -> list[Task]:
    """Blocks of the same size, of plans that share nothing."""
    plans = tuple(Plan.of("ddim", [float(t), t / 2, t / 8]) for t in (960, 880, 800))
    return [Task("bench", 0, range(i * samples, (i + 1) * samples), plans) for i in range(blocks)]


def seconds(workers: Workers, work: list[Task]) -> float:
    start = time.perf_counter()
    for _ in workers.each(work):
        pass
    return time.perf_counter() - start


def measure(model: str, counts: list[int], work: list[Task], rounds: int) -> dict[str, float]:
    """The least seconds of this process and of each number of actors, by name."""
    loaded = load_model(model)
    here = Here(Sampler(loaded, load_features(loaded.features)))
    least: dict[str, float] = {}
    for _ in range(rounds):
        found = {HERE: seconds(here, work)}
        for count in counts:
            with Cluster(Recipe(model, {"device": "cpu"}), count) as workers:
                while len(workers._idle) < count:  # all are there before it begins
                    workers._wait()
                seconds(workers, work[:count])  # and have done something
                found[f"{count} actor{'s' * (count > 1)}"] = seconds(workers, work)
        least = {name: min(value, least.get(name, value)) for name, value in found.items()}
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--samples", type=int, default=128, help="in a block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="writes the seconds to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    least = measure(args.model, args.workers, tasks(args.blocks, args.samples), args.rounds)
    one = least[f"{args.workers[0]} actor{'s' * (args.workers[0] > 1)}"]
    for name, value in least.items():
        print(f"{name:<14} {value:8.2f} s   {one / value:.2f} times as fast as {args.workers[0]} actor")
    if args.json:
        args.json.write_text(json.dumps(least, indent=1) + "\n")


if __name__ == "__main__":
    main()
