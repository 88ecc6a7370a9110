"""Study: the ledger of a search on disk, from which it resumes at any point."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from errno import EACCES, ENOTDIR, EROFS
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from autodiffusion._errors import InputError
from autodiffusion._notebook import table
from autodiffusion._study import frames
from autodiffusion._study.events import check_event
from autodiffusion._study.settings import Settings, read_yaml
from autodiffusion._study.standing import Tally

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIG, LEDGER, PLAN, LOCK = "config.yaml", "study.jsonl", "plan.json", ".lock"
MAX_BYTES = 256 * 2**20
"""The largest ledger that is read; that of 2,000 candidates is below one."""
FIRST = (LOCK, CONFIG + ".partial")
"""All that a search leaves which is killed as it begins."""


class Study:
    """A folder with ``config.yaml``, ``study.jsonl`` (one event a line, only appended to), in the end ``plan.json``.

    An event is one JSON object on one line, so that it is either there or not. Used as a context manager; one writer
    at a time holds the folder.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Opens the study in ``folder``, beginning it where there is none.

        Raises:
            InputError: the folder cannot be written, holds something else, another configuration's study, or one that
                is being written.
        """
        self.folder, self.settings = folder, settings
        self.listener: Callable[[], None] | None = None
        """Called after each event that is recorded."""
        try:
            self.check(folder, settings)
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK)
            lock.acquire(timeout=0)
            try:
                if not (folder / CONFIG).exists():
                    write(folder / CONFIG, settings.dump())
                self.events = read_events(folder / LEDGER, mend=True)
            except BaseException:
                lock.release()
                raise
            self._lock: FileLock | None = lock
        except Timeout:
            raise InputError(
                f"{folder}: another process is writing this search; wait for it or give another folder"
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from None

    @classmethod
    def open(cls, folder: Path | str) -> Study:
        """The study in ``folder`` to be looked at, finished or not, as it is now; nothing is held or changed.

        Raises:
            InputError: there is none, or its files cannot be read.
        """
        folder = Path(folder)
        if not (folder / CONFIG).exists():
            raise InputError(f"{folder}: holds no search; give the folder that search --out wrote")
        study = cls.__new__(cls)
        study.folder, study.settings, study.listener, study._lock = folder, stored_settings(folder), None, None
        study.events = read_events(folder / LEDGER)
        return study

    @staticmethod
    def check(folder: Path, settings: Settings | None = None) -> None:
        """Raises :class:`InputError` if the folder holds anything but this search; changes nothing.

        Args:
            settings: of the search; without them any will do.
        """
        check_place(folder)
        try:
            if (folder / CONFIG).exists():
                if settings and (difference := settings.difference(stored_settings(folder))):
                    raise InputError(
                        f"{folder}: holds a search with other settings ({difference}); give another folder with --out"
                    )
            elif folder.exists() and any(entry.name not in FIRST for entry in folder.iterdir()):
                raise InputError(f"{folder}: is not empty and holds no search; give another folder with --out")
        except OSError as error:
            raise _unwritable(folder, error) from None

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.release()

    def record(self, event: dict[str, Any]) -> None:
        """Appends an event and makes sure that it is on disk.

        Raises:
            InputError: the study was opened to be looked at.
        """
        if self._lock is None:
            raise InputError(f"{self.folder}: was opened to be looked at; search writes it, with the settings it has")
        line = json.dumps(event, allow_nan=False, separators=(",", ":"))
        with open(self.folder / LEDGER, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(event)
        if self.listener:
            self.listener()

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, oldest first."""
        return [event for event in self.events if event["event"] == kind]

    def dataframe(self) -> DataFrame:
        """Every score in the search, as a frame of pandas; see :func:`autodiffusion._study.frames.of_candidates`.

        Raises:
            InputError: pandas is not installed.
        """
        return frames.of_candidates(self.events, self.settings.metric)

    def _repr_html_(self) -> str:
        settings, confirmed = self.settings, self.of_kind("confirm")
        standing = Tally(settings).standing(self.events)
        about = f"{settings.model}: {settings.steps} step{'s' * (settings.steps > 1)} of {settings.solver}"
        spent = f"{standing.candidates:,} candidates for {standing.evaluations:,} network evaluations times samples"
        notes = [f"{about}; {spent}, {standing.saved:,} more saved by sharing", f"in {self.folder}"]
        if confirmed:
            return frames.html(confirmed[-1]["rows"], notes)
        return table("not finished", ["best so far", "plan"], [[standing.best or "none", standing.steps]], notes)


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot be written ({error.strerror}); give another folder with --out")


def check_place(folder: Path) -> None:
    """Raises :class:`InputError` unless ``folder`` is one, or can be made; changes nothing."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; give a folder with --out")
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise _unwritable(folder, error) from None
    if not there.is_dir() or not os.access(there, os.W_OK):
        code = EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else EACCES if there.is_dir() else ENOTDIR
        raise _unwritable(folder, OSError(code, os.strerror(code)))


def check_several(folder: Path) -> None:
    """Raises :class:`InputError` unless several searches may have their folders in ``folder``; changes nothing."""
    check_place(folder)
    if (folder / CONFIG).exists():
        raise InputError(f"{folder}: holds a single search, not several; give another folder with --out")


def finished(folder: Path) -> bool:
    """Whether the search in ``folder`` has its figures: the last event of its ledger."""
    if not (folder / LEDGER).is_file():
        return False
    return '"event":"confirm"' in (folder / LEDGER).read_text(errors="replace").rstrip("\n").rpartition("\n")[2]


def write(path: Path, text: str) -> None:
    """Writes a file in one piece: a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a machine that loses power may keep the name without the text
    os.replace(partial, path)


def stored_settings(folder: Path) -> Settings:
    """The settings of the study in ``folder``."""
    return Settings.of(str(folder / CONFIG), **read_yaml(folder / CONFIG))


def _damaged(path: Path, number: int, why: str) -> InputError:
    reason = f" ({why})" if why else ""
    return InputError(
        f"{path}: line {number} is not an event of a search{reason}; restore the file or start in another folder"
    )


def read_events(path: Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """The events of a ledger. A torn last line, left by a writer that was killed, is dropped with a warning.

    Args:
        mend: it is gone on with: cut the torn line off the file as well, so that the next event starts on a line of its
            own, and take no plan that names code which is not here.

    Raises:
        InputError: a line other than the last cannot be read, or the file is larger than any ledger.
    """
    if not path.exists():
        return []
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: is larger than {MAX_BYTES >> 20} MiB and cannot be a ledger")
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            check_event(line, f"{path}: line {number}", run=mend)
        except (ValueError, RecursionError):
            raise _damaged(path, number, "") from None
        except InputError as error:
            raise _damaged(path, number, str(error).removeprefix(f"{path}: line {number}: ")) from None
        events.append(event)
    if torn:
        warnings.warn(f"{path}: the last line was cut off and is dropped", stacklevel=2)
        if mend:
            os.truncate(path, sum(len(line) + 1 for line in lines))
    return events
