"""Memory and time of a large search whose model costs next to nothing, and of resuming it, by its number of candidates.

    .venv/bin/python -m bench.sizes [--candidates 500 1000 2000] [--samples 5000] [--noise common] [--json FILE]

Each search runs in a process of its own, on one thread; so does its resumption, from a ledger that lacks its last two
lines. Time is of the processor. What is spent on the model is most of it all the same: 2,000 candidates of 4 steps and
5,000 samples are 40 million network evaluations.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autodiffusion import Model, NoiseSchedule, Settings, search
from autodiffusion._study.study import LEDGER

SHAPE, FEATURES = (1, 4, 4), 64
OF_MODEL = {"model": "bench.sizes:model", "features": "bench.sizes:features"}


def model() -> Model:
    """Takes all that it sees for noise."""
    return Model(lambda x, t, label: x, NoiseSchedule.cosine(), SHAPE, features="bench.sizes:features", name="free")


class Projection(nn.Module):
    """Fixed random features of a 4x4 image."""

    def __init__(self) -> None:
        super().__init__()
        draw = np.random.default_rng(0).normal(size=(16, FEATURES)).astype(np.float32)
        self.weights = nn.Parameter(torch.from_numpy(draw), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.weights)


features = Projection


def settings(folder: Path, candidates: int, samples: int, noise: str) -> Settings:
    reference = folder / "reference.npz"
    if not reference.exists():
        images = np.random.default_rng(0).integers(0, 256, (1000, 4, 4, 1), dtype=np.uint8)
        np.savez(reference, arr_0=images)
    options = {"candidates": candidates, "population": min(50, candidates)}
    return Settings.of(
        **OF_MODEL,
        reference=str(reference),
        steps=4,
        strategy="random",
        strategy_options=options,
        samples=samples,
        confirm_samples=samples,
        finalists=1,
        noise=noise,
        batch_size=1000,
        threads=1,
    )


def once(folder: Path, candidates: int, samples: int, noise: str) -> dict[str, float]:
    """Searches or resumes in this process, without picture and report; seconds of the processor and peak MiB."""
    loop: Any = import_module("autodiffusion._search.loop")
    loop.report, loop.show = lambda *parts: None, lambda *parts: None
    start = time.process_time()
    search(settings(folder, candidates, samples, noise), folder / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.process_time() - start, "peak": peak}


def measure(candidates: int, samples: int, noise: str) -> dict[str, float]:
    """The row of a search: its own figures, its ledger's size, and those of its resumption."""

    def run(folder: str) -> dict[str, float]:
        command = [sys.executable, "-m", "bench.sizes", "--once", folder, "--candidates", str(candidates)]
        command += ["--samples", str(samples), "--noise", noise]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    with tempfile.TemporaryDirectory() as folder:
        first, ledger = run(folder), Path(folder) / "run" / LEDGER
        lines = ledger.read_bytes().splitlines(keepends=True)
        size = len(b"".join(lines))
        ledger.write_bytes(b"".join(lines[:-2]))
        again = run(folder)
        if len(ledger.read_bytes()) != size:
            raise SystemExit("the resumed search left another ledger")
    return {
        "candidates": candidates,
        "samples": samples,
        "peak": first["peak"],
        "seconds": first["seconds"],
        "ledger": size / 1024,
        "resumed": again["seconds"],
        "resumed_peak": again["peak"],
    }


def table(rows: list[dict[str, float]]) -> str:
    head = ["candidates", "samples", "peak MiB", "seconds", "ledger KiB", "seconds resumed", "peak MiB resumed"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [f"{row['candidates']:,}", f"{row['samples']:,}", f"{row['peak']:.0f}", f"{row['seconds']:.1f}"]
        cells += [f"{row['ledger']:.0f}", f"{row['resumed']:.1f}", f"{row['resumed_peak']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--noise", choices=("common", "fresh"), default="common")
    parser.add_argument("--json", type=Path, help="writes the rows to this file as well")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        return print(json.dumps(once(args.once, args.candidates[0], args.samples, args.noise)))
    rows = [measure(candidates, args.samples, args.noise) for candidates in args.candidates]
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
