"""Other ways to find the free numbers of ``gls`` than the ladder's pattern search, at equal cost, measured.

    .venv/bin/python -m bench.free_numbers [--models mixture,empirical] [--steps 4,6] [--seeds 5] [--again]

All begin with the times that ``search --solver gls --no-free-numbers`` finds with half of the budget, unless said
otherwise, and spend the other half on

pattern search   the ladder's, of the numbers, then of all, then with more samples, as there;
CMA-ES           Hansen 2016, of the library ``cmaes``, on times and numbers or on the numbers alone; each candidate has
                 the FID of the same few samples of common noise, or of noise that is fresh for each generation;
COBYQA           as in ``bench.ideas``, on the numbers alone, on the FID of the same few samples of common noise;
gradient         LD3's and GAS's objective (Tong et al. 2024; Oganov et al. 2025): Adam on times and numbers, on the
                 squared distance in pixels to a many-step result of the same noise, through the solver. Once more from
                 the named grid that is nearest to that result, for half of the budget, and then the pattern search.

The opponent is the default search, ``search --solver gls``, with the whole budget. All of them choose as it does: of
the best that differ and the best plain plan the one that is best on fresh noise, whose cost comes on top of the budget.
Every figure is the FID on noise that nothing has seen before, the same for all. Cost is network evaluations times
samples; a backward pass counts as two, and the many-step results count. The table goes to standard output and
``bench/results/free_numbers.md``, its rows to ``free_numbers.json`` beside it; rows that are there are not made again
unless asked with ``--again``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cmaes import CMA
from scipy.optimize import Bounds, minimize

from autodiffusion._evaluation.evaluate import derive_seed, score_of
from autodiffusion._evaluation.pool import Pool
from autodiffusion._plans.plan import Plan
from autodiffusion._search.candidates import standings
from autodiffusion._search.finalists import choice, choose
from autodiffusion._search.job import Job
from autodiffusion._search.loop import explore, search
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import LEDGER, read_events, write
from autodiffusion._views.progress import Quiet
from autodiffusion.metrics import Metric
from autodiffusion.metrics._build import build
from bench import _free_numbers, _rows
from bench._free_numbers import cell
from bench.compare import BATCH, FRESH, judge
from bench.models import ABOUT, reference_of

OUT = Path("bench/results/free_numbers.json")
BUDGET = 25_000
"""For each step: 100,000 network evaluations times samples at 4 steps."""
COMMON, SIGMA = 250, 0.5
"""CMA-ES and COBYQA: samples of a candidate; the first deviation, or radius of trust, in the ladder's steps.
Both, and the gradient's rate, were chosen on other seeds."""
Found = tuple[Sequence[Plan], int]
"""Plans, best first, and what finding them took in network evaluations times samples."""


@dataclass(frozen=True)
class Task:
    """What to find numbers for, and what that may cost."""

    model: str
    steps: int
    seed: int
    budget: int
    confirm: int = 2000

    def settings(self, **options: Any) -> Settings:
        """Of a search with ``gls`` on ``ddim``, its default."""
        options = {"budget": self.budget, "confirm_samples": self.confirm} | options
        options |= {"steps": self.steps, "seed": self.seed, "batch_size": BATCH[self.model], "solver": "gls"}
        return Settings.of(model=f"bench.models:{self.model}", reference=reference_of(self.model), **options)

    @cached_property
    def job(self) -> Job:
        return Job.of(self.settings())

    @cached_property
    def fid(self) -> Metric:
        assert self.job.reference is not None
        made = build("fid", self.job.reference)
        assert isinstance(made, Metric)
        return made

    @cached_property
    def start(self) -> tuple[Plan, int]:
        """The plan with the times found for half of the budget, and their cost."""
        ranked, spent = ladder(self, self.budget // 2, free_numbers=False)
        return ranked[0], spent

    @property
    def last(self) -> int:
        return len(self.job.evaluator.model.schedule) - 1


def ladder(task: Task, budget: int, **options: Any) -> Found:
    """The default search for so much, without its choice among finalists."""
    with TemporaryDirectory() as folder:
        explore(task.settings(budget=budget, **options), Path(folder), 1.0)
        events = read_events(Path(folder) / LEDGER)
    spent = sum(event["evaluations"] for event in events if event["event"] == "scores")
    return list(standings(events, task.fid)), spent


def pattern_search(task: Task, plan: Plan, budget: int, strategy: str = "ladder") -> Found:
    """The ladder's refining of a plan."""
    with TemporaryDirectory() as folder:
        plan.save(Path(folder) / "start.json")
        starts, options = [str(Path(folder) / "start.json")], {"family": False, "explorations": 0}
        return ladder(task, budget, starts=starts, strategy=strategy, strategy_options=options)


def losses(task: Task, pool: Pool, plans: Sequence[Plan]) -> list[float]:
    """Their FIDs on the first samples of the pool."""
    found = pool.grow(plans, COMMON)
    return [score_of(task.fid, part if isinstance(part, str) else task.fid.value(part), COMMON).value for part in found]


def cma_es(task: Task, times: bool, fresh: bool) -> Found:
    """CMA-ES from plain numbers: the means of the last generations and, on common noise, the best that it looked at."""
    start, spent = task.start
    box, evaluator = _free_numbers.Box(task.job.space, start, times), task.job.evaluator
    seen: dict[Plan, float] = {}
    cma = CMA(box.vector(start), SIGMA, box.bounds, seed=task.seed)
    means, price = [start], cma.population_size * COMMON * task.steps
    before = evaluator.cost.evaluations - spent
    pool = Pool(evaluator, derive_seed(task.seed, "search"), [COMMON], 2**28)
    while evaluator.cost.evaluations - before + price <= task.budget:
        if fresh:
            pool = Pool(evaluator, derive_seed(task.seed, f"generation {cma.generation}"), [COMMON])
        asked = [cma.ask() for _ in range(cma.population_size)]
        plans = [box.plan(vector) for vector in asked]
        values = losses(task, pool, plans)
        cma.tell(list(zip(asked, values, strict=True)))
        seen |= zip(plans, values, strict=True)
        means.append(box.plan(cma.mean))
    ranked = means[::-1] if fresh else [means[-1], *sorted(seen, key=lambda plan: seen[plan])]
    return ranked, evaluator.cost.evaluations - before


def cobyqa(task: Task) -> Found:
    """COBYQA on the numbers alone, from plain ones: what it looked at, best first."""
    start, spent = task.start
    box, evaluator = _free_numbers.Box(task.job.space, start, times=False), task.job.evaluator
    seen: dict[Plan, float] = {}
    pool = Pool(evaluator, derive_seed(task.seed, "search"), [COMMON], 2**28)
    before = evaluator.cost.evaluations - spent

    def score(vector: _free_numbers.Vector) -> float:
        if evaluator.cost.evaluations - before + COMMON * task.steps > task.budget:
            raise StopIteration
        plan = box.plan(vector)
        [seen[plan]] = losses(task, pool, [plan])
        return seen[plan]

    options = {"maxfev": task.budget, "initial_tr_radius": SIGMA, "final_tr_radius": 0.01}
    with suppress(StopIteration):  # the budget is spent
        minimize(score, box.vector(start), method="COBYQA", bounds=Bounds(*box.bounds.T), options=options)
    return sorted(seen, key=lambda plan: seen[plan]), evaluator.cost.evaluations - before


def gradient(task: Task, start: Plan | None, budget: int) -> Found:
    """Adam on the distance to many steps, from a plan or the nearest named grid."""
    return _free_numbers.gradient(task.job.evaluator.model, task.job.space, start, budget, task.seed)


def from_times(task: Task, way: Callable[[Task, Plan, int], Found]) -> Found:
    """A way that begins with the task's times and has the other half of the budget."""
    start, spent = task.start
    ranked, more = way(task, start, task.budget - spent)
    return ranked, spent + more


def gradient_then_pattern(task: Task) -> Found:
    """Half of the budget each."""
    found, spent = gradient(task, None, task.budget // 2)
    ranked, more = pattern_search(task, found[0], task.budget - spent)
    return ranked, spent + more


SEARCH, START = "search --solver gls", "its start: times alone, half of the budget"
WAYS: dict[str, Callable[[Task], Found]] = {
    "pattern search": partial(from_times, way=partial(pattern_search, strategy="bench._free_numbers:Turning")),
    "CMA-ES, times and numbers, common noise": partial(cma_es, times=True, fresh=False),
    "CMA-ES, times and numbers, fresh noise": partial(cma_es, times=True, fresh=True),
    "CMA-ES, numbers, common noise": partial(cma_es, times=False, fresh=False),
    "CMA-ES, numbers, fresh noise": partial(cma_es, times=False, fresh=True),
    "COBYQA, numbers": cobyqa,
    "gradient": partial(from_times, way=gradient),
    "gradient from a grid, then pattern search": gradient_then_pattern,
}
METHODS = (SEARCH, START, *WAYS)


def found_by(task: Task, method: str) -> tuple[Plan, int]:
    """The plan that a method ends with, and all that it took."""
    if method == SEARCH:
        with TemporaryDirectory() as folder:
            result = search(task.settings(), Path(folder))
        table = sum(row["nfe"] * row["samples"] for row in result.rows)
        return result.plan, result.search_cost.evaluations + result.confirm_cost.evaluations - table
    if method == START:
        return task.start
    ranked, spent = WAYS[method](task)
    settings, evaluator = task.settings(), task.job.evaluator
    plain = [plan for plan in [*ranked, task.start[0]] if not any(plan.params)][:1]
    finalists = list(dict.fromkeys([*choice(ranked, settings.finalists, task.last, task.job.space.free), *plain]))
    before = evaluator.cost.evaluations
    plan = choose(finalists, task.fid, settings, evaluator, Quiet())
    return plan, spent + evaluator.cost.evaluations - before


def make(task: Task, samples: int, rows: list[dict[str, Any]]) -> None:
    """Adds to ``rows`` what is missing there."""
    made = []
    for method in METHODS:
        key = {"model": task.model, "steps": task.steps, "method": method, "seed": task.seed, "budget": task.budget}
        if not any(key.items() <= row.items() for row in rows):
            made.append((key, *found_by(task, method)))
    evaluator, fid = judge(task.model)
    scores = evaluator.scores([plan for _, plan, _ in made], fid, samples, derive_seed(0, "confirm"))
    for (key, plan, spent), score in zip(made, scores, strict=True):
        found = {"times": plan.times, "params": plan.params}
        rows.append(key | {"evaluations": spent, "samples": samples, "fid": round(score.value, 5), **found})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one method a line, one model and number of steps a column, and the ratios to the default search."""
    found = {(row["model"], row["steps"], row["budget"], row["samples"]) for row in rows}
    columns = sorted(found, key=lambda column: (list(FRESH).index(column[0]), column[1:]))
    models = list(dict.fromkeys(column[0] for column in columns))
    heads = [f"{m}, {k} steps, {b / 1000:,.0f}k, {n:,} samples" for m, k, b, n in columns]
    heads += [f"{model}, to the search" for model in models]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        cells = [
            cell([r for r in own if (r["model"], r["steps"], r["budget"], r["samples"]) == column])
            for column in columns
        ]
        cells += [ratio([row for row in rows if row["model"] == model], method) for model in models]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    title = (
        f"FID, median over {len({row['seed'] for row in rows})} seeds [least, greatest] (cost of finding the plan, its "
        "choice included). Last: the ratio to the search's FID of the same seed, geometric mean over steps and seeds, "
        "and how often the method is better\n"
    )
    return "\n".join([title, ABOUT, "", *lines, ""])


def ratio(rows: Sequence[dict[str, Any]], method: str) -> str:
    """By which factor a method's FIDs differ from the default search's on one model, and how often they are lower."""
    keys = ("steps", "budget", "samples", "seed")
    theirs, own = (
        {tuple(row[key] for key in keys): row["fid"] for row in rows if row["method"] == name}
        for name in (SEARCH, method)
    )
    ratios = [fid / theirs[key] for key, fid in own.items()]
    return f"{np.exp(np.mean(np.log(ratios))):.2f}, {sum(r < 1 for r in ratios)} of {len(ratios)}" if ratios else ""


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mixture,empirical")
    parser.add_argument("--steps", default="4,6")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=BUDGET, help="for each step, for a trial")
    parser.add_argument("--samples", type=int, help="fresh samples of a figure, for a trial")
    parser.add_argument("--confirm", type=int, default=2000, help="samples of the choice among finalists, for a trial")
    parser.add_argument("--out", type=Path, default=OUT, help="the rows")
    parser.add_argument("--again", action="store_true", help="make the rows in the results again")
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    rows = _rows.load(args.out, args.again)
    for model, steps, seed in product(args.models.split(","), map(int, args.steps.split(",")), range(args.seeds)):
        make(Task(model, steps, seed, args.budget * steps, args.confirm), args.samples or FRESH[model], rows)
        _rows.save(args.out, rows)
    write(args.out.with_suffix(".md"), table(rows))
    print(table(rows), end="")


if __name__ == "__main__":
    main()
