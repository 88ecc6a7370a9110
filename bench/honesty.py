"""Whether what searches report holds on fresh noise: 20 short searches, each found plan sampled again ten times over.

    .venv/bin/python -m bench.honesty [--searches 20] [--budget 20000] [--confirm-samples N] [--seed 0]

Models whose best denoiser is known (``bench.models``), the default preset, and in turn the solvers ddim and
dpm_solver++ and 4 and 6 steps. The plan that a search found gets ten times the samples of its reported figure, on
noise that nothing else uses. That is read in two ways, since a FID falls with the number of samples it is made from:

again   the mean FID of ten sets, each as large as the reported figure's: the same quantity, with less noise. Of honest
        95 % intervals about 94 % hold it, since its own noise adds a tenth to the variance; at least 18 of 20 do so
        in seven of eight cases.
pooled  the FID of all those samples together: nearer to the limit of endless samples, and lower than what is reported
        by the difference of the two biases, for any plan and however honest.

The search-time score is the same plan's in the search's ledger, of the most samples that it got there. ``fresh`` is
the mean FID of fresh sets of as many samples, and the standard deviation among them: a score far below was luck. Of
some plans such a short search has no more than a first look, which is no score.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from autodiffusion._evaluation.evaluate import derive_seed
from autodiffusion._plans.plan import Plan
from autodiffusion._search.inputs import find_reference, prepare
from autodiffusion._search.loop import search
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import LEDGER, read_events
from autodiffusion.features import Features
from autodiffusion.metrics import Metric
from autodiffusion.metrics._build import build
from autodiffusion.models._load import load
from bench.models import reference_of

MODELS, SOLVERS, STEPS = ("mixture", "empirical"), ("ddim", "dpm_solver++"), (4, 6)
TIMES = 10


def settings_of(number: int, options: dict[str, Any]) -> Settings:
    """Search ``number``: models, solvers and steps in turn, each with a seed of its own."""
    name, solver, steps = MODELS[number % 2], SOLVERS[number // 2 % 2], STEPS[number // 4 % 2]
    options = options | {"seed": options["seed"] + number}
    return Settings.of(
        model=f"bench.models:{name}", reference=reference_of(name), solver=solver, steps=steps, threads=1, **options
    )


def searched(settings: Settings, folder: Path) -> dict[str, Any]:
    """A search and its found plan's figures: search-time, reported, again, pooled."""
    start = time.perf_counter()
    result = search(settings, folder)
    seconds = time.perf_counter() - start
    row = next(row for row in result.rows if row["name"] == "found")
    evaluator, source = prepare(load(settings.model), reference=settings.reference)
    metric = build("fid", find_reference(source, evaluator))
    assert isinstance(metric, Metric)
    noise = derive_seed(settings.seed, "honesty")
    [features] = evaluator.features([result.plan], TIMES * row["samples"], noise)
    assert isinstance(features, Features)
    samples, score = search_score(folder, result.plan)
    sets = parts(features, metric, samples or row["samples"])
    return {
        "model": settings.model.partition(":")[2],
        "solver": settings.solver,
        "steps": settings.steps,
        "seed": settings.seed,
        "seconds": round(seconds, 1),
        "search": score,
        "search_samples": samples,
        "fresh": float(np.mean(sets)),
        "fresh_deviation": float(np.std(sets, ddof=1)),
        "reported": row["scores"]["fid"],
        "samples": row["samples"],
        "again": float(np.mean(parts(features, metric, row["samples"]))),
        "pooled": metric.value(features),
    }


def search_score(folder: Path, plan: Plan) -> tuple[int, float | None]:
    """The number of samples and the value of a plan's own score in the ledger, of the most samples that it got; nothing
    where the search had no more than a first look at it.
    """
    scores = [
        (event["samples"], score["value"])
        for event in read_events(folder / LEDGER)
        if event["event"] == "scores" and event.get("anchor") is None and not event.get("extrapolated")
        for score in event["scores"]
        if score["value"] is not None and Plan.model_validate(score["plan"]) == plan
    ]
    return max(scores, default=(0, None))


def parts(features: Features, metric: Metric, samples: int) -> list[float]:
    """The values of disjoint sets of so many samples."""
    return [metric.value(features.take(range(i, i + samples))) for i in range(0, len(features) - samples + 1, samples)]


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many searches' re-evaluations and search-time scores lie where they should."""

    def inside(key: str) -> int:
        return sum(row["reported"]["low"] <= row[key] <= row["reported"]["high"] for row in rows)

    scored = [row for row in rows if row["search"] is not None]
    return {
        "searches": len(rows),
        "again_inside": inside("again"),
        "pooled_inside": inside("pooled"),
        "scored": len(scored),
        "search_below_fresh": sum(row["search"] < row["fresh"] for row in scored),
        "search_as_fresh": sum(abs(row["search"] - row["fresh"]) <= 1.96 * row["fresh_deviation"] for row in scored),
    }


def line(row: dict[str, Any]) -> str:
    reported = row["reported"]
    held = "inside" if reported["low"] <= row["again"] <= reported["high"] else "OUTSIDE"
    fresh = f"(fresh {row['fresh']:.4g} ± {row['fresh_deviation']:.2g})"
    search = "first look only" if row["search"] is None else f"search {row['search']:<7.4g} {fresh}"
    return (
        f"{row['model']:<10}{row['solver']:<13}{row['steps']}  {search}  "
        f"reported {reported['value']:.4g} [{reported['low']:.4g}, {reported['high']:.4g}]  "
        f"again {row['again']:.4g} {held}, pooled {row['pooled']:.4g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--budget", type=int, default=20_000, help="network evaluations of a search")
    parser.add_argument("--confirm-samples", type=int, help="of the figures reported; by default the preset's")
    parser.add_argument("--seed", type=int, default=0, help="of the first search")
    parser.add_argument("--out", type=Path, default=Path("bench/results/honesty.json"))
    args = parser.parse_args()
    options = {"budget": args.budget, "confirm_samples": args.confirm_samples, "seed": args.seed}
    rows = []
    for number in range(args.searches):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(searched(settings_of(number, options), Path(folder) / "run"))
        print(line(rows[-1]), flush=True)
    found = counts(rows)
    of = f"of {found['searches']}"
    print(f"\ninside the reported interval: again, at equal sample counts, {found['again_inside']} {of}")
    print(f"                              pooled {found['pooled_inside']} {of}")
    full = f"of {found['scored']} that had a full score"
    print(f"search-time scores below the mean of fresh sets of as many samples: {found['search_below_fresh']} {full};")
    print(f"    within 1.96 standard deviations of it: {found['search_as_fresh']}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in options.items() if value is not None} | found | {"rows": rows}
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
