"""A search's ledger as TensorBoard's scalars and images, in the folder ``tensorboard`` of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._names import resolve
from autodiffusion._study.settings import Settings
from autodiffusion._study.standing import Candidate, candidates

FOLDER = "tensorboard"
"""In the folder of a run; ``tensorboard --logdir RUN`` shows it."""
LINES = "search/lines_of_the_ledger"
"""The tag that counts the events written; a resumed search goes on after the last of them."""


def check() -> None:
    """Raises :class:`InputError` where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(f"tensorboard: {error}; install it with: pip install 'autodiffusion[tensorboard]'") from None


class Board:
    """Writes each event of a ledger once, in however many sittings, over the network evaluations spent until then.

    All scalars of an event are one record, which is there or not: a search that is killed leaves none of it half done.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Goes on after the events that are written already.

        Args:
            folder: of the run.
        """
        from torch.utils.tensorboard import FileWriter

        self._metric = settings.metric
        self._sign = -1.0 if resolve("metrics", settings.metric).better == "higher" else 1.0
        self._read = self._spent = self._saved = 0
        self._best: dict[int, float] = {}
        self._known: set[tuple[str, int, bool]] = set()
        self._written = _written(folder / FOLDER)
        self._writer = FileWriter(str(folder / FOLDER))

    def write(self, events: Sequence[dict[str, Any]]) -> None:
        """Writes what is new in ``events``, which begin with those of the call before."""
        for event in events[self._read :]:
            self._read += 1
            values = self._values(event)
            if values and self._read > self._written:
                self._put([*values, (LINES, self._read)])
        self._writer.flush()

    def draw(self, images: Tensor, spent: int) -> None:
        """Shows samples of the best plan so far.

        Args:
            images: uint8 ``[N, C, H, W]``; of other numbers of channels than one and three the first are shown.
            spent: network evaluations of the search until then, without what the images cost.
        """
        from torch.utils.tensorboard.summary import image

        shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
        self._writer.add_summary(image("best_plan", shown, dataformats="NCHW"), spent)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _values(self, event: dict[str, Any]) -> list[tuple[str, float]]:
        """The scalars of an event, by tag."""
        if event["event"] == "confirm":
            return [
                (f"confirmed_{metric}/{row['name']}", score["value"])
                for row in event["rows"]
                for metric, score in row["scores"].items()
                if score["value"] is not None
            ]
        if event["event"] != "scores":
            return []
        found = candidates([event], self._spent)
        values = [value for one in found if one.value is not None and one.allowed for value in self._scored(one)]
        self._spent += event["evaluations"]
        self._saved += event["saved"]
        search = {"round": event["generation"] + 1, "evaluations": self._spent, "saved_by_sharing": self._saved}
        return [*values, *((f"search/{name}", value) for name, value in search.items())]

    def _scored(self, one: Candidate) -> list[tuple[str, float]]:
        """A candidate's score, unless it is known; and the best of so many samples, where it is that."""
        assert one.value is not None
        key = (one.key, one.samples, one.own)
        if key in self._known:
            return []
        self._known.add(key)
        # scores of other numbers of samples are not to be compared, nor estimates with what is measured
        name = f"{self._metric}_of_{one.samples}_samples" if one.own else f"{self._metric}_estimated"
        values = [(f"candidates/{name}", one.value)]
        loss = self._sign * one.value
        if one.own and loss < self._best.get(one.samples, math.inf):
            self._best[one.samples] = loss
            values.append((f"best/{name}", one.value))
        return values

    def _put(self, values: Sequence[tuple[str, float]]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        content = [Summary.Value(tag=tag, simple_value=value) for tag, value in values]
        self._writer.add_summary(Summary(value=content), self._spent)


def _written(folder: Path) -> int:
    """How many events of the ledger an earlier sitting wrote."""
    if not folder.exists():
        return 0
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    scalars = event_accumulator.SCALARS
    events = event_accumulator.EventAccumulator(str(folder), {scalars: 0}).Reload()
    return int(max(entry.value for entry in events.Scalars(LINES))) if LINES in events.Tags()[scalars] else 0
