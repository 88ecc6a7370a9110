"""Several numbers of steps in one go: each search begins with the plan of the one before, resampled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from autodiffusion._errors import InputError
from autodiffusion._search.crew import crew_of
from autodiffusion._search.job import Job
from autodiffusion._search.loop import TIMES, Result, search, with_teacher
from autodiffusion._search.pricing import load_times
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import PLAN, check_several, finished
from autodiffusion._views.progress import Quiet


def search_several(
    steps: Sequence[int], out: Path, progress: Quiet | None = None, where: str = "settings", **options: Any
) -> dict[int, Result]:
    """A plan for each number of steps, the smallest first, each in a folder of ``out`` that is called by it.

    What is shared: the model, the feature network, the reference, measured times of layers, and what the search before
    has found, which is a start of the next.
    A ``budget`` holds for all together; each gets a part in proportion to its steps, and what one leaves is the next
    ones'. Interrupted and called again it goes on, as :func:`~autodiffusion._search.loop.search` does.

    Args:
        options: as of :class:`Settings`, without ``steps``.

    Raises:
        InputError: as :func:`~autodiffusion._search.loop.search`, for any of the numbers, before anything is written.
        RunError: as there.
    """
    progress = progress or Quiet()
    check_several(out)
    counts = sorted(set(steps))
    if not counts:
        raise InputError(f"{where}: steps: is empty; give one number of steps or several, such as 4,6,10")
    budget = Settings.of(where, steps=counts[0], **options).budget
    options.pop("budget", None)
    job, times = None, load_times(out / str(counts[0]) / TIMES)
    for count in counts:
        share = None if budget is None else _share(budget, count, counts)
        settings = Settings.of(where, steps=count, budget=share, **options)
        job = Job.of(settings, None, times, progress, job)
    assert job is not None
    results: dict[int, Result] = {}
    left = budget
    done = all(finished(out / str(count)) for count in counts)
    with nullcontext() if done else crew_of(job.settings) as workers:
        for number, count in enumerate(counts):
            given = options | {"steps": count, "budget": None if left is None else _share(left, count, counts[number:])}
            settings = Settings.of(where, **given)
            if number:
                before = out / str(counts[number - 1])
                settings = settings.model_copy(update={"starts": [*settings.starts, str(before / PLAN)]})
                settings = with_teacher(settings, out / str(counts[0]))
            progress.part(f"{count} step{'s' * (count > 1)} ({number + 1} of {len(counts)})")
            results[count] = search(settings, out / str(count), progress, before=job, workers=workers)
            left = None if left is None else left - results[count].search_cost.evaluations
    return results


def _share(budget: int, count: int, counts: Sequence[int]) -> int:
    """The part of a budget for ``count`` steps, of those still to be searched."""
    return budget * count // sum(counts)
