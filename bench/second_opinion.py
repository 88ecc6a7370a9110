"""Whether found plans are better by more than the metric that was searched, on the bundled model.

    .venv/bin/python -m bench.second_opinion [--plans name=plan.json,...] [--samples 5000] [--seed 1]

Plans, by default those in ``bench/plans``, beside uniform DDIM steps: FID, KID, precision and recall on the bundled
features; the FID on features of another network (``bench.second_features``), which had no part in any search; and how
often each class is drawn, as that network reads it. All plans see the same noise and classes, those of ``autodiffusion
evaluate`` with this seed, which no search chooses by; each figure has its 95 % interval. Rows go to ``OUT.json`` one by
one, and a plan that has one there of as many samples and this seed is not sampled again. ``OUT.md`` holds the tables
and says of each found plan in what it is worse than 50 uniform steps, ``OUT.png`` samples of the same seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._evaluation.confirm import Row, figure
from autodiffusion._evaluation.evaluate import derive_seed
from autodiffusion._plans.plan import Plan
from autodiffusion._references import reference
from autodiffusion._report import picture
from autodiffusion._sampling.sampling import nfe, sample
from autodiffusion._search.inputs import plan_of
from autodiffusion._study.study import write
from autodiffusion._views.progress import Progress
from autodiffusion.features import Extractor, Features
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics import Metric
from autodiffusion.metrics._base import Interval, interval
from autodiffusion.metrics.fid import FID
from autodiffusion.metrics.kid import KID
from autodiffusion.metrics.precision import Precision
from autodiffusion.metrics.recall import Recall
from autodiffusion.models._load import load
from autodiffusion.models._model import Model
from bench import _rows
from bench.second_features import NAME, REFERENCE

Rows = list[dict[str, Any]]

PLANS = Path(__file__).parent / "plans"
BASE = "uniform:50"
GRIDS = ("uniform:4", "uniform:10", BASE, "uniform:100")
SHOWN = 64
COUNTS = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
"""How often each digit is in MNIST's training images, by its labels."""


def shares(classes: Tensor) -> NDArray[np.float64]:
    """The share of each digit among classes ``[N]``."""
    return np.bincount(classes.numpy(), minlength=len(COUNTS)) / len(classes)


def drawn(features: Features) -> NDArray[np.float64]:
    """The share of each digit as the feature network reads the images."""
    assert features.logits is not None
    return shares(features.logits.argmax(1))


def distance(found: NDArray[np.float64]) -> float:
    """Half the sum of absolute differences from the shares of real digits (total variation), in [0, 1]."""
    return float(np.abs(found - COUNTS / COUNTS.sum()).sum() / 2)


class ClassDistance(Metric):
    """The total variation distance of the classes' shares from those of real digits."""

    better = "lower"
    needs = "logits"

    def measure(self, features: Features) -> float:
        return distance(drawn(features))


class LeastClass(Metric):
    """The share of the digit that is drawn least often."""

    better = "higher"
    needs = "logits"

    def measure(self, features: Features) -> float:
        return float(drawn(features).min())


class Aspect(NamedTuple):
    title: str
    kind: type[Metric]
    second: bool
    """Whether it is the second network's."""


FIGURES = {
    "fid": Aspect("FID", FID, False),
    "kid": Aspect("KID", KID, False),
    "precision": Aspect("precision", Precision, False),
    "recall": Aspect("recall", Recall, False),
    "second_fid": Aspect("FID, second network", FID, True),
    "class_distance": Aspect("classes: distance", ClassDistance, True),
    "least_class": Aspect("classes: least", LeastClass, True),
}


class Judges:
    """Both feature networks and every figure against its network's own reference."""

    def __init__(self, model: Model) -> None:
        first = load_features(model.features)
        second = load_features(NAME)
        assert model.reference is not None
        self.extractors: dict[bool, Extractor] = {False: first, True: second}
        real = {False: reference.load(model.reference, first), True: reference.load(REFERENCE, second)}
        self.metrics = {key: (each.kind(real[each.second]), each.second) for key, each in FIGURES.items()}

    def __call__(self, images: Tensor) -> tuple[dict[str, Interval], list[float]]:
        """Every figure of these images with its interval, and the share of each digit."""
        features = {second: extractor(images) for second, extractor in self.extractors.items()}
        scores = {key: interval(metric, features[second]) for key, (metric, second) in self.metrics.items()}
        return scores, drawn(features[True]).tolist()


def row_of(name: str, plan: Plan, model: Model, judges: Judges, samples: int, seed: int) -> dict[str, Any]:
    """The row of one plan."""
    evaluations = nfe(plan, model)
    with Progress() as progress:
        progress.phase(name, samples * evaluations)
        images = sample(model, plan, samples, derive_seed(seed, "confirm"), tick=progress.tick)
    scores, classes = judges(images)
    return Row(name, plan, evaluations, samples, seed, scores).to_json() | {"classes": classes}


def find(rows: Rows, plan: Plan, samples: int, seed: int) -> dict[str, Any] | None:
    """The row of this plan, whatever its name was."""
    made = (row for row in rows if (row["samples"], row["seed"]) == (samples, seed))
    return next((row for row in made if Plan.model_validate(row["plan"]) == plan), None)


def keep(path: Path, rows: Rows, row: dict[str, Any]) -> None:
    """Adds a row, in place of the one that a former plan of its name has, and writes them all."""
    same = ("name", "samples", "seed")
    rows[:] = [*(other for other in rows if any(other[key] != row[key] for key in same)), row]
    _rows.save(path, rows)


def table(rows: Rows, asked: NDArray[np.float64], name: str = "second_opinion") -> str:
    """The Markdown: every figure, every class's share, and in what found plans are worse.

    Args:
        rows: of the grids and the found plans, with equal samples and seed.
        asked: the share of each digit among the classes that the samples were asked to show.
        name: of the files.
    """
    titles = [each.title for each in FIGURES.values()]
    blank = " |" * (len(FIGURES) - 2)
    lines = [
        f"Made by `python -m bench.second_opinion`; the rows are in `{name}.json`, samples of the same seeds in",
        f"`{name}.png`. Bundled model, {rows[0]['samples']:,} samples of fresh noise, seed {rows[0]['seed']}, 95 % "
        "intervals.",
        "",
        f"| plan | evaluations | {' | '.join(titles)} |",
        "| --- | --- |" + " --- |" * len(titles),
        *(
            f"| {row['name']} | {row['nfe']} | {' | '.join(figure(row['scores'][key]) for key in FIGURES)} |"
            for row in rows
        ),
        f"| the classes asked for | |{blank} {distance(asked):.4g} | {asked.min():.4g} |",
        "",
        "Lower is better for the FIDs, KID and the classes' distance (total variation from the shares in MNIST's",
        "training set), higher for the others. The second network reads the classes. The model is asked for each as",
        "often as any other: a plan that draws just what it is asked for has the last line's figures.",
        "",
        *(f"- {verdict(row, rows)}" for row in rows if row["name"] not in GRIDS),
        "",
        "Beyond the intervals: by more than the 95 % interval of a difference between independent figures, the root of",
        "the sum of the squares of the halves that face each other.",
        "",
        f"| share in % | {' | '.join(map(str, range(len(COUNTS))))} |",
        "| --- |" + " --- |" * len(COUNTS),
        *(percentages(row["name"], row["classes"]) for row in rows),
        percentages("the classes asked for", asked),
        percentages("MNIST", COUNTS / COUNTS.sum()),
    ]
    return "\n".join(lines) + "\n"


def percentages(name: str, values: Sequence[float] | NDArray[np.float64]) -> str:
    return f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in values)} |"


def verdict(row: Mapping[str, Any], rows: Rows) -> str:
    """In what a plan is worse than the base: beyond the intervals, and within them."""
    base = next(other for other in rows if other["name"] == BASE)
    beyond, within = [], []
    for key, each in FIGURES.items():
        ours, theirs = row["scores"][key], base["scores"][key]
        near, far = ("low", "high") if each.kind.better == "lower" else ("high", "low")
        behind = ours["value"] - theirs["value"] if far == "high" else theirs["value"] - ours["value"]
        if behind > 0:
            # the halves that face each other; independent errors add as squares
            limit = math.hypot(ours["value"] - ours[near], theirs[far] - theirs["value"])
            (beyond if behind > limit else within).append(f"{each.title} ({figure(ours)}; {figure(theirs)})")
    said = f"**{row['name']}** is worse than {BASE} beyond the intervals in "
    said += f"**{', '.join(beyond)}**" if beyond else "nothing"
    return said + (f"; within them in {', '.join(within)}." if within else "; within them in nothing.")


def given_plans(text: str | None, model: Model) -> dict[str, Plan]:
    """The plans of ``name=plan.json,...``, or those in ``bench/plans``; the grids come first.

    Raises:
        InputError: a part is not of that form, a name stands there twice, or a plan cannot be used.
    """
    sources = {grid: grid for grid in GRIDS}
    for part in text.split(",") if text is not None else [f"{p.stem}={p}" for p in sorted(PLANS.glob("*.json"))]:
        name, equals, path = part.partition("=")
        if not equals or name.strip() in sources:
            raise InputError(f"{part!r} is not name=plan.json with a name of its own")
        sources[name.strip()] = path.strip()
    return {name: plan_of(source, model) for name, source in sources.items()}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", help="name=plan.json,...; by default the files in bench/plans")
    parser.add_argument("--samples", type=int, default=5000, help="of each plan")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/second_opinion"), help="without .json")
    args = parser.parse_args(given)
    if args.samples < 4:
        parser.error("--samples: give 4 or more, as KID needs")
    model = load("mnist")
    try:
        plans = given_plans(args.plans, model)
    except InputError as error:
        parser.error(f"--plans: {error}")
    judges = Judges(model)
    files = {kind: args.out.with_name(args.out.name + kind) for kind in (".json", ".md", ".png")}
    rows: Rows = _rows.load(files[".json"])
    shown = []
    for name, plan in plans.items():
        row = find(rows, plan, args.samples, args.seed)
        if row is None:
            row = row_of(name, plan, model, judges, args.samples, args.seed)
            keep(files[".json"], rows, row)
        shown.append(row | {"name": name})
    noise = derive_seed(args.seed, "confirm")
    asked = model.condition(range(args.samples), noise)
    assert isinstance(asked, torch.Tensor)
    text = table(shown, shares(asked), args.out.name)
    write(files[".md"], text)
    count = min(SHOWN, args.samples)
    titles = {f"{row['name']} ({row['nfe']} evaluations)": plans[row["name"]] for row in shown}
    picture({title: sample(model, plan, count, noise) for title, plan in titles.items()}, files[".png"])
    print(text, end="")


if __name__ == "__main__":
    main()
