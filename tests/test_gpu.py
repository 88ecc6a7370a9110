"""On a GPU, where there is one: it agrees with the CPU, in half precision too, and its memory stays as it is."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from autodiffusion import Evaluator, Plan, load_model
from autodiffusion._evaluation.pool import Pool
from autodiffusion._plans.plan import Step
from autodiffusion._references.reference import load as load_reference
from autodiffusion._sampling.sampling import Cost, walk
from autodiffusion.features import Features
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics._build import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SKIP = frozenset({2, 5})
PLANS = [
    *(Plan.of(solver, [950.0, 700.0, 400.0, 100.0]) for solver in ("ddim", "plms", "dpm_solver++", "unipc", "heun")),
    Plan(solver="ddim", steps=(Step(t=950.0), Step(t=600.0, skip=SKIP), Step(t=200.0))),
]


def evaluator(device: str, dtype: str = "float32", batch_size: int = 64) -> Evaluator:
    model = load_model("mnist", device=device, dtype=dtype)
    return Evaluator(model, load_features(model.features, device), batch_size)


def features(device: str, dtype: str = "float32", plans: Sequence[Plan] = PLANS) -> list[Features]:
    found = evaluator(device, dtype).features(plans, 200, 3)
    assert all(isinstance(part, Features) for part in found)
    return [part for part in found if isinstance(part, Features)]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """No TensorFloat-32, whose 10 bits would hide what is compared."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def ends(device: str) -> list[Tensor]:
    """Where the plans end on the first samples, before they become pixels."""
    found = walk(load_model("mnist", device=device), PLANS, range(32), 3, Cost())
    return [x.float().cpu() for _, x in sorted(found, key=lambda pair: pair[0])]


def test_samples_agree() -> None:
    for here, there in zip(ends("cpu"), ends("cuda"), strict=True):
        # most to rounding; what is clipped or has a pixel on an edge may differ a little more
        assert (here - there).abs().median() < 1e-5
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_metrics_agree() -> None:
    model = load_model("mnist")
    reference = load_reference(model.reference or "", load_features(model.features))
    for name in ("fid", "kid", "precision", "recall"):
        metric = build(name, reference)
        values = [[metric.value(part) for part in features(device)] for device in ("cpu", "cuda")]
        np.testing.assert_allclose(values[0], values[1], rtol=5e-3, atol=5e-3)


def test_the_layer_switch_agrees_and_matters() -> None:
    left_out, whole = PLANS[-1], PLANS[-1].leaving()
    on_gpu = features("cuda", plans=[left_out, whole])
    on_cpu = features("cpu", plans=[left_out, whole])
    for here, there in zip(on_cpu, on_gpu, strict=True):
        assert (here.vectors - there.vectors).abs().median() < 1e-3
    assert (on_gpu[0].vectors - on_gpu[1].vectors).abs().median() > 1e-2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_nearly_the_same_fid(dtype: str) -> None:
    model = load_model("mnist")
    fid = build("fid", load_reference(model.reference or "", load_features(model.features)))
    for full, half in zip(features("cuda"), features("cuda", dtype), strict=True):
        value = fid.value(half)
        assert math.isfinite(value)
        assert value == pytest.approx(fid.value(full), rel=0.1)


def test_memory_is_steady_over_100_candidates() -> None:
    judged = evaluator("cuda")
    rng = np.random.default_rng(0)
    pool, held, taken = Pool(judged, 0, [32, 128], limit=2**24), dict[Plan, int](), []
    for _ in range(20):
        plans = [Plan.of("ddim", sorted(map(float, rng.choice(999, 4, replace=False)), reverse=True)) for _ in range(5)]
        held = dict.fromkeys(plans, 128)
        pool.keep(held)
        pool.grow(plans, 128)
        gc.collect()
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_allocated())
    assert max(taken[4:]) - min(taken[4:]) < 2**24 + 2**22  # the states that may be kept, and little else
    assert np.polyfit(range(16), taken[4:], 1)[0] < 2**18
