"""Time of a search on the bundled model outside the network and the feature network, by what it is spent on.

    .venv/bin/python -m bench.overhead [--steps 4] [--budget 20000] [--confirm-samples N] [--json FILE]

One thread. Shares are of processor time, which other work on the machine does not change; waiting for the disk shows
only in the wall time beside it. A part's time is that inside the functions of :func:`parts`, less what other parts take
there. Setup (imports, loading the model, checking the inputs) is listed, and is no part of the search.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse
import builtins
import inspect
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from autodiffusion._evaluation.pool import Pool
from autodiffusion._names import resolve
from autodiffusion._plans.plan import Plan
from autodiffusion._search import loop
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import Study
from autodiffusion._views.progress import Quiet
from autodiffusion.features import Extractor
from autodiffusion.models._model import Model

NETWORKS = ("network", "feature network")
SETUP = "setup"
Times = tuple[float, float]
"""Seconds of processor and of wall time."""


def methods(cls: type) -> list[tuple[Any, str]]:
    """The public methods of a class, its bases' included."""
    return [
        (cls, name) for name in dir(cls) if name[0] != "_" and inspect.isfunction(inspect.getattr_static(cls, name))
    ]


def parts(settings: Settings) -> dict[str, list[tuple[Any, str]]]:
    """What is timed besides the networks: functions of modules and classes. The rest is the loop's."""
    return {
        "imports": [(builtins, "__import__")],
        "noise, labels": [(Model, "noise"), (Model, "condition")],
        "solver": methods(resolve("solvers", settings.solver)),
        "walking": methods(Pool),
        "pixels": [(Model, "decode"), (Extractor, "_batch")],
        "metric": methods(resolve("metrics", settings.metric)),
        "strategy": methods(resolve("strategies", settings.strategy)),
        "plans in JSON": [(Plan, "model_validate"), (Plan, "model_dump")],
        "ledger": [(Study, "record")],
        "report, pictures": [(loop, "show"), (loop, "report")],
    }


@dataclass
class Clock(Quiet):
    """Times parts exclusively: what happens in a part inside another counts for the inner one alone.

    Attributes:
        spent: seconds by (phase, part).
        phase_name: where the time now counts; as the search's progress it learns when that changes.
    """

    spent: dict[tuple[str, str], Times] = field(default_factory=dict)
    phase_name: str = SETUP
    running: list[str] = field(default_factory=lambda: ["loop"])
    last: Times = field(default_factory=lambda: now())

    def book(self) -> None:
        """Counts the time since the last call for the part that is running."""
        time_now, key = now(), (self.phase_name, self.running[-1])
        before = self.spent.get(key, (0.0, 0.0))
        self.spent[key] = (before[0] + time_now[0] - self.last[0], before[1] + time_now[1] - self.last[1])
        self.last = time_now

    def phase(self, name: str, total: int, unit: str = "evaluations") -> None:
        self.book()
        self.phase_name = name

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted for ``part``."""

        def run(*args: Any, **options: Any) -> Any:
            self.book()
            self.running.append(part)
            try:
                return function(*args, **options)
            finally:
                self.book()
                self.running.pop()

        return run

    @contextmanager
    def watching(self, settings: Settings) -> Iterator[None]:
        """Times everything in :func:`parts`, and the networks of all models and extractors made meanwhile."""
        made_model, made_extractor = Model.__post_init__, Extractor.__post_init__

        def model_made(model: Model) -> None:
            made_model(model)
            model.network = self.timed("network", model.network)

        def extractor_made(extractor: Extractor) -> None:
            made_extractor(extractor)
            extractor.module.forward = self.timed("feature network", extractor.module.forward)

        with ExitStack() as stack:
            stack.enter_context(patch.object(Model, "__post_init__", model_made))
            stack.enter_context(patch.object(Extractor, "__post_init__", extractor_made))
            for part, places in parts(settings).items():
                for owner, name in places:
                    function = getattr(owner, name)
                    timed = self.timed(part, function)
                    bound = inspect.isclass(owner) and inspect.ismethod(function)  # a class method
                    stack.enter_context(patch.object(owner, name, staticmethod(timed) if bound else timed))
            yield
        self.book()


def now() -> Times:
    return time.process_time(), time.perf_counter()


def measure(settings: Settings, out: Path) -> dict[tuple[str, str], Times]:
    """The seconds that a search into ``out`` takes, by (phase, part)."""
    clock = Clock()
    with clock.watching(settings):
        loop.search(settings, out, clock)
    return clock.spent


def share(spent: dict[tuple[str, str], Times], phases: list[str]) -> float:
    """What part of the processor time of these phases is outside the networks, 0 to 1."""
    times = [(part, cpu) for (phase, part), (cpu, _) in spent.items() if phase in phases]
    return sum(cpu for part, cpu in times if part not in NETWORKS) / sum(cpu for _, cpu in times)


def table(spent: dict[tuple[str, str], Times]) -> str:
    """The parts of each phase, those that take most first, and the shares outside the networks."""
    phases = list(dict.fromkeys(phase for phase, _ in spent))
    searching = [phase for phase in phases if phase != SETUP]
    lines = [f"{'part':<18} {'processor':>10} {'wall':>10} {'share':>8}"]
    for phase in phases:
        parts = {part: times for (of, part), times in spent.items() if of == phase}
        whole = sum(cpu for cpu, _ in parts.values())
        lines += ["", f"{phase:<18} {whole:8.2f} s {sum(wall for _, wall in parts.values()):8.2f} s"]
        for part, (cpu, wall) in sorted(parts.items(), key=lambda item: -item[1][0]):
            lines.append(f"  {part:<16} {cpu:8.2f} s {wall:8.2f} s {cpu / whole:8.2%}")
    lines += [""] + [f"outside the networks, {phase}: {share(spent, [phase]):.2%}" for phase in searching]
    return "\n".join([*lines, f"outside the networks, all but setup: {share(spent, searching):.2%}"])


def main() -> None:
    start = time.process_time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--budget", type=int, default=20_000, help="network evaluations of the search")
    parser.add_argument("--confirm-samples", type=int, help="of the figures reported; by default the preset's")
    parser.add_argument("--json", type=Path, help="writes the seconds to this file as well")
    args = parser.parse_args()
    options = {"steps": args.steps, "budget": args.budget, "confirm_samples": args.confirm_samples, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        spent = measure(Settings.of(model="mnist", **options), Path(folder) / "run")
    print(f"{start:.2f} s of processor time before anything, most of it importing torch")
    print(table(spent))
    if args.json:
        rows = [
            {"phase": phase, "part": part, "cpu": cpu, "wall": wall} for (phase, part), (cpu, wall) in spent.items()
        ]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
