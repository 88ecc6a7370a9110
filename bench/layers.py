"""What leaving out layers buys on the bundled model, against fewer whole steps and against random sets of layers.

    .venv/bin/python -m bench.layers [--steps 6,10] [--budgets 80,60,40] [--samples 300] [--seed 0] [--final 5000]

A budget is a share of what so many steps of the whole network cost, in multiply-accumulates. For each there are three
plans: the one that ``search --layers`` finds; (a) the one that ``search`` finds for as many whole steps as the budget
pays for; (b) the best of as many random sets of layers as the search has tried, at the best times of the whole
network, raced like all candidates; of these the one that leaves layers out and scored best. All figures are on the same
noise, which no search has seen, with 95 % intervals.
Searches resume where they stopped. Rows go to ``bench/results/layers.json`` one by one, the table beside them; a row
there is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from autodiffusion._evaluation.confirm import confirm, figure
from autodiffusion._plans.plan import Plan
from autodiffusion._search.candidates import standings
from autodiffusion._search.inputs import check_source, find_reference, prepare
from autodiffusion._search.loop import Result, search
from autodiffusion._search.pricing import Pricing
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import LEDGER, read_events, write
from autodiffusion._views.progress import Progress
from autodiffusion.metrics._build import build
from autodiffusion.models._load import load
from autodiffusion.models._model import Model
from autodiffusion.strategies.ladder import Asking
from autodiffusion.strategies.prune import Prune
from bench import _rows

FOUND, FEWER, RANDOM = "found", "fewer whole steps", "random sets of layers"


@dataclass
class RandomSets(Prune):
    """The whole network's times as found, and ``count`` random sets of layers within the budget, raced."""

    count: int = 100

    def _probe(self, plan: Plan) -> Asking:
        yield from ()

    def _pruned(self, bases: dict[int, Plan]) -> list[Plan]:
        plans: list[Plan] = []
        self.new(plans, lambda: self.room.repair(bases[self.space.steps], self._rng), self.count)
        return plans

    def _explore(self) -> Asking:
        yield from ()

    def _finish(self) -> Asking:
        yield from ()


def searched(args: argparse.Namespace, name: str, **options: Any) -> tuple[Result, Path]:
    """The result of a search of the bundled model, and its folder."""
    folder = args.runs / name
    settings = Settings.of(
        model=args.model,
        features=args.features,
        reference=args.reference,
        seed=args.seed,
        samples=args.samples,
        budget=args.limit,
        **options,
    )
    with Progress() as progress:
        return search(settings, folder, progress), folder


def candidates(folder: Path) -> int:
    """How many plans that leave out layers within the budget a search has tried."""
    scores = [s for e in read_events(folder / LEDGER) if e["event"] == "scores" for s in e["scores"] if s["allowed"]]
    plans = {Plan.model_validate(score["plan"]) for score in scores}
    return sum(any(step.skip for step in plan.steps) for plan in plans)


def make(args: argparse.Namespace, steps: int, budget: int) -> list[dict[str, Any]]:
    """The three rows of a budget."""
    layers = {"steps": steps, "layers": True, "max_cost": f"{budget}%"}
    whole = steps * budget // 100
    fewer, _ = searched(args, f"whole-{whole}", steps=whole)
    found, folder = searched(args, f"found-{steps}-{budget}", **layers)
    count = candidates(folder)
    sets = {"strategy": "bench.layers:RandomSets", "strategy_options": {"count": count}}
    _, drawn = searched(args, f"random-{steps}-{budget}", **layers, **sets)
    model = load(args.model)
    evaluator, source = prepare(model, args.features, args.reference)
    reference = check_source(source, evaluator, ["fid"]) or find_reference(source, evaluator)
    ranked = standings(read_events(drawn / LEDGER), build("fid", reference))
    chance = next(plan for plan in ranked if any(step.skip for step in plan.steps))
    plans = {FOUND: found.plan, FEWER: fewer.plan, RANDOM: chance}
    spent = {FOUND: found.search_cost.evaluations, FEWER: fewer.search_cost.evaluations}
    rows = confirm(evaluator, reference, plans, ["fid"], args.final, args.seed + 1)
    return [
        row.to_json()
        | {"steps": steps, "budget": budget, "sets": count, "samples_per_candidate": args.samples}
        | {"share": share(row.plan, model, steps), "search": spent.get(row.name)}
        for row in rows
    ]


def share(plan: Plan, model: Model, steps: int) -> float:
    """What the plan costs, as a share of so many whole steps, in multiply-accumulates."""
    return Pricing.of(model).plan(plan)["macs"] / (steps * model.macs)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown table: a line for each budget, and where the found plan is not the best."""
    lines = [
        "Made by `python -m bench.layers`; the rows are in `layers.json`.",
        "",
        "FID [95 % interval] on fresh noise, steps, and cost as a share of the whole steps' cost: of the plan found,",
        "(a) of as many whole steps as the budget pays for, (b) of the best of as many random sets of layers; and",
        "whether what is found is the best of the three, and leaves out layers at all.",
        "",
        "| steps | budget | found | (a) fewer whole steps | (b) random sets of layers | sets | best | left out |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for steps, budget in dict.fromkeys((row["steps"], row["budget"]) for row in rows):
        three = {row["name"]: row for row in rows if (row["steps"], row["budget"]) == (steps, budget)}
        fids = {name: row["scores"]["fid"]["value"] for name, row in three.items()}
        behind = [name for name in (FEWER, RANDOM) if fids[name] < fids[FOUND]]
        as_good = [name for name in (FEWER, RANDOM) if fids[name] == fids[FOUND]]
        verdict = f"**no**: {', '.join(behind)} better" if behind else "yes"
        verdict = f"**no**: {', '.join(as_good)} the same plan" if as_good and not behind else verdict
        cells = [cell(three[name]) for name in (FOUND, FEWER, RANDOM)]
        left = sum(len(step["skip"]) for step in three[FOUND]["plan"]["steps"])
        partial = f"yes, {left} in all" if left else "**no**: whole steps"
        lines.append(f"| {steps} | {budget} % | {' | '.join(cells)} | {three[FOUND]['sets']} | {verdict} | {partial} |")
    if rows:
        samples = " and ".join(str(n) for n in sorted({row["samples_per_candidate"] for row in rows}))
        lines += ["", f"{rows[0]['samples']:,} fresh samples a figure, {samples} a candidate's full score."]
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
    return f"{figure(row['scores']['fid'])}, {len(row['plan']['steps'])} steps, {row['share']:.0%}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="6,10")
    parser.add_argument("--budgets", default="80,60,40", help="in %% of the whole steps' cost")
    parser.add_argument("--samples", type=int, default=300, help="for a candidate's full score")
    parser.add_argument("--final", type=int, default=5000, help="fresh samples for a figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--features", help="of the model by default")
    parser.add_argument("--reference", help="of the model by default")
    parser.add_argument("--limit", type=int, help="network evaluations of each search, for a trial")
    parser.add_argument("--runs", type=Path, default=Path("runs/layers"), help="folder of the searches")
    parser.add_argument("--out", type=Path, default=Path("bench/results/layers.json"), help="the rows")
    args = parser.parse_args(given)
    rows = _rows.load(args.out)
    done = {(row["steps"], row["budget"]) for row in rows}
    for steps, budget in product(map(int, args.steps.split(",")), map(int, args.budgets.split(","))):
        if (steps, budget) not in done:
            rows += make(args, steps, budget)
            _rows.save(args.out, rows)
    write(args.out.with_suffix(".md"), table(rows))
    print(table(rows), end="")


if __name__ == "__main__":
    main()
