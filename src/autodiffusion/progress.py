"""Signs of life: a bar on a terminal, plain lines elsewhere, nothing unless asked for."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PAUSE = 10.0
"""Seconds between two plain lines."""


class Quiet:
    """Shows nothing; what the library uses unless it is given another."""

    def phase(self, name: str, total: int) -> None:
        """Begins a part of the work that takes about ``total`` network evaluations."""

    def tick(self, evaluations: int) -> None:
        """So many more are done."""

    def note(self, text: str) -> None:
        """What is best so far, in a few words."""


class Shown(Quiet):
    """Shows phases on standard error, as a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._name, self._note, self._done, self._total = "", "", 0, 0
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Shown:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("network evaluations"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def phase(self, name: str, total: int) -> None:
        """Begins a part of the work."""
        if self._bar:
            for task in self._bar.tasks:  # sharing makes a phase end before its estimate: what is left is not to come
                self._bar.update(task.id, total=task.completed)
            self._bar.add_task(name, total=total, note="")
        self._name, self._done, self._total, self._note = name, 0, total, ""
        self._started = time.monotonic()

    def tick(self, evaluations: int) -> None:
        """Moves the bar; without a terminal, a line now and then."""
        self._done += evaluations
        if self._bar and self._bar.tasks:
            self._bar.advance(self._bar.tasks[-1].id, evaluations)
        elif time.monotonic() - self._last > PAUSE:
            self._line()

    def note(self, text: str) -> None:
        """Shown beside the bar."""
        self._note = text
        if self._bar and self._bar.tasks:
            self._bar.update(self._bar.tasks[-1].id, note=text)

    def _line(self) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._started
        left = elapsed * max(0, self._total - self._done) / max(1, self._done)
        note = f", {self._note}" if self._note else ""
        self.console.print(
            f"{self._name}: {self._done:,} of at most {self._total:,} evaluations{note}, about {left:.0f} s left",
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
        )
