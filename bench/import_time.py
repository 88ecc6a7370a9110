"""How long imports take, in fresh interpreters: the median over several runs, taken in turns.

.venv/bin/python bench/import_time.py [RUNS]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

STATEMENTS = ("pass", "import torch", "import autodiffusion", "import torch, autodiffusion")


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=7, help="of which the median counts")
    runs = parser.parse_args().runs
    for statement in STATEMENTS:
        seconds(statement)  # once for the file cache
    rounds = [[seconds(statement) for statement in STATEMENTS] for _ in range(runs)]
    medians = dict(zip(STATEMENTS, map(median, zip(*rounds, strict=True)), strict=True))
    for statement, value in medians.items():
        print(f"{value:7.3f} s  {statement}")
    beyond = medians["import torch, autodiffusion"] - medians["import torch"]
    print(f"{beyond:+7.3f} s  import autodiffusion, beyond torch")


if __name__ == "__main__":
    main()
