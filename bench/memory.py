"""Peak memory of searches, each in a process of its own, and how it grows with the number of steps.

    .venv/bin/python bench/memory.py [--demo]

Of a search's memory only the part for one noise block grows with the number of steps: one solver state a step, and what
the network said there. ``--demo`` measures the demo's search as well, which takes as long as the demo.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

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
        print(f"{peak(['--steps', '4', '--solver', 'ddim']):6.0f} MiB  the demo's search")
    small = ["--samples", str(BLOCK), "--batch-size", str(BLOCK), "--confirm-samples", "2", "--finalists", "1"]
    small += ["--population", "2", "--generations", "1", "--starts", "uniform"]
    for steps in (4, 8, 16, 32):
        print(f"{peak(['--steps', str(steps), *small]):6.0f} MiB  {steps} steps, blocks of {BLOCK} samples")
    state = BLOCK * 16 * 16 * 4 / 2**20
    print(f"{state:6.0f} MiB  is one state of such a block, and as much is kept of what the network said there")


if __name__ == "__main__":
    main()
