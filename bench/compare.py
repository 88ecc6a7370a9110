"""The paper preset, random search and the default, on several models: fresh-noise quality over network evaluations.

    .venv/bin/python -m bench.compare [--models ...] [--solvers ...] [--steps ...] [--methods ...] [--seeds 3]

Runs what ``bench/results/compare`` does not hold yet, then writes the table beside it and the plot to ``docs``. It
takes hours: start it twice for two cores, they share the work; what was interrupted goes on when it is started again.

A search's own scores are not what is compared. Each plan that was the best so far at some time is scored again on noise
that no search has seen, the same for all methods and seeds. The plan of a run is what the search would give: the one
that scored best in it or, for the default, the one that it chooses among its finalists on fresh noise, at the cost of
that choice. The figures of a search's final table are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from autodiffusion._evaluation.evaluate import Evaluator, derive_seed
from autodiffusion._plans.grids import NAMED
from autodiffusion._plans.plan import Plan
from autodiffusion._search.candidates import standings
from autodiffusion._search.finalists import choice, choose
from autodiffusion._search.inputs import check_source, plan_of, prepare
from autodiffusion._search.loop import search
from autodiffusion._study.settings import Settings, read_yaml
from autodiffusion._study.study import CONFIG, LEDGER, PLAN, read_events, write
from autodiffusion._views.progress import Progress, Quiet
from autodiffusion.metrics import Metric
from autodiffusion.metrics._build import build
from autodiffusion.metrics.kl import KL
from autodiffusion.models._load import load
from bench._best import Best, improvements, thin
from bench._curves import Row, draw, read, table
from bench.models import reference_of

MODELS, SOLVERS, STEPS = ("mixture", "empirical", "bundled"), ("ddim", "dpm_solver++"), (4, 6, 10)
METHODS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "common": {"preset": "paper", "noise": "common"},
    "random": {"preset": "paper", "strategy": "random"},
    "default": {"preset": "default"},
}
FRESH = {"mixture": 10_000, "empirical": 4_000, "bundled": 2_000}
"""Samples of a figure on fresh noise."""
BATCH = {"mixture": 250, "empirical": 250, "bundled": 100}
SAMPLES = {"mixture": 2_000, "empirical": 1_000, "bundled": 200}
"""For a candidate of the paper preset and of Algorithm 1: as many as two cores can afford in some hours. The released
experiments take 1,000 to 5,000."""
FEW = {"mixture": 500, "empirical": 200, "bundled": 100}
"""For a candidate of random search, and with 10 steps on the bundled model."""
REDUCED: dict[str, Any] = {"budget": 12_000, "samples": 40, "fresh": 200}
"""The reduced form: network evaluations for a search, samples for a candidate of the paper preset, fresh samples."""


@dataclass(frozen=True)
class Job:
    """One search, or with ``method`` ``grids`` the named grids of a model, a solver and a number of steps."""

    model: str
    solver: str
    steps: int
    method: str
    seed: int = 0
    reduced: bool = False

    @property
    def name(self) -> str:
        return "-".join([self.row.name, self.method] + [str(self.seed)] * (self.method != "grids"))

    @property
    def row(self) -> Row:
        return Row(self.model, self.solver, self.steps)

    @property
    def fresh(self) -> int:
        return int(REDUCED["fresh"]) if self.reduced else FRESH[self.model]

    def settings(self) -> Settings:
        """Of the search: the method's own, the paper preset and its kin with :data:`SAMPLES` or :data:`FEW`."""
        options = METHODS[self.method] | {"confirm_samples": 2, "finalists": 1}  # the choice is made in result()
        if options["preset"] == "paper":
            few = self.method == "random" or (self.model, self.steps) == ("bundled", 10)
            options["samples"] = (FEW if few else SAMPLES)[self.model]
            options["samples"] = REDUCED["samples"] if self.reduced else options["samples"]
        return Settings.of(
            model=f"bench.models:{self.model}",
            steps=self.steps,
            solver=self.solver,
            seed=self.seed,
            reference=reference_of(self.model),
            batch_size=BATCH[self.model],
            budget=REDUCED["budget"] if self.reduced else None,
            **options,
        )


@cache
def judge(model: str) -> tuple[Evaluator, Metric | KL]:
    """What scores plans of a model on fresh noise."""
    made = load(f"bench.models:{model}")
    evaluator, source = prepare(made, reference=reference_of(model), batch_size=BATCH[model])
    reference = check_source(source, evaluator, ["fid"])
    assert reference is not None
    return evaluator, build("fid", reference)


def fresh_fids(job: Job, plans: Sequence[Plan]) -> list[float | None]:
    """The FID of each plan on the same fresh noise; ``None`` where it is not finite."""
    evaluator, fid = judge(job.model)
    scores = evaluator.scores(plans, fid, job.fresh, derive_seed(0, "confirm"))
    return [round(score.value, 5) if score.problem is None else None for score in scores]


def grids(job: Job) -> dict[str, Any]:
    """The result of the named grids."""
    model = judge(job.model)[0].model
    plans = [plan_of(f"{name}:{job.steps}", model, job.solver) for name in NAMED]
    return {"fresh_samples": job.fresh, "fid": dict(zip(NAMED, fresh_fids(job, plans), strict=True))}


def result(job: Job, study: Path) -> dict[str, Any]:
    """What is kept of a finished search, with its curve: ``[evaluations, times, end, score in the search, fresh FID]``.

    Raises:
        SystemExit: the study in the folder is another search, or holds no score.
    """
    settings, stored = job.settings(), read_yaml(study / CONFIG)
    for key in ("model", "steps", "solver", "seed", "preset", "samples", "noise", "strategy", "budget"):
        if stored[key] != getattr(settings, key):
            raise SystemExit(f"{study}: {key} is {stored[key]}, and {getattr(settings, key)} in this benchmark")
    events = read_events(study / LEDGER)
    scored = [event for event in events if event["event"] == "scores"]
    points = thin(improvements(events))
    if not points:
        raise SystemExit(f"{study}: no candidate has a score")
    points += chosen(job, events, points[-1])
    fids = fresh_fids(job, [point.plan for point in points])
    curve = [
        [p.evaluations, [s["t"] for s in p.plan.model_dump(mode="json")["steps"]], p.plan.end, round(p.score, 5), fid]
        for p, fid in zip(points, fids, strict=True)
    ]
    return {
        **{key: stored[key] for key in ("preset", "samples", "noise", "strategy", "strategy_options", "seed")},
        "solver_options": points[-1].plan.solver_options,
        "candidates": len({Plan.model_validate(score["plan"]) for event in scored for score in event["scores"]}),
        "evaluations": max(points[-1].evaluations, sum(event["evaluations"] for event in scored)),
        "fresh_samples": job.fresh,
        "autodiffusion": next(event["autodiffusion"] for event in events if event["event"] == "start"),
        "torch": torch.__version__,
        "curve": curve,
    }


def chosen(job: Job, events: Sequence[dict[str, Any]], last: Best) -> list[Best]:
    """What the default gives in the end: of its finalists the best on fresh noise, after what that choice costs."""
    full = Settings.of(model="mnist", steps=4)
    if job.method != "default" or job.reduced:
        return []
    evaluator, fid = judge(job.model)
    assert isinstance(fid, Metric)
    finalists = choice(list(standings(events, fid)), full.finalists, evaluator.model.schedule.last, ())
    before = evaluator.cost.evaluations
    settings = job.settings().model_copy(update={"confirm_samples": full.confirm_samples})
    plan = choose(finalists, fid, settings, evaluator, Quiet())
    spent = sum(event["evaluations"] for event in events if event["event"] == "scores")
    return [Best(spent + evaluator.cost.evaluations - before, plan, last.score)]


def save(content: dict[str, Any], path: Path) -> None:
    """Writes a result, one point of a curve a line."""
    curve = content.pop("curve", None)
    text = json.dumps(content, indent=1)
    if curve is not None:
        lines = ",\n  ".join(json.dumps(point) for point in curve)
        text = f'{text[:-2]},\n "curve": [\n  {lines}\n ]\n}}'
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text + "\n")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, all_of_them in (("models", MODELS), ("solvers", SOLVERS), ("steps", STEPS), ("methods", tuple(METHODS))):
        kind = type(all_of_them[0])
        parser.add_argument(
            f"--{name}",
            type=lambda text, kind=kind: tuple(kind(part) for part in text.split(",")),
            default=all_of_them,
            help=f"of {','.join(map(str, all_of_them))}",
        )
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder of the searches")
    parser.add_argument(
        "--reduced", action="store_true", help="a few seconds: a few candidates, and all that is written below --runs"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--again", action="store_true", help="first drop what there is of these runs; in one process only")
    how.add_argument("--table-only", action="store_true", help="run nothing")
    how.add_argument("--import-runs", type=Path, help=argparse.SUPPRESS)  # finished studies, instead of running
    args = parser.parse_args(given)
    if args.reduced:
        args.models, args.solvers, args.steps, args.seeds = ("mixture",), ("ddim",), (4,), 1
    for name, known in (("models", MODELS), ("solvers", SOLVERS), ("steps", STEPS), ("methods", METHODS)):
        check(parser, name, getattr(args, name), known)
    return args


def check(parser: argparse.ArgumentParser, name: str, given: Sequence[object], known: Collection[object]) -> None:
    """Ends at once, rather than after hours, where an option's list holds what is not known."""
    if unknown := [value for value in given if value not in known]:
        parser.error(f"--{name}: {unknown[0]} is not one of {', '.join(map(str, known))}")


def jobs(args: argparse.Namespace) -> list[Job]:
    """The searches that were asked for, and their grids; seed by seed, so that the table fills early."""
    rows = [(model, solver, steps) for model in args.models for solver in args.solvers for steps in args.steps]
    searches = [
        Job(*row, method, seed, args.reduced) for seed in range(args.seeds) for row in rows for method in args.methods
    ]
    return [Job(*row, "grids", reduced=args.reduced) for row in rows] + searches


def work(job: Job, args: argparse.Namespace, out: Path) -> None:
    """Does a job whose result is missing; one that another process does is left to it."""
    study = (args.import_runs or args.runs) / job.name
    if out.exists() or (args.import_runs and job.method != "grids" and not (study / PLAN).exists()):
        return
    args.runs.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.runs / f"{job.name}.lock", timeout=0):  # ends with its process, however that ends
            if out.exists():
                return
            start = time.monotonic()
            if job.method != "grids" and not args.import_runs:
                with Progress() as progress:
                    search(job.settings(), study, progress)
            content = grids(job) if job.method == "grids" else result(job, study)
            save(content, out)
            print(f"{job.name}: {time.monotonic() - start:.0f} s", flush=True)
    except Timeout:
        print(f"{job.name}: left to the process that is at it", flush=True)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    torch.set_num_threads(1)
    results, plot = Path("bench/results/compare"), Path("docs/compare.png")
    if args.reduced:
        results, plot = args.runs / "results", args.runs / "compare.png"
    selected = [] if args.table_only else jobs(args)
    if args.again:
        for job in selected:
            (results / f"{job.name}.json").unlink(missing_ok=True)
            shutil.rmtree(args.runs / job.name, ignore_errors=True)
    for job in selected:
        work(job, args, results / f"{job.name}.json")
    rows = [Row(model, solver, steps) for model in MODELS for solver in SOLVERS for steps in STEPS]
    kept = read(results, [job.row for job in jobs(args)] if args.reduced else rows)
    text = table(kept)
    print(text)
    write(results.with_suffix(".md"), text)
    draw(kept, plot)


if __name__ == "__main__":
    main()
