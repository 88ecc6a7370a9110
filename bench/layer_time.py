"""Whether leaving out layers saves the time that the multiply-accumulates (MACs) promise, and what the switch costs.

    .venv/bin/python -m bench.layer_time [--batches 1,8] [--minutes 2] [--out bench/results/layer_time]

One thread of the CPU, a UNet of 35.7 million random weights: that of ``google/ddpm-cifar10-32``. One DDIM step is
sampled without each set of layers, each time between two with the whole network. A figure is the median of the ratios
to these two, in wall time and in processor time, which other work on the machine changes less. Writes OUT.json and
OUT.md.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import UNet2DModel

from autodiffusion import Model, NoiseSchedule, Plan, Step
from autodiffusion._evaluation import timing
from autodiffusion._evaluation.timing import layer_times
from autodiffusion._sampling.sampling import Cost, walk

CLOCKS = ("processor", "wall")
Times = tuple[float, float]
"""Seconds of processor and of wall time."""
SHARES = (0.2, 0.4, 0.6)
LEAST_ROUNDS = 3
LEAST = 0.85
"""Of the saving that the MACs promise, what the measured one must be."""


def network() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    ).eval()


def sets(model: Model) -> dict[str, frozenset[int]]:
    """Sets of layers by name: the largest layer, each kind, and shares of the network's MACs in several orders."""
    layers = model.layers
    found = {"the largest layer": frozenset({max(layers, key=lambda layer: layer.macs).number})}
    for kind in dict.fromkeys(layer.kind for layer in layers):
        found[f"all of kind {kind}"] = frozenset(layer.number for layer in layers if layer.kind == kind)
    numbers = range(len(layers))
    middle = (len(layers) - 1) / 2
    orders: dict[str, Iterable[int]] = {
        "the first": numbers,
        "the last": reversed(numbers),
        "the innermost": sorted(numbers, key=lambda number: abs(number - middle)),
        "the outermost": sorted(numbers, key=lambda number: -abs(number - middle)),
        "random (seed 0)": np.random.default_rng(0).permutation(numbers).tolist(),
        "random (seed 1)": np.random.default_rng(1).permutation(numbers).tolist(),
    }
    for name, order in orders.items():
        order = list(order)
        for share in SHARES:
            found[f"{name}, {share:.0%}"] = up_to(model, order, share)
    return found


def now() -> Times:
    return time.process_time(), time.perf_counter()


def timed(model: Model, plan: Plan, batch_size: int) -> Times:
    """The time of sampling a batch."""
    before = now()
    for _ in walk(model, [plan], range(batch_size), 0, Cost()):
        pass
    after = now()
    return after[0] - before[0], after[1] - before[1]


def up_to(model: Model, order: list[int], share: float) -> frozenset[int]:
    """As many layers in this order as it takes to come nearest to ``share`` of the network's MACs."""
    sums = np.cumsum([0, *(model.layers[number].macs for number in order)]) / model.macs
    return frozenset(order[: int(np.abs(sums - share).argmin())])


def savings(model: Model, batch_size: int, minutes: float) -> dict[str, Any]:
    """What each set saves: by its MACs, as its layers were timed one by one, and measured by either clock."""
    chosen = sets(model)
    whole = Plan.of("ddim", [500])
    plans = {name: Plan(solver="ddim", steps=(Step(t=500, skip=skip),)) for name, skip in chosen.items()}
    began = time.perf_counter()
    with patch.object(timing, "perf_counter", time.process_time):
        costs = layer_times(model, batch_size)
    took = time.perf_counter() - began
    wholes: list[Times] = []
    ratios: dict[str, list[Times]] = {name: [] for name in plans}
    rounds, end = -1, time.perf_counter() + 60 * minutes  # the first does not count
    while rounds < LEAST_ROUNDS or time.perf_counter() < end:
        rounds += 1
        before = timed(model, whole, batch_size)
        for name, plan in plans.items():
            here, after = timed(model, plan, batch_size), timed(model, whole, batch_size)
            if rounds:
                wholes.append(after)
                ratios[name].append((2 * here[0] / (before[0] + after[0]), 2 * here[1] / (before[1] + after[1])))
            before = after

    def saved(name: str) -> dict[str, float]:
        return {clock: 1 - median(ratio[i] for ratio in ratios[name]) for i, clock in enumerate(CLOCKS)}

    def one_by_one(skip: frozenset[int]) -> float:
        return sum(costs.saved[number] for number in skip) / costs.whole

    def macs(skip: frozenset[int]) -> float:
        return sum(model.layers[number].macs for number in skip) / model.macs

    rows = [
        {"set": name, "layers": sorted(skip), "macs": macs(skip), "one_by_one": one_by_one(skip), "saved": saved(name)}
        for name, skip in chosen.items()
    ]
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "ms": {clock: 1000 * median(times[i] for times in wholes) for i, clock in enumerate(CLOCKS)},
        "layer_times_seconds": took,
        "sets": rows,
        "layers": [one_by_one(frozenset({layer.number})) for layer in model.layers],
    }


def switch(model: Model, rounds: int = 100) -> dict[str, float]:
    """What the switch costs: passes with and without it when nothing is left out, and entering and leaving it alone."""
    x, nothing, half = model.noise([0], 0), frozenset[int](), frozenset(range(0, len(model.layers), 2))

    def bare() -> None:
        model.predict(x, 500, None)

    def switched() -> None:
        with model.without(nothing):
            model.predict(x, 500, None)

    def enter(skip: frozenset[int]) -> float:
        start = time.process_time()
        for _ in range(1000):
            with model.without(skip):
                pass
        return 1000 * (time.process_time() - start)  # microseconds each

    ratios = []
    with torch.inference_mode():
        bare()
        for number in range(rounds):
            spent = {}
            for run in (bare, switched) if number % 2 else (switched, bare):
                start = time.process_time()
                run()
                spent[run] = time.process_time() - start
            ratios.append(spent[switched] / spent[bare] - 1)
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {
        "nothing_left_out": median(ratios),
        "low": float(low),
        "high": float(high),
        "microseconds_nothing": median(enter(nothing) for _ in range(rounds)),
        "microseconds_half": median(enter(half) for _ in range(rounds)),
    }


def text(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    cost, batches = result["switch"], result["batches"]
    lines = [
        "# Time saved by leaving out layers",
        "",
        f"Made by `.venv/bin/python -m bench.layer_time`: UNet2DModel of {result['parameters'] / 1e6:.1f} million "
        f"random weights (as `google/ddpm-cifar10-32`), {result['macs'] / 1e9:.2f} billion MACs a sample, one thread "
        f"of an {result['cpu']}, torch {result['torch']}. Each set is timed between two passes of "
        "the whole network and compared with them.",
        "",
        "Saved: the share of the whole network's MACs or time. Of promise: time saved over MACs saved; it should be "
        f"{LEAST:.0%} or more. One by one: what `layer_times` makes of the set, in processor time.",
    ]
    for batch in batches:
        ms = batch["ms"]
        lines += [
            "",
            f"## Batches of {batch['batch_size']}",
            "",
            f"A pass takes {ms['processor']:.0f} ms of processor and {ms['wall']:.0f} ms of wall time. Medians of "
            f"{batch['rounds']} rounds. `layer_times` took {batch['layer_times_seconds']:.0f} s.",
            "",
            "| left out | layers | MACs saved | one by one | processor time saved | of promise | wall time saved "
            "| of promise |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in batch["sets"]:
            measured = [f"{row['saved'][clock]:.1%} | {row['saved'][clock] / row['macs']:.0%}" for clock in CLOCKS]
            cells = [row["set"], str(len(row["layers"])), f"{row['macs']:.1%}", f"{row['one_by_one']:.1%}", *measured]
            lines.append(f"| {' | '.join(cells)} |")
        for clock in CLOCKS:
            kept = sorted((row["saved"][clock] / row["macs"], row["set"]) for row in batch["sets"])
            below = [f"{name} ({of_promise:.0%})" for of_promise, name in kept if of_promise < LEAST]
            lines += ["", f"Below {LEAST:.0%} by {clock} time: {'; '.join(below) or 'none'}."]
    sizes = [f"batches of {batch['batch_size']}" for batch in batches]
    lines += [
        "",
        "## Layer by layer",
        "",
        "Share of the processor time over share of the MACs, as `layer_times` measures it:",
        "",
        f"| layer | kind | name | MACs | {' | '.join(sizes)} |",
        f"| --- | --- | --- | --- | {' | '.join('---' for _ in sizes)} |",
    ]
    for number, row in enumerate(result["layers"]):
        shares = " | ".join(f"{batch['layers'][number] / row['macs']:.2f}" for batch in batches)
        lines.append(f"| {number} | {row['kind']} | {row['name']} | {row['macs']:.2%} | {shares} |")
    lines += [
        "",
        "## The switch",
        "",
        "With nothing left out, the processor time of a pass of one sample under the switch differs by "
        f"{cost['nothing_left_out']:+.2%} (half of the pairs between {cost['low']:+.2%} and {cost['high']:+.2%}). "
        f"Entering and leaving it takes {cost['microseconds_nothing']:.1f} microseconds with nothing left out, "
        f"{cost['microseconds_half']:.0f} with every other layer left out.",
    ]
    return "\n".join(lines) + "\n"


def cpu() -> str:
    info = Path("/proc/cpuinfo")  # Linux
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "a CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8", help="samples in a batch, by commas")
    parser.add_argument("--minutes", type=float, default=2, help="for each size of batch")
    parser.add_argument("--out", type=Path, default=Path("bench/results/layer_time"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    whole = network()
    model = Model(
        lambda x, t, label: whole(x, t, return_dict=False)[0],
        NoiseSchedule.linear(1000),
        (3, 32, 32),
        name="unet",
        module=whole,
    )
    result: dict[str, Any] = {
        "parameters": sum(weights.numel() for weights in whole.parameters()),
        "macs": model.macs,
        "cpu": cpu(),
        "torch": torch.__version__,
    }
    result["layers"] = [vars(layer) | {"macs": layer.macs / model.macs} for layer in model.layers]
    result["batches"] = [savings(model, int(size), args.minutes) for size in args.batches.split(",")]
    result["switch"] = switch(model)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(text(result))
    print(text(result))


if __name__ == "__main__":
    main()
