"""The examples of the page on what users bring: a metric against its closed form, a strategy that climbs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from autodiffusion import NoiseSchedule, Plan, SearchSpace
from autodiffusion._names import own
from autodiffusion._references.reference import Reference
from autodiffusion.features import Features
from autodiffusion.strategies._base import build

PAGE = (Path(__file__).parents[1] / "docs" / "your_own.md").read_text()


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's files where Python finds them."""
    files = dict(re.findall(r"```python title=\"(\w+\.py)\"\n(.*?)```", PAGE, re.DOTALL))
    assert sorted(files) == ["climb.py", "mine.py", "swd.py"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), ModuleType(name))


@pytest.mark.usefixtures("shown")
def test_the_metric_of_a_shift_is_that_of_its_projections() -> None:
    draw = np.random.default_rng(0)
    real = torch.from_numpy(draw.normal(size=(500, 6))).float()
    metric = own("swd:SlicedWasserstein", "metric")(Reference.of(Features(real), "own", name="real"))
    shift = torch.from_numpy(draw.normal(size=6)).float()
    expected = float((shift.double() @ metric.directions).abs().mean())
    assert metric.measure(Features(real)) == pytest.approx(0, abs=1e-12)
    assert metric.measure(Features(real + shift)) == pytest.approx(expected, rel=1e-4)
    assert metric.interval(Features(real + shift)).low < expected < metric.interval(Features(real + shift)).high


@pytest.mark.usefixtures("shown")
def test_the_strategy_climbs_and_repeats_itself() -> None:
    space = SearchSpace.of(NoiseSchedule.linear(), 3, "ddim")
    best = np.array([700.0, 420.0, 90.0])

    def found() -> list[tuple[Plan, float]]:
        strategy = build("climb:Climb", space, [Plan.of("ddim", [900.0, 600.0, 300.0])], 0, {"tries": 80})
        told: list[tuple[Plan, float]] = []
        while plans := strategy.ask():
            losses = [(plan, float(np.abs(np.array(plan.times) - best).sum())) for plan in plans]
            told += losses
            strategy.tell(losses)
        return told

    told = found()
    assert len(told) == len({plan for plan, _ in told}) == 80
    assert min(loss for _, loss in told) < 0.25 * told[0][1]
    assert found() == told
