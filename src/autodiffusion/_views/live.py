"""What a search looks like while it runs: a few lines of 80 columns, on a terminal or below a notebook's cell."""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from autodiffusion._study.standing import Standing

OFTEN = 1.0
"""Seconds between two changes of a notebook's view."""
COLUMNS = 80
"""Of a notebook's view."""


@dataclass
class Doing:
    """A part of the work, as far as it is done.

    Attributes:
        part: which of several searches it belongs to, if there are several.
        total: network evaluations that it takes at most, or about.
        started: in seconds.
        done: network evaluations since then; ``before`` those of a search that was interrupted.
        note: what is best so far, in a few words.
        standing: of the search, where there is one.
        unit: what ``total`` and ``done`` count, where it is not network evaluations.
    """

    name: str = ""
    part: str = ""
    total: int = 0
    started: float = 0.0
    done: int = 0
    before: int = 0
    note: str = ""
    standing: Standing | None = None
    unit: str = "evaluations"

    @property
    def sum(self) -> int:
        """All evaluations that are done, whenever they were."""
        return self.before + self.done

    def left(self, now: float) -> float | None:
        """About how many seconds more it takes; ``None`` before the first evaluation."""
        return (now - self.started) * max(0, self.total - self.sum) / self.done if self.done else None


def line(doing: Doing, now: float) -> str:
    """The state in one line, for where lines stay."""
    part = f" ({doing.part})" if doing.part else ""
    note = f", {doing.note}" if doing.note else ""
    if not doing.total:
        return f"{doing.name}{part}"
    left = f", at most about {seconds:.0f} s left" if (seconds := doing.left(now)) is not None else ""
    return f"{doing.name}{part}: {doing.sum:,} of at most {doing.total:,} {doing.unit}{note}{left}"


def ended(doing: Doing, now: float) -> str:
    """What is left to be said of a part of the work that is over."""
    said = [doing.name, doing.part, f"{doing.sum:,} {doing.unit}" if doing.sum else "", clock(now - doing.started)]
    return ", ".join(filter(None, [*said, doing.note]))


def panel(doing: Doing, now: float) -> RenderableType:
    """The state as a bar and up to two lines below it, each cut off where the view ends."""
    if not doing.name:
        return Text()
    head = Table.grid(padding=(0, 2, 0, 0), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1, no_wrap=True)
    for _ in range(3):
        head.add_column(no_wrap=True)
    left = doing.left(now)
    head.add_row(
        Text(doing.name),
        ProgressBar(max(1, doing.total), min(doing.sum, doing.total)),
        f"{doing.sum:,}/{doing.total:,} {doing.unit}" if doing.total else "",
        clock(now - doing.started),
        "" if left is None else f"{clock(left)} left",
    )
    return Group(head, *(Text(text, style="dim", no_wrap=True, overflow="ellipsis") for text in below(doing)))


def below(doing: Doing) -> list[str]:
    """What a view says below its bar: where the search stands, and what is best so far."""
    standing = doing.standing
    where = [doing.part]
    if standing and standing.rounds:
        where += [f"round {standing.rounds:,}", f"{standing.candidates:,} candidates"]
        where += [f"{standing.saved:,} saved by sharing"] if standing.saved else []
    best = f"{standing.best}: {standing.steps}" if standing and standing.plan else doing.note
    return [text for text in (", ".join(filter(None, where)), best) if text]


def clock(seconds: float) -> str:
    """``0:01:23``."""
    return str(timedelta(seconds=round(seconds)))


class Page:
    """A view below a notebook's cell, which changes in place: preformatted text, no scripts and no widgets."""

    def __init__(self, display: Callable[..., Any]) -> None:
        """A view that nothing is shown in yet.

        Args:
            display: as ``IPython.display.display``.
        """
        self._kept: list[str] = []
        self._last = 0.0
        self._handle = display(self._content(""), raw=True, display_id=True)

    @classmethod
    def there(cls) -> Page | None:
        """A view in the notebook that this runs in; ``None`` where there is none."""
        try:
            return cls(import_module("IPython.display").display)
        except ImportError:
            return None

    def show(self, panel: Callable[[], RenderableType], now: float) -> None:
        """Shows ``panel`` below what is kept, unless that was done a moment ago."""
        if now - self._last >= OFTEN:
            self._last = now
            self._update(_text(panel()))

    def keep(self, text: str) -> None:
        """Shows ``text`` from now on, and no panel until the next."""
        self._kept.append(text)
        self._last = 0.0
        self._update("")

    def _update(self, text: str) -> None:
        self._handle.update(self._content(text), raw=True)

    def _content(self, text: str) -> dict[str, str]:
        text = "\n".join([*self._kept, text]).rstrip()
        return {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}


def _text(drawn: RenderableType) -> str:
    """A drawing as it looks without colours."""
    console = Console(file=io.StringIO(), width=COLUMNS, force_terminal=False, force_jupyter=False, no_color=True)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()
