"""Ctrl-C: a wish to stop is never lost, whatever the search is at."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from autodiffusion import Settings, search
from autodiffusion._interrupts import checkpoint, patient
from autodiffusion._study.study import LEDGER
from autodiffusion._views.progress import Quiet


def stopped_in(done: list[str], *, error: Exception | None = None, check: bool = False) -> None:
    """Work that is interrupted at its beginning."""
    with patient():
        signal.raise_signal(signal.SIGINT)
        done.append("what was in work")
        if check:
            checkpoint()
            done.append("more")
        if error:
            raise error


@pytest.mark.parametrize("check", [True, False])
def test_the_first_waits_for_a_checkpoint_or_the_end(check: bool) -> None:
    before, done = signal.getsignal(signal.SIGINT), list[str]()
    with pytest.raises(KeyboardInterrupt):
        stopped_in(done, check=check)
    assert done == ["what was in work"]
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint()  # what was asked for then is over


def test_an_error_after_it_stays_the_error() -> None:
    with pytest.raises(ValueError, match="other"):
        stopped_in([], error=ValueError("other"))


class Stopped(Quiet):
    """Is interrupted while the second round is scored."""

    def __init__(self, folder: Path) -> None:
        self.ledger, self.asked = folder / LEDGER, False

    def tick(self, evaluations: int) -> None:
        if not self.asked and self.ledger.exists() and b'"generation":0' in self.ledger.read_bytes():
            self.asked = True
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("metric", ["fid", "kl"])
def test_a_search_stops_in_the_round_in_which_it_was_asked(real_images: Path, tmp_path: Path, metric: str) -> None:
    options: dict[str, Any] = {"population": 4, "generations": 4, "parents": 2, "mutations": 2, "crossovers": 0}
    settings = Settings.of(
        model="small:model",
        reference=str(real_images),
        metric=metric,
        steps=3,
        samples=20,
        strategy="evolution",
        strategy_options=options,
    )
    with pytest.raises(KeyboardInterrupt):
        search(settings, tmp_path / "run", Stopped(tmp_path / "run"))
    events = [json.loads(line) for line in (tmp_path / "run" / LEDGER).read_text().splitlines()]
    rounds = [event["generation"] for event in events if event["event"] == "scores"]
    assert rounds in ([0], [0, 1])
