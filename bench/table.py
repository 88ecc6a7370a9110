"""The README's table: uniform steps, random search, evolutionary search and the default, on the bundled model.

    .venv/bin/python bench/table.py [--samples 100] [--final 5000] [--steps 4,6,10] [--seed 0] [--runs runs/table]

The layout is that of Tables 2 and 3 of the AutoDiffusion appendix: FID / Inception Score. Random search and
Algorithm 1 score 500 candidates of ``--samples`` samples each, with fresh noise for each candidate, as published; the
paper scored 5,000 samples a candidate. Every figure is on noise that no search has seen. Searches resume where they
stopped; the rows go to ``bench/results/table.json``, the table to standard output, the picture to ``docs/samples.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autodiffusion.confirm import Row, confirm, figure
from autodiffusion.evaluate import Evaluator, derive_seed, describe
from autodiffusion.grids import GRIDS
from autodiffusion.inputs import check_source, plan_of, prepare, teacher_plan
from autodiffusion.loop import search
from autodiffusion.metrics import build
from autodiffusion.models import load
from autodiffusion.plan import Plan
from autodiffusion.progress import Shown
from autodiffusion.reference import Reference
from autodiffusion.report import picture
from autodiffusion.sampling import sample
from autodiffusion.settings import Settings

RESULTS, PICTURE = Path("bench/results/table.json"), Path("docs/samples.png")
TEACHER = 100


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="for a candidate of random search and Algorithm 1")
    parser.add_argument("--final", type=int, default=5000, help="for the figures in the table")
    parser.add_argument("--steps", default="4,6,10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/table"))
    return parser.parse_args()


def best_grid(steps: int, evaluator: Evaluator, reference: Reference, seed: int) -> tuple[str, Plan]:
    """The named grid with the lowest FID on 1,000 samples of noise that the table does not use."""
    plans = {name: plan_of(f"{name}:{steps}", evaluator.model) for name in GRIDS}
    fid = build("fid", reference)
    scores = evaluator.scores(list(plans.values()), fid, 1000, derive_seed(seed, "finalists"))
    name = min(zip(plans, scores, strict=True), key=lambda pair: pair[1].value)[0]
    return name, plans[name]


def plans(
    steps: int, args: argparse.Namespace, evaluator: Evaluator, reference: Reference
) -> Iterator[tuple[str, Any, Plan]]:
    """(row, what the search spent, plan) for each method."""
    yield "uniform", None, plan_of(f"uniform:{steps}", evaluator.model)
    name, plan = best_grid(steps, evaluator, reference, args.seed)
    yield f"best named grid ({name})", None, plan
    paper = {"preset": "paper", "samples": args.samples, "confirm_samples": 2}
    methods = {
        "random search": {**paper, "strategy": "random"},
        "evolutionary search (Algorithm 1)": paper,
        "autodiffusion's default": {},
    }
    for name, options in methods.items():
        settings = Settings.of(model="mnist", steps=steps, seed=args.seed, **options)
        with Shown() as progress:
            result = search(settings, args.runs / f"{name.split()[0]}-{steps}", progress)
        yield name, result.search_cost.evaluations + result.confirm_cost.evaluations, result.plan


def main() -> None:
    args = arguments()
    model = load("mnist")
    evaluator, source = prepare(model)
    reference = check_source(source, evaluator, ["fid", "inception_score"])
    assert reference is not None
    rows: dict[str, dict[int, tuple[Row, Any]]] = {}

    def score(name: str, steps: int, spent: Any, plan: Plan) -> None:
        [row] = confirm(evaluator, reference, {name: plan}, ["fid", "inception_score"], args.final, args.seed)
        print(f"{name}, {steps} steps: {figure(row.to_json()['scores']['fid'])}  {describe(plan)[:100]}", flush=True)
        rows.setdefault(name.partition(" (")[0], {})[steps] = (row, spent)

    counts = [int(text) for text in args.steps.split(",")]
    for steps in counts:
        for name, spent, plan in plans(steps, args, evaluator, reference):
            score(name, steps, spent, plan)
    score("teacher", TEACHER, None, teacher_plan(model, TEACHER))
    write(rows, counts, args)
    few = counts[0]
    shown = {
        f"{TEACHER} uniform steps": rows["teacher"][TEACHER][0].plan,
        f"{few} uniform steps": rows["uniform"][few][0].plan,
        f"{few} steps found": rows["autodiffusion's default"][few][0].plan,
    }
    PICTURE.parent.mkdir(exist_ok=True)
    picture({name: sample(model, plan, 64, args.seed) for name, plan in shown.items()}, PICTURE)


def write(rows: dict[str, dict[int, tuple[Row, Any]]], counts: list[int], args: argparse.Namespace) -> None:
    """The rows as JSON, and as the Markdown table."""
    content = [
        row.to_json() | {"steps": steps, "search_evaluations": spent}
        for entries in rows.values()
        for steps, (row, spent) in entries.items()
    ]
    RESULTS.write_text(
        json.dumps({"samples_per_candidate": args.samples, "seed": args.seed, "rows": content}, indent=1) + "\n"
    )
    print(f"\n| FID / Inception Score | {' | '.join(f'{steps} steps' for steps in counts)} |")
    print("| --- |" + " --- |" * len(counts))
    for name, entries in rows.items():
        if name != "teacher":
            print(f"| {name} | " + " | ".join(cell(*entries[steps]) for steps in counts) + " |")
    teacher = rows["teacher"][TEACHER][0]
    print(f"\n{TEACHER} uniform steps: {cell(teacher, None)}")


def cell(row: Row, spent: int | None) -> str:
    fid, score = row.scores["fid"], row.scores["inception_score"]
    cost = "" if spent is None else f" ({spent / 1000:,.0f}k)"
    return f"{fid.value:.1f} ± {(fid.high - fid.low) / 2:.1f} / {score.value:.2f}{cost}"


if __name__ == "__main__":
    main()
