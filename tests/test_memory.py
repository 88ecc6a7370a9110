"""Memory that does not suffice for a batch: everything is done with smaller ones, and what is measured says so."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from conftest import Command
from torch import Tensor

from autodiffusion import Model, Plan, Settings, sample
from autodiffusion._evaluation import timing
from autodiffusion._evaluation.timing import fitting
from autodiffusion._references.reference import load as load_reference
from autodiffusion._report.mosaics import GRID, panels
from autodiffusion._report.run import SAMPLING_TIMES
from autodiffusion._sampling.memory import halved, in_blocks
from autodiffusion._sampling.sampling import Cost
from autodiffusion._search.inputs import prepare
from autodiffusion._search.job import Job
from autodiffusion._search.showing import show
from autodiffusion._spaces.costs import Costs
from autodiffusion._views.progress import Quiet
from autodiffusion.metrics.kl import KL

FITS = 5
"""Samples for which memory suffices."""


def scarce(whole: Model, fits: int = FITS) -> Model:
    """The model on a device with little memory."""

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if len(x) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole.network(x, t, label)

    return replace(whole, network=network)


def model() -> Model:
    return scarce(small.model())


def hopeless_model() -> Model:
    return scarce(small.model(), 0)


def layered_model() -> Model:
    return scarce(small.layered_model())


def work_for(fits: int, tried: list[int]) -> Callable[[int], int]:
    def work(size: int) -> int:
        tried.append(size)
        if size > fits:
            raise torch.OutOfMemoryError
        return size

    return work


@pytest.mark.parametrize(
    ("size", "fits", "sizes"), [(128, 40, [128, 64, 32]), (7, 7, [7]), (7, 3, [7, 4, 2]), (5, 1, [5, 3, 2, 1])]
)
def test_sizes_are_halved_until_one_fits(size: int, fits: int, sizes: list[int]) -> None:
    tried: list[int] = []
    assert halved(work_for(fits, tried), size) == sizes[-1]
    assert tried == sizes


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    tried: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        halved(work_for(0, tried), 3)
    assert tried == [3, 2, 1]


def test_what_can_be_done_without_is_given_up_first() -> None:
    tried, spare = list[int](), [True, True]
    assert halved(work_for(2, tried), 8, lambda: bool(spare) and spare.pop()) == 2
    assert tried == [8, 8, 8, 4, 2]


def test_blocks_are_as_large_as_fits_from_then_on() -> None:
    def work(block: range) -> list[int]:
        if len(block) > 5:
            raise torch.OutOfMemoryError
        return list(block)

    parts = in_blocks(work, 23, 16)
    assert [len(part) for part in parts] == [4, 4, 4, 4, 4, 3]
    assert list(itertools.chain(*parts)) == list(range(23))


def test_samples_are_the_same() -> None:
    plan = Plan.of("dpm_solver++", [90.0, 50.0, 10.0])
    expected, found = sample(small.model(), plan, 13, 3), sample(model(), plan, 13, 3)
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().max() <= 1  # rounded otherwise in another batch


def test_bounds_are_the_same(real_images: Path) -> None:
    plan, found = Plan.of("ddim", [90.0, 50.0, 10.0]), []
    for made in (small.model(), model()):
        evaluator, source = prepare(made, reference=str(real_images))
        metric = KL(load_reference(source, evaluator.extractor))
        found.append(evaluator.bounds([plan], metric, 23, 0)[0][1])
        assert evaluator.cost == Cost(3 * 23, 0)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_what_is_measured_says_of_which_batch() -> None:
    with pytest.warns(UserWarning, match="a batch of 16 does not fit into memory; times are of batches of 4"):
        assert fitting(work_for(5, []), 16) == 4
    assert fitting(work_for(5, []), 5) == 5  # a warning would be an error


# whole commands


def test_a_finished_search_shows_its_plans(tmp_path: Path) -> None:
    settings = Settings.of(model="small:model", steps=2)
    row = {"name": "found", "plan": Plan.of("ddim", [90.0, 40.0]).model_dump(mode="json"), "problem": None}
    with pytest.warns(UserWarning, match="a batch of 128 does not fit into memory; times are of batches of 4"):
        show(model(), settings, [row], tmp_path, Quiet())
    assert list(panels(tmp_path / GRID)) == ["teacher (100 steps)", "found"]
    assert json.loads((tmp_path / SAMPLING_TIMES).read_text())["batch_size"] == 4


@pytest.mark.filterwarnings("default:a batch of")
def test_sample_and_evaluate_with_time(command: Command, real_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "plan_times", partial(timing.plan_times, most=timing.LEAST))
    assert command("sample uniform:3 --model test_memory:model -n 12 --out grid.png").status == 0
    done = command(
        f"evaluate uniform:3 --model test_memory:layered_model --samples 20 --time --reference {real_images}"
    )
    assert done.status == 0
    assert "a batch of 20 does not fit into memory; times are of batches of 5" in done.err
    assert " ms, quartiles " in done.out


@pytest.mark.filterwarnings("ignore:a batch of")
def test_budgets_in_milliseconds(real_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def layer_times(model: Model, batch_size: int) -> Costs:
        model.predict(model.noise(range(batch_size), 0), 50, None)
        measured.append(batch_size)
        return Costs("ms", 10.0, (2.0, 1.0, 1.0, 3.0, 0.0))

    monkeypatch.setattr(timing, "layer_times", layer_times)
    given = {"model": "test_memory:layered_model", "reference": str(real_images), "batch_size": 32}
    Job.of(Settings.of(steps=3, samples=40, layers=True, max_cost="27 ms", **given))
    assert measured == [4]


def test_where_not_even_one_sample_fits_a_line_says_so(command: Command, tmp_path: Path) -> None:
    done = command(f"sample uniform:3 --model test_memory:hopeless_model --out {tmp_path / 'some.png'}")
    assert done.status == 1
    assert done.out == ""
    assert re.fullmatch("autodiffusion: memory does not suffice, .*--dtype bfloat16.*", done.err.strip())
    assert not (tmp_path / "some.png").exists()
