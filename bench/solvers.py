"""What the search finds with each solver, with and without its free numbers, and with the solver left to it.

    .venv/bin/python -m bench.solvers [--models ...] [--steps 4,6,10] [--entries ...] [--seed 0] [--table-only]

The default search for each model of the benchmark, number of steps and entry, an entry being a solver with its options.
All figures are FIDs with 95 % intervals on the same fresh noise, which no search has seen; beside them the best named
grid (with DDIM), DDIM's 50 and 100 uniform steps, and what the search thought of its plan. Searches resume where they
stopped; a row that ``bench/results/solvers.json`` has is not made again. Start it twice for two cores with different
``--entries``, models or steps and ``--out``, and join the files with ``--join``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from autodiffusion._evaluation.confirm import confirm, figure
from autodiffusion._plans.grids import NAMED
from autodiffusion._plans.plan import Plan
from autodiffusion._search.contest import search_solvers
from autodiffusion._search.inputs import plan_of
from autodiffusion._search.loop import search
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import LEDGER, read_events, write
from autodiffusion._views.progress import Progress
from bench import _rows
from bench.compare import BATCH, FRESH, MODELS, STEPS, check, judge
from bench.models import ABOUT, reference_of

ENTRIES: dict[str, dict[str, Any]] = {
    "ddim": {"solver": "ddim"},
    "ipndm": {"solver": "ipndm"},
    "dpm_solver++": {"solver": "dpm_solver++"},
    "unipc": {"solver": "unipc"},
    "deis": {"solver": "deis"},
    "pfdiff, plain": {"solver": "pfdiff", "free_numbers": False},
    "pfdiff": {"solver": "pfdiff"},
    "gls": {"solver": "gls"},
    "gls on pfdiff": {"solver": "gls", "solver_options": {"plain": "pfdiff"}},
    "gls on dpm_solver++": {"solver": "gls", "solver_options": {"plain": "dpm_solver++"}},
    "left to the search": {"solver": "ddim,dpm_solver++,pfdiff,gls"},
}
UNIFORM = (50, 100)
"""Steps of the rows to compare with."""


def judged(model: str, plans: dict[str, Plan], samples: int) -> list[dict[str, Any]]:
    """The rows of plans on fresh noise, whatever the search."""
    evaluator, fid = judge(model)
    return [row.to_json() for row in confirm(evaluator, fid.reference, plans, ["fid"], samples, seed=0)]


def searched(args: argparse.Namespace, model: str, steps: int, entry: str) -> dict[str, Any]:
    """The row of a search."""
    options = {
        "model": f"bench.models:{model}",
        "reference": reference_of(model),
        "batch_size": BATCH[model],
        "steps": steps,
        "seed": args.seed,
        "budget": args.budget,
    }
    folder = args.runs / f"{model}-{steps}-{entry.replace(', ', '-').replace(' ', '-')}-{args.seed}"
    solver = ENTRIES[entry]["solver"]
    with Progress() as progress:
        if "," in solver:
            [result] = search_solvers(solver.split(","), folder, progress, **options).values()
        else:
            result = search(Settings.of(**options | ENTRIES[entry]), folder, progress)
    events = [event for ledger in folder.rglob(LEDGER) for event in read_events(ledger) if event["event"] == "scores"]
    [row] = judged(model, {entry: result.plan}, args.final or FRESH[model])
    found = next(row for row in result.rows if row["name"] == "found")
    row |= {"model": model, "steps": steps, "search": sum(event["evaluations"] for event in events)}
    return alike(row | {"seed of the search": args.seed, "in the search": found.get("searched")})


def alike(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a figure on fresh noise that has as many samples as the score in the search."""
    thought = row.get("in the search")
    if thought is None or row.get("fresh", {}).get("samples") == thought["samples"]:
        return row
    plan = {row["name"]: Plan.model_validate(row["plan"])}
    [again] = judged(row["model"], plan, thought["samples"])
    return row | {"fresh": {"samples": thought["samples"], **again["scores"]["fid"]}}


def baselines(args: argparse.Namespace, model: str, steps: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the best named grid and of many uniform steps, with DDIM; the latter from ``rows`` if it has them."""
    made, samples = judge(model)[0].model, args.final or FRESH[model]
    grids = judged(model, {name: plan_of(f"{name}:{steps}", made, "ddim") for name in NAMED}, samples)
    best = min((row for row in grids if row["problem"] is None), key=lambda row: row["scores"]["fid"]["value"])
    names = {f"uniform {count}": count for count in UNIFORM}
    many = [row for row in rows if row["model"] == model and row["name"] in names][: len(names)]
    if not many:
        plans = {name: plan_of(f"uniform:{count}", made, "ddim") for name, count in names.items()}
        many = judged(model, plans, samples)
    found = [best | {"name": "best grid", "grid": best["name"]}, *many]
    return [row | {"model": model, "steps": steps} for row in found]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown tables: figures, and what the searches cost and thought."""
    lines = [
        "Made by `python -m bench.solvers`; the rows are in `solvers.json`.",
        "",
        "FID [95 % interval] on fresh noise, and network evaluations for one sample where they are not the steps.",
        "Models, steps and solvers that are missing have not been run. Each search ran once (seed 0). The best grid is "
        "the best of all named ones with DDIM.",
        "",
        ABOUT,
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        here = [row for row in rows if row["model"] == model]
        steps = sorted({row["steps"] for row in here})
        names = [name for name in ["best grid", *ENTRIES, *(f"uniform {n}" for n in UNIFORM)] if _of(here, name)]
        lines += [
            "",
            f"## {model}, {here[0]['samples']:,} samples",
            "",
            f"| solver | {' | '.join(f'{count} steps' for count in steps)} |",
            f"| --- {'| --- ' * len(steps)}|",
        ]
        lines += [f"| {name} | {' | '.join(_cell(_of(here, name), count) for count in steps)} |" for name in names]
        lines += [
            "",
            "What the search spent, in thousands of network evaluations times samples, and what it thought:",
            "",
        ]
        lines += ["| solver | steps | spent | in the search | on fresh noise, as many samples | inside the interval |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        lines += [_thought(row) for name in ENTRIES for row in _of(here, name)]
    return "\n".join(lines) + "\n"


def _of(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["name"] == name]


def _cell(rows: Sequence[dict[str, Any]], steps: int) -> str:
    row = next((row for row in rows if row["steps"] == steps), None)
    if row is None:
        return "not run"
    text = row["problem"] or figure(row["scores"]["fid"])
    notes = [row["grid"]] if "grid" in row else []
    notes += [f"{row['nfe']} evaluations"] if row["nfe"] != steps and not row["name"].startswith("uniform") else []
    return f"{text} ({', '.join(notes)})" if notes else str(text)


def _thought(row: dict[str, Any]) -> str:
    thought, head = row["in the search"], f"| {row['name']} | {row['steps']} | {row['search'] / 1000:.0f}"
    if thought is None:
        return f"{head} | a start, given no more than a look | | |"
    fresh = row["fresh"]
    inside = "yes" if fresh["low"] <= thought["value"] <= fresh["high"] else "**no**"
    return f"{head} | {thought['value']:.4g} on {thought['samples']:,} | {figure(fresh)} | {inside} |"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--entries", default=";".join(ENTRIES), help="by semicolons")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, help="network evaluations of each search, for a trial")
    parser.add_argument("--final", type=int, help="fresh samples of a figure, for a trial")
    parser.add_argument("--runs", type=Path, default=Path("runs/solvers"), help="folder of the searches")
    parser.add_argument("--out", type=Path, default=Path("bench/results/solvers.json"), help="the rows")
    parser.add_argument("--join", type=Path, action="append", default=[], help="rows to add, made with another --out")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    rows = _rows.load(args.out)
    for path in args.join:
        if not path.exists():
            parser.error(f"--join {path}: there is no such file")
        rows = _joined(rows, _rows.load(path))
    chosen, entries = args.models.split(","), args.entries.split(";")
    check(parser, "models", chosen, MODELS)
    check(parser, "entries", entries, ENTRIES)
    for model, steps, entry in [] if args.table_only else product(chosen, map(int, args.steps.split(",")), entries):
        names = {row["name"] for row in rows if (row["model"], row["steps"]) == (model, steps)}
        if "best grid" not in names:
            rows = _joined(rows, baselines(args, model, steps, rows))
            _rows.save(args.out, rows)
        if entry not in names:
            rows = _joined(rows, [searched(args, model, steps, entry)])
            _rows.save(args.out, rows)
    if not args.table_only:
        rows = [alike(row) if row["model"] in chosen else row for row in rows]
    _rows.save(args.out, rows)
    write(args.out.with_suffix(".md"), table(rows))
    print(table(rows), end="")


def _joined(rows: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both, without what is there twice, in the table's order."""
    found = {(row["model"], row["steps"], row["name"]): row for row in [*more, *rows]}
    order = ["best grid", *ENTRIES, *(f"uniform {count}" for count in UNIFORM)]
    return sorted(found.values(), key=lambda row: (MODELS.index(row["model"]), row["steps"], order.index(row["name"])))


if __name__ == "__main__":
    main()
