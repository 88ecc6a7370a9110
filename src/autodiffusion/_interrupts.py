"""Ctrl-C in a long run: once, and what is being scored is finished and kept; twice, and it stops now."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_asked = threading.Event()


@contextmanager
def patient() -> Iterator[None]:
    """Within it, the first Ctrl-C waits for the next :func:`checkpoint`, or the end, and the second is one as ever.

    Only a main thread is told of signals; in any other nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if _asked.is_set():
            raise KeyboardInterrupt
        _asked.set()
        with suppress(RuntimeError):  # where it comes while something else is being written
            print("\nfinishes the block of noise in work, and stops; Ctrl-C again stops now", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        late = _asked.is_set()
        _asked.clear()
    if late:
        raise KeyboardInterrupt


def asked() -> bool:
    """Whether there was one since."""
    return _asked.is_set()


def checkpoint() -> None:
    """To be called where nothing that was done would be lost.

    Raises:
        KeyboardInterrupt: it was asked for since.
    """
    if _asked.is_set():
        raise KeyboardInterrupt
