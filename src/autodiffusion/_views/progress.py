"""Signs of life: a live view on a terminal and in a notebook, plain lines elsewhere, nothing unless asked for."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live

from autodiffusion._views.live import Doing, Page, ended, line, panel

if TYPE_CHECKING:
    from autodiffusion._study.standing import Standing

PAUSE = 10.0
"""Seconds between two plain lines."""


class Quiet:
    """Shows nothing; what the library uses unless it is given another."""

    def part(self, name: str) -> None:
        """Says which of several searches the phases from now on belong to: ``solver ddim (1 of 3)``."""

    def phase(self, name: str, total: int, unit: str = "evaluations") -> None:
        """Begins a part of the work that takes at most ``total`` network evaluations, or so many of another unit."""

    def before(self, evaluations: int) -> None:
        """So many of the phase just begun were done before, by a search that was interrupted."""

    def tick(self, evaluations: int) -> None:
        """So many more are done."""

    def note(self, text: str) -> None:
        """What is best so far, in a few words."""

    def stand(self, standing: Standing) -> None:
        """How a search stands, whenever that changes."""


class Progress(Quiet):
    """Shows phases on standard error, or below a notebook's cell, as a context manager.

    with Progress() as progress:
        result = search(settings, Path("run"), progress)
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._doing, self._part = Doing(), ""
        self._live: Live | None = None
        self._page: Page | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Progress:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(console=self.console, get_renderable=self._panel, transient=True)
            self._live.start()
        elif self.console.is_jupyter:
            self._page = Page.there()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if self._live:
            self._live.stop()

    def part(self, name: str) -> None:
        """Shown beside the phases that follow."""
        self._part = name

    def phase(self, name: str, total: int, unit: str = "evaluations") -> None:
        """Begins a part of the work; a line of the one before stays."""
        self._end()
        self._doing = Doing(name, self._part, total, time.monotonic(), standing=self._doing.standing, unit=unit)
        self._show()

    def before(self, evaluations: int) -> None:
        """Counts as done, but says nothing of how fast it goes."""
        self._doing.before = evaluations

    def tick(self, evaluations: int) -> None:
        """Moves the bar; without a live view, a line now and then."""
        self._doing.done += evaluations
        self._show()

    def note(self, text: str) -> None:
        """Shown beside the bar."""
        self._doing.note = text

    def stand(self, standing: Standing) -> None:
        """Shown below the bar; in lines only what is best."""
        self._doing.standing = standing
        self.note(standing.best)

    def _panel(self) -> RenderableType:
        return panel(self._doing, time.monotonic())

    def _show(self) -> None:
        """Shows how it stands, but a terminal's view, which looks by itself."""
        now = time.monotonic()
        if self._page:
            self._page.show(lambda: panel(self._doing, now), now)
        elif not self._live and now - self._last > PAUSE:
            self._last = now
            self._print(line(self._doing, now))

    def _end(self) -> None:
        """Leaves a line of the phase that ends, where there is a view that would forget it."""
        if self._doing.name and (self._live or self._page):
            text = ended(self._doing, time.monotonic())
            if self._page:
                self._page.keep(text)
            else:
                self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
