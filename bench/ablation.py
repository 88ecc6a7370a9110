"""What each idea of the default search saves: the search with one idea switched off at a time, on the exact models.

    .venv/bin/python -m bench.ablation [--models mixture,empirical] [--solvers ddim] [--steps 4,10] [--seeds 3]
                                       [--variants "default;no exploring"]

As in ``bench.compare``, the plans that were the best so far are scored on noise that no search has seen, the same for
all. The rows go to ``bench/results/ablation.json`` one by one, the table beside them; a row there is not made again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import fmean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch

from autodiffusion._plans.plan import Plan
from autodiffusion._search.candidates import score_candidates
from autodiffusion._search.job import Job
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import Study, write
from autodiffusion._views.progress import Quiet
from autodiffusion.metrics._build import build
from autodiffusion.strategies.ladder import Asking, Ladder
from bench import _rows, compare
from bench._best import improvements, thin
from bench._curves import Row, Run
from bench.models import ABOUT


class NoRacing(Ladder):
    """All starts are scored with all samples at once."""

    def _race(self, field: list[Plan]) -> Asking:
        yield from self._score(field, 1.0)


class NoRefining(Ladder):
    """Ends when it has explored."""

    def _refine(self, what: str = "times", step: float | None = None) -> Asking:
        yield from ()


class SingleMoves(Ladder):
    """Refines single nodes only."""

    def _moves(self, plan: Plan) -> list[Any]:
        return super()._moves(plan)[-self.space.nodes :]


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "fresh noise for each candidate": {"noise": "fresh"},
    "no racing of starts": {"strategy": "bench.ablation:NoRacing"},
    "no family of starts": {"strategy_options": {"family": False}},
    "one start": {"starts": ["uniform"], "strategy_options": {"family": False}},
    "no exploring": {"strategy_options": {"explorations": 0}},
    "no refining": {"strategy": "bench.ablation:NoRefining"},
    "no moves of the whole sequence": {"strategy": "bench.ablation:SingleMoves"},
    "twice the samples, half as many in full": {"samples": 1000, "strategy_options": {"most": 50}},
    "four times the samples": {"samples": 2000},
    "evolution, 120 samples": {"strategy": "evolution", "samples": 120},
    "Optuna's TPE, 150 candidates, 120 samples": {"strategy": "optuna:TPESampler", "samples": 120}
    | {"strategy_options": {"candidates": 150}},
}
"""What is switched off, as settings other than the default's; then other numbers of samples, and other searches."""
UNSHARED = "beginnings not shared"
"""The default, with what candidates with a common beginning saved added to its cost again."""
NEAR, POINTS = 1.05, 6
"""Within this factor of the default's last FID a variant is as good; most points of a curve that are scored."""

Runs: TypeAlias = dict[Row, dict[str, dict[int, Run]]]


def searched(task: compare.Job, variant: str) -> tuple[Settings, list[dict[str, Any]]]:
    """The settings of one search without confirmation, and its rounds."""
    job = Job.of(Settings.of(**task.settings().model_dump() | VARIANTS[variant]))
    assert job.reference is not None
    with TemporaryDirectory() as folder, Study(Path(folder) / "study", job.settings) as study:
        score_candidates(job, build("fid", job.reference), study, Quiet())
        return job.settings, study.of_kind("scores")


def make(task: compare.Job, variant: str) -> list[dict[str, Any]]:
    """The row of one search; of the default also the row without sharing."""
    settings, rounds = searched(task, variant)
    rows, costs = [], {variant: rounds}
    if variant == "default":
        costs[UNSHARED] = [e | {"evaluations": e["evaluations"] + e["saved"]} for e in rounds]
    for name, events in costs.items():
        points = thin(improvements(events), POINTS)
        fids = compare.fresh_fids(task, [point.plan for point in points])
        rows.append(
            {**task.row._asdict(), "variant": name, "seed": task.seed, "samples": settings.samples}
            | {"candidates": len({Plan.model_validate(s["plan"]) for e in events for s in e["scores"]})}
            | {"evaluations": sum(e["evaluations"] for e in events), "fresh_samples": task.fresh}
            | {"times": points[-1].plan.times, "curve": [[p.evaluations, f] for p, f in zip(points, fids, strict=True)]}
        )
    return rows


def read(rows: Sequence[dict[str, Any]]) -> Runs:
    """Runs by model, solver and steps, then by variant, then by seed."""
    found: Runs = {}
    for row in rows:
        key = Row(row["model"], row["solver"], row["steps"])
        found.setdefault(key, {}).setdefault(row["variant"], {})[row["seed"]] = Run.of(row)
    return {key: runs for key, runs in found.items() if "default" in runs}


def table(found: Runs) -> str:
    """Two Markdown tables: each variant against the default on the same seeds, and the figures for each row."""
    if not found:
        return "Nothing has been run yet: `python -m bench.ablation` makes the runs.\n"
    names = [name for name in (*VARIANTS, UNSHARED) if any(name in runs for runs in found.values())]
    lines = [
        "Made by `python -m bench.ablation`; the runs are in `ablation.json`.",
        "",
        "FID on fresh noise and network evaluations times samples, in terms of the default's with the same seed: the",
        "geometric mean over all runs [give or take a standard error], and in how many the FID is lower.",
        "",
        ABOUT,
        "",
        "| | FID | evaluations | lower FID |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {' | '.join(against(found, name))} |" for name in names if name != "default"),
        "",
        "FID on fresh noise, thousands of evaluations spent, and thousands when the best plan so far first had at most",
        f"{NEAR} times the default's last FID: medians over seeds [least, greatest].",
        "",
        f"| | {' | '.join(' '.join(map(str, row)) for row in found)} |",
        "| --- |" + " --- |" * len(found),
        *(f"| {name} | {' | '.join(cell(runs, name) for runs in found.values())} |" for name in names),
    ]
    return "\n".join(lines) + "\n"


def against(found: Runs, name: str) -> list[str]:
    """Of the first table: factors of FID and of cost over the pairs of runs, and how many are better."""
    same = [(runs.get(name, {}), runs["default"]) for runs in found.values()]
    pairs = [(some[seed], default[seed]) for some, default in same for seed in some if seed in default]
    logs = [math.log(run.final / default.final) for run, default in pairs]
    middle, error = fmean(logs), stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    low, high = (math.exp(middle + sign * error) for sign in (-1, 1))
    cost = math.exp(fmean(math.log(run.evaluations / default.evaluations) for run, default in pairs))
    lower = f"{sum(run.final < default.final for run, default in pairs)} of {len(pairs)}"
    return [f"{math.exp(middle):.2f} [{low:.2f}, {high:.2f}]", f"{cost:.2f}", lower]


def cell(runs: dict[str, dict[int, Run]], name: str) -> str:
    """Of the second table: last FID, cost, and the cost until it is near the default's."""
    if name not in runs:
        return "not run"
    target = NEAR * median(run.final for run in runs["default"].values())
    some = list(runs[name].values())
    finals, reached = [run.final for run in some], median(run.reaches(target) for run in some)
    spent, after = median(run.evaluations for run in some), f"after {reached / 1000:,.0f}k"
    span = f"{median(finals):.3g} [{min(finals):.3g}, {max(finals):.3g}]"
    return f"{span}, {spent / 1000:,.0f}k, {after if reached < math.inf else 'never'}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, chosen in (("models", "mixture,empirical"), ("solvers", "ddim"), ("steps", "4,10")):
        parser.add_argument(f"--{name}", default=chosen)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="by semicolons")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--out", type=Path, default=Path("bench/results/ablation.json"))
    parser.add_argument("--reduced", action="store_true", help="a few seconds: few candidates, few fresh samples")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    rows = _rows.load(args.out)
    done = {(row["model"], row["solver"], row["steps"], row["variant"], row["seed"]) for row in rows}
    names = [name for name in args.variants.split(";") if not name.startswith("Optuna") or find_spec("optuna")]
    compare.check(parser, "variants", names, VARIANTS)
    lanes = product(args.models.split(","), args.solvers.split(","), map(int, args.steps.split(",")))
    for seed, lane, name in product(range(args.seeds), list(lanes), names):
        task = compare.Job(*lane, "default", seed, args.reduced)
        if (*lane, name, seed) not in done:
            rows += make(task, name)
            _rows.save(args.out, rows)
    write(args.out.with_suffix(".md"), table(read(rows)))
    print(table(read(rows)), end="")


if __name__ == "__main__":
    main()
