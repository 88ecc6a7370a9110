"""What a finished search shows besides its figures: the same seeds by each plan, and how long sampling takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autodiffusion._evaluation.timing import fitting, plan_times
from autodiffusion._plans.plan import Plan
from autodiffusion._report.mosaics import GRID, picture
from autodiffusion._report.run import SAMPLING_TIMES
from autodiffusion._sampling.sampling import nfe, sample
from autodiffusion._search.inputs import teacher_plan
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import write
from autodiffusion._views.progress import Quiet
from autodiffusion.models._model import Model

SAMPLES = 36
"""In the picture, by each plan."""
TEACHER_STEPS = 100
"""Of the plan that the picture shows beside the others, where the final table has no teacher."""
SECONDS, ROUNDS = 2.0, 9
"""How long sampling is timed, and how often at most; where a plan takes long, one round that counts is enough."""
LONG = 2
"""Times the fewest evaluations above which a plan is timed by itself, so that others are timed often beside it."""


def show(model: Model, settings: Settings, rows: Sequence[Mapping[str, Any]], out: Path, progress: Quiet) -> None:
    """Leaves the picture and the times of the plans in a final table in ``out``, unless they are there."""
    plans = {row["name"]: Plan.model_validate(row["plan"]) for row in rows if row["problem"] is None}
    if not plans:
        return
    if not (out / GRID).exists():
        _picture(model, settings, plans, out / GRID, progress)
    if not (out / SAMPLING_TIMES).exists():
        progress.phase("measuring how long sampling takes", 0)
        fitting(lambda size: _time(model, size, plans, out / SAMPLING_TIMES), settings.batch_size)


def _picture(model: Model, settings: Settings, plans: dict[str, Plan], path: Path, progress: Quiet) -> None:
    """The same seeds by the full-step teacher and by each plan of the table, side by side."""
    if not settings.teacher and (steps := min(TEACHER_STEPS, len(model.schedule))) > settings.steps:
        plans = {f"teacher ({steps} steps)": teacher_plan(model, steps)} | plans
    plans = dict(sorted(plans.items(), key=lambda item: not item[0].startswith("teacher")))
    progress.phase("pictures", SAMPLES * sum(nfe(plan, model) for plan in plans.values()))
    size = min(SAMPLES, settings.batch_size)
    picture(
        {name: sample(model, plan, SAMPLES, settings.seed, size, progress.tick) for name, plan in plans.items()}, path
    )


def _time(model: Model, batch_size: int, plans: Mapping[str, Plan], path: Path) -> None:
    """Milliseconds for one sample of each plan, the median of the rounds and their quartiles."""
    evaluations = {name: nfe(plan, model) for name, plan in plans.items()}
    alike = [name for name in plans if evaluations[name] <= LONG * min(evaluations.values())]
    ms: dict[str, list[float]] = {}
    for names in (alike, *([name] for name in plans if name not in alike)):
        times = plan_times(model, [plans[name] for name in names], batch_size, SECONDS, ROUNDS)
        ms |= {name: [time.low, time.ms, time.high] for name, time in zip(names, times, strict=True)}
    device = torch.device(model.device)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    write(path, json.dumps({"device": named, "batch_size": batch_size, "ms": ms}) + "\n")
