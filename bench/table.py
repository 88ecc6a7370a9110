"""The README's table: uniform steps, random search, evolutionary search, the default and ``gls``, on the bundled model.

    .venv/bin/python bench/table.py [--samples 100] [--final 5000] [--steps 4,6,10] [--seed 0] [--again]

The layout is that of Tables 2 and 3 of the AutoDiffusion appendix: FID / Inception Score. Random search and
Algorithm 1 score 500 candidates of ``--samples`` samples each, with fresh noise for each candidate, as published; the
paper scored 5,000 samples a candidate. Every figure is on noise that no search has seen. Searches resume where they
stopped, and rows in ``--out`` are not made again unless asked with ``--again``. The table goes to standard output, the
picture to ``docs/samples.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodiffusion._evaluation.confirm import confirm
from autodiffusion._evaluation.evaluate import Evaluator, derive_seed, describe
from autodiffusion._plans.grids import fitting
from autodiffusion._plans.plan import Plan
from autodiffusion._references.reference import Reference
from autodiffusion._report import picture
from autodiffusion._sampling.sampling import sample
from autodiffusion._search.inputs import check_source, plan_of, prepare
from autodiffusion._search.loop import search
from autodiffusion._study.settings import Settings
from autodiffusion._views.progress import Progress
from autodiffusion.metrics._build import build
from autodiffusion.models._load import load

PICTURE = Path("docs/samples.png")
METRICS = ["fid", "inception_score"]
UNIFORM, GRID, RANDOM = "uniform", "best named grid", "random search"
ALGORITHM_1, DEFAULT = "evolutionary search (Algorithm 1)", "autodiffusion's default"
GENERAL = "free numbers as well (`--solver gls`)"
METHODS = (UNIFORM, GRID, RANDOM, ALGORITHM_1, DEFAULT, GENERAL)
TEACHER, MANY = "teacher", (50, 100)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="for a candidate of random search and Algorithm 1")
    parser.add_argument("--final", type=int, default=5000, help="for the figures in the table")
    parser.add_argument("--steps", default="4,6,10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/table"), help="folder of the searches")
    parser.add_argument("--out", type=Path, default=Path("bench/results/table.json"), help="the rows")
    parser.add_argument("--again", action="store_true", help="make the rows in --out again")
    return parser.parse_args()


class Rows:
    """The rows made so far, in the file ``--out``.

    Raises:
        SystemExit: they were made with other sample counts or another seed.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = args.out
        self.made_with = {"samples_per_candidate": args.samples, "samples": args.final, "seed": args.seed}
        self.rows: list[dict[str, Any]] = []
        if self.path.exists() and not args.again:
            content = json.loads(self.path.read_text())
            for key, value in self.made_with.items():
                if content[key] != value:
                    raise SystemExit(
                        f"{self.path}: {key} is {content[key]}, not {value}; give another --out, or --again"
                    )
            self.rows = content["rows"]

    def find(self, method: str, steps: int) -> dict[str, Any] | None:
        return next((row for row in self.rows if (row["method"], row["steps"]) == (method, steps)), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({**self.made_with, "rows": self.rows}, indent=1) + "\n")


def best_grid(steps: int, evaluator: Evaluator, reference: Reference, seed: int) -> tuple[str, Plan]:
    """The named grid with the lowest FID on 1,000 samples of noise that the table does not use."""
    plans = fitting(lambda name: plan_of(f"{name}:{steps}", evaluator.model))
    fid = build("fid", reference)
    scores = evaluator.scores(list(plans.values()), fid, 1000, derive_seed(seed, "finalists"))
    name = min(zip(plans, scores, strict=True), key=lambda pair: pair[1].value)[0]
    return name, plans[name]


def found(method: str, steps: int, args: argparse.Namespace) -> tuple[Plan, int]:
    """The plan that a search finds, and what it spent."""
    paper = {"preset": "paper", "samples": args.samples, "confirm_samples": 2}
    options: dict[str, Any] = {
        RANDOM: {**paper, "strategy": "random"},
        ALGORITHM_1: paper,
        DEFAULT: {},
        GENERAL: {"solver": "gls"},
    }[method]
    settings = Settings.of(model="mnist", steps=steps, seed=args.seed, **options)
    with Progress() as progress:
        result = search(settings, args.runs / f"{method.split()[0].strip('`')}-{steps}", progress)
    return result.plan, result.search_cost.evaluations + result.confirm_cost.evaluations


def main() -> None:
    args = arguments()
    model = load("mnist")
    evaluator, source = prepare(model)
    reference = check_source(source, evaluator, METRICS)
    assert reference is not None
    rows = Rows(args)
    counts = [int(text) for text in args.steps.split(",")]
    wanted = [(method, steps) for steps in counts for method in METHODS] + [(TEACHER, steps) for steps in MANY]
    for method, steps in wanted:
        if rows.find(method, steps):
            continue
        spent, label = None, method
        if method in (UNIFORM, TEACHER):
            plan = plan_of(f"uniform:{steps}", model)
        elif method == GRID:
            name, plan = best_grid(steps, evaluator, reference, args.seed)
            label = f"{method} ({name})"
        else:
            plan, spent = found(method, steps, args)
        [row] = confirm(evaluator, reference, {label: plan}, METRICS, args.final, args.seed)
        rows.add(row.to_json() | {"method": method, "steps": steps, "search_evaluations": spent})
        print(f"{label}, {steps} steps: {cell(rows.rows[-1])}  {describe(plan)[:90]}", flush=True)
    print(f"\n{text(rows, counts)}", end="")
    shown = {
        "100 uniform steps": (TEACHER, 100),
        "10 uniform steps": (UNIFORM, 10),
        "4 uniform steps": (UNIFORM, 4),
        "4 found steps": (GENERAL, 4),
    }
    plans = {title: rows.find(*key) for title, key in shown.items()}
    if all(plans.values()):
        drawn = {
            title: sample(model, Plan.model_validate(row["plan"]), 64, args.seed) for title, row in plans.items() if row
        }
        PICTURE.parent.mkdir(exist_ok=True)
        picture(drawn, PICTURE)


def text(rows: Rows, counts: Sequence[int]) -> str:
    """The Markdown table."""
    lines = [f"| FID / Inception Score | {' | '.join(f'{steps} steps' for steps in counts)} |"]
    lines.append("| --- |" + " --- |" * len(counts))
    for method in METHODS:
        found_rows = [rows.find(method, steps) for steps in counts]
        lines.append(f"| {method} | {' | '.join(cell(row) if row else 'not run yet' for row in found_rows)} |")
    for steps in MANY:
        teacher = rows.find(TEACHER, steps)
        assert teacher is not None
        lines.append(f"| {steps} uniform steps |" + " |" * (len(counts) - 1) + f" {cell(teacher)} |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
    fid, score, spent = row["scores"]["fid"], row["scores"]["inception_score"], row["search_evaluations"]
    name = row["name"].partition(" (")[2].removesuffix(")") if row["method"] == GRID else ""
    note = f" ({spent / 1000:,.0f}k)" if spent else f" ({name})" if name else ""
    return f"{fid['value']:.1f} ± {(fid['high'] - fid['low']) / 2:.1f} / {score['value']:.2f}{note}"


if __name__ == "__main__":
    main()
