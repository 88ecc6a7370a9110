"""What looks on while a search writes its ledger: a view, the report, TensorBoard. None of them changes the search."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from types import TracebackType

from autodiffusion._plans.plan import Plan
from autodiffusion._report import report
from autodiffusion._sampling.sampling import sample
from autodiffusion._study.standing import Standing, Tally
from autodiffusion._study.study import Study
from autodiffusion._views.progress import Quiet
from autodiffusion._views.tensorboard import Board
from autodiffusion.models._model import Model

REFRESH = 30.0
"""Seconds at least before the report is drawn again, and before each picture of samples."""
SHARE = 0.02
"""Of the time that a search takes, the most that each of these may."""
PICTURES = 16
"""Samples in a picture."""


class Pace:
    """Does something now and then: at most every :data:`REFRESH` seconds and in a small :data:`SHARE` of the time."""

    def __init__(self) -> None:
        """Nothing is due yet."""
        self._due = time.monotonic() + REFRESH

    def __call__(self, work: Callable[[], object]) -> None:
        """Does ``work`` if it is due."""
        before = time.monotonic()
        if before >= self._due:
            work()
            after = time.monotonic()
            self._due = after + max(REFRESH, (after - before) / SHARE)


class Watch:
    """Looks at a study whenever something is recorded in it; a context manager.

    What fails is said once in a warning and left out from then on: a search doesn't end for a drawing.
    """

    def __init__(self, study: Study, model: Model, progress: Quiet) -> None:
        """Begins with what the study holds already.

        Args:
            model: that the study's plans are for; draws their samples for TensorBoard, where that is asked for.
        """
        self._study, self._model, self._progress = study, model, progress
        self._tally, self._failed = Tally(study.settings), set[str]()
        self._drawing, self._sampling = Pace(), Pace()
        self._board: Board | None = None
        self._drawn: Plan | None = None

    def __enter__(self) -> Watch:
        if self._study.settings.tensorboard:
            self._try("TensorBoard", self._open)
        self._study.listener = self._look
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._study.listener = None
        if self._board:
            self._try("TensorBoard", self._board.close)

    def _look(self) -> None:
        events, board = self._study.events, self._board
        standing = self._tally.standing(events)
        self._progress.stand(standing)
        self._try("report", lambda: self._drawing(lambda: report(self._study.folder)))
        if board:
            self._try("TensorBoard", lambda: board.write(events))
            if standing.plan and standing.plan != self._drawn:
                self._try("TensorBoard's samples", lambda: self._sampling(lambda: self._draw(board, standing)))

    def _open(self) -> None:
        self._board = Board(self._study.folder, self._study.settings)

    def _draw(self, board: Board, standing: Standing) -> None:
        """Samples of the best plan, which cost network evaluations that are not the search's."""
        assert standing.plan
        images = sample(self._model, standing.plan, PICTURES, self._study.settings.seed)
        board.draw(images, standing.evaluations)
        self._drawn = standing.plan

    def _try(self, name: str, work: Callable[[], object]) -> None:
        if name in self._failed:
            return
        try:
            work()
        except Exception as error:  # a drawing library's, a full disk, no memory left: the search goes on
            self._failed.add(name)
            warnings.warn(f"{name}: {error!r}; the search goes on without it", stacklevel=2)
