"""Processor time of one FID on one thread: the value alone, and with its pseudo-values, which hold the value as well.

    .venv/bin/python bench/fid_time.py [RUNS]

The least of several runs. The root of the reference's covariance is computed once for a reference and timed by itself.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from autodiffusion._references.reference import Reference
from autodiffusion.features import Features
from autodiffusion.metrics.fid import FID

SIZES = ((2048, 1000), (64, 500))
"""Numbers of features and of samples: of Inception, and of the bundled model's classifier."""


def seconds(work: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=5, help="of which the least counts")
    runs = parser.parse_args().runs
    random = np.random.default_rng(0)
    for dimension, count in SIZES:
        mix = random.normal(size=(dimension, dimension)) / np.arange(1, dimension + 1)  # a spectrum that falls
        reference = Reference(np.zeros(dimension), mix @ mix.T)
        vectors = random.normal(size=(count, dimension)) @ mix.T + 0.1
        samples = Features(torch.from_numpy(vectors.astype(np.float32)))
        print(f"{dimension} features, {count} samples")
        print(f"  {seconds(partial(getattr, reference, 'root'), 1):.4f} s  the root, once")
        print(f"  {seconds(partial(FID(reference).value, samples), runs):.4f} s  the value")
        print(f"  {seconds(partial(FID(reference).pseudovalues, samples), runs):.4f} s  with pseudo-values")


if __name__ == "__main__":
    main()
