"""Peak memory of searches, each in a process of its own, and how it grows with the number of steps.

    .venv/bin/python bench/memory.py [--demo]

Of a search's memory only the part for one noise block grows with the number of steps: one solver state a step, and what
the network said there. ``--demo`` measures the demo's search as well, which takes as long as the demo.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile

import torch

from autodiffusion import load_model
from autodiffusion._sampling.sampling import Cost, walk
from autodiffusion._search.inputs import plan_of

DEMO = ["--steps", "4", "--solver", "gls", "--budget", "80000"]
"""What ``make demo`` searches."""
BLOCK = 1024


def peak(options: list[str]) -> float:
    """Peak resident memory in MiB of ``autodiffusion search mnist`` with these options."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "autodiffusion", "search", "mnist", "--out", f"{folder}/run", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the demo's search too")
    args = parser.parse_args()
    if args.demo:
        print(f"{peak(DEMO):6.0f} MiB  the demo's search")
    small = ["--samples", str(BLOCK), "--batch-size", str(BLOCK), "--confirm-samples", "2", "--finalists", "1"]
    small += ["--population", "1", "--generations", "1", "--starts", "uniform"]
    for steps in (4, 16):
        peak_mib = peak(["--steps", str(steps), *small])
        print(f"{peak_mib:6.0f} MiB  peak, {live(steps):5.1f} MiB in tensors: {steps} steps, blocks of {BLOCK} samples")
    state = BLOCK * 16 * 16 * 4 / 2**20
    print(f"{state:6.0f} MiB  is one state of such a block, and as much is kept of what the network said there")
    print("            the rest of the growth of the peak is the allocator's, which keeps what it once had")


def live(steps: int) -> float:
    """MiB in tensors when a plan of so many steps has been walked, the network's weights included."""
    model = load_model("mnist")
    walked = walk(model, [plan_of(f"uniform:{steps}", model)], range(BLOCK), 0, Cost())
    next(walked)  # the walk stands still here, with all that it keeps
    tensors = (thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) / 2**20


if __name__ == "__main__":
    main()
