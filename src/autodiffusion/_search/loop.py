"""A search from its settings to the plan found: candidates, the final table, pictures, report; resumed at any point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autodiffusion import __version__
from autodiffusion._errors import InputError
from autodiffusion._interrupts import patient
from autodiffusion._names import resolve
from autodiffusion._plans.plan import Plan
from autodiffusion._references.reference import Reference
from autodiffusion._report import report
from autodiffusion._sampling.blocks import Workers
from autodiffusion._sampling.sampling import Cost
from autodiffusion._search.candidates import score_candidates, standings
from autodiffusion._search.crew import at_work, keeping
from autodiffusion._search.final_table import final_table
from autodiffusion._search.job import Job, teacher_reference
from autodiffusion._search.pricing import load_times, save_times
from autodiffusion._search.showing import show
from autodiffusion._study import frames
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import PLAN, Study
from autodiffusion._views import tensorboard
from autodiffusion._views.progress import Quiet
from autodiffusion._views.watch import Watch
from autodiffusion.metrics import Metric
from autodiffusion.metrics._build import build
from autodiffusion.metrics.kl import KL
from autodiffusion.models._model import Model

if TYPE_CHECKING:
    from pandas import DataFrame

TEACHER = "reference.npz"
"""Where a study keeps a reference that its model made itself."""
TIMES = "layer_times.json"
"""Where a study keeps the measured times of its model's layers, in which its budget is counted."""


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        plan: the plan, with its fresh-noise figure and its cost as origin.
        rows: the final table: uniform, the best named grid, found, and the teacher where asked for; each with its
            ``cost`` in every unit that is known, where the network has layers; found also with what it ``searched``:
            its score in the search, on so many samples.
        search_cost: spent on candidates; ``confirm_cost`` on choosing among the best and on the table.
    """

    plan: Plan
    rows: list[dict[str, Any]]
    search_cost: Cost
    confirm_cost: Cost

    def dataframe(self) -> DataFrame:
        """The final table as a frame of pandas; see :func:`autodiffusion._study.frames.of_rows`.

        Raises:
            InputError: pandas is not installed.
        """
        return frames.of_rows(self.rows)

    def _repr_html_(self) -> str:
        searched, confirmed = self.search_cost, self.confirm_cost
        spent = (
            f"search: {searched.evaluations:,} network evaluations times samples, {searched.saved:,} more saved by "
            f"sharing; confirmation: {confirmed.evaluations:,}"
        )
        return frames.html(self.rows, [spent])


def search(
    settings: Settings,
    out: Path | str,
    progress: Quiet | None = None,
    model: Model | None = None,
    before: Job | None = None,
    workers: Workers | None = None,
) -> Result:
    """Searches a plan and leaves it, the ledger, the pictures and the report in ``out``; resumes what is there.

    Within it, the first Ctrl-C waits until the blocks of noise that are being sampled are done and kept.

    Args:
        model: the settings' model, where it is loaded already.
        before: of another search, as of :meth:`Job.of`.
        workers: of the settings, where they are at work already.

    Raises:
        InputError: something in the settings or in ``out`` cannot be used; nothing has been written.
        RunError: no candidate gave finite images, or one worker after the other died.
        KeyboardInterrupt: asked for; called again, the search goes on.
    """
    out, progress = Path(out), progress or Quiet()
    with _opened(settings, out, model, before, workers, progress) as (job, study, crew):
        with patient(), Watch(study, job.evaluator.model, progress):
            if not study.of_kind("confirm"):
                job, kept = keeping(job, study, crew)
                metric, reference = _score(job, study, progress)
                final_table(job, metric, reference, study, progress)
                kept.clear()
        result = _result(study)
        result.plan.save(out / PLAN)
        show(job.evaluator.model, job.settings, result.rows, out, progress)
        report(out)
    return result


def explore(
    settings: Settings,
    out: Path,
    share: float,
    progress: Quiet | None = None,
    model: Model | None = None,
    before: Job | None = None,
    workers: Workers | None = None,
) -> tuple[tuple[int, float], Plan] | None:
    """A search that stops after ``share`` of what it may spend; another call, or :func:`search`, goes on with it.

    Args:
        model: as of :func:`search`, and so ``before`` and ``workers``.

    Returns:
        The best plan's standing, lower is better: the negative of its samples, and its loss; and the plan. With layers
        it may cost more than what is found. ``None`` if no candidate has a score.
    """
    progress = progress or Quiet()
    with _opened(settings, out, model, before, workers, progress) as (job, study, crew):
        with patient(), Watch(study, job.evaluator.model, progress):
            job, kept = keeping(job, study, crew)
            metric, _ = _score(job, study, progress, share)
            kept.clear()
        found = standings(study.events, metric)
    return next((((-samples, loss), plan) for plan, (samples, loss) in found.items()), None)


@contextmanager
def _opened(
    settings: Settings,
    out: Path,
    model: Model | None,
    before: Job | None,
    workers: Workers | None,
    progress: Quiet,
) -> Iterator[tuple[Job, Study, Workers | None]]:
    """What the search in ``out`` works with, its study, and who samples; what is unusable is found before it writes."""
    if not isinstance(settings, Settings):
        raise InputError(
            f"search: {type(settings).__name__} given; make settings with Settings.of(model=..., steps=...)"
        )
    if settings.tensorboard:
        tensorboard.check()
    Study.check(out)  # before anything is loaded
    job = Job.of(settings, model, load_times(out / TIMES), progress, before)
    if workers is None and (settings.workers or settings.ray_address):
        progress.phase("starting the workers", 0)
    with at_work(job, out, workers) as crew, Study(out, job.settings) as study:
        yield job, study, crew


def _score(job: Job, study: Study, progress: Quiet, share: float = 1.0) -> tuple[Metric | KL, Reference]:
    """Scores candidates, and gives what they were scored by."""
    if job.times and not (study.folder / TIMES).exists():
        save_times(job.times, study.folder / TIMES)
    reference = job.reference or teacher_reference(job, study.folder / TEACHER, progress)
    metric = build(job.settings.metric, reference)
    _begin(job, study)
    score_candidates(job, metric, study, progress, share)
    return metric, reference


def _begin(job: Job, study: Study) -> None:
    """Notes what the report draws besides the scores."""
    if study.events:
        return
    schedule = job.evaluator.model.schedule
    times = [float(t) for t in np.linspace(schedule.first, schedule.last, 201)]
    study.record(
        {
            "event": "start",
            "autodiffusion": __version__,
            "times": times,
            "log_snr": [schedule.log_snr(t) for t in times],
            "planned": job.strategy.planned,
            "better": resolve("metrics", job.settings.metric).better,
            "guidance": job.evaluator.model.guidance,
            **({"layers": [vars(layer) for layer in job.evaluator.model.layers]} if job.layers else {}),
        }
    )


def with_teacher(settings: Settings, first: Path) -> Settings:
    """The same search with the samples of a teacher, if it has one, that the search in ``first`` has made."""
    if not (settings.reference or "").startswith("teacher:"):
        return settings
    return settings.model_copy(update={"reference": str(first / TEACHER)})


def spent_on(events: Iterable[dict[str, Any]]) -> Cost:
    """What the candidates of ledgers' events have cost."""
    scores = [event for event in events if event["event"] == "scores"]
    return Cost(sum(event["evaluations"] for event in scores), sum(event["saved"] for event in scores))


def _result(study: Study) -> Result:
    """The result that the ledger holds."""
    confirmed = study.of_kind("confirm")[-1]
    row = next(row for row in confirmed["rows"] if row["name"] == "found")
    settings, [start] = study.settings, study.of_kind("start")
    plan = Plan.model_validate(row["plan"]).with_origin(
        model=settings.model,
        **({"guidance": start["guidance"]} if "guidance" in start else {}),
        metric=settings.metric,
        **row["scores"].get(settings.metric, {}),
        samples=row["samples"],
        seed=row["seed"],
        **({"cost": row["cost"]} if "cost" in row else {}),
        autodiffusion=__version__,
    )
    return Result(plan, confirmed["rows"], spent_on(study.events), Cost(confirmed["evaluations"], confirmed["saved"]))
