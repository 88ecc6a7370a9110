"""Half precision, against the network written plainly and cast as guided-diffusion casts it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_adm import CASES, Plain, PlainClassifier, Recorded, SelfAttention
from test_adm_guided import STATE, recorded_flags
from torch import Tensor

from autodiffusion.models._adm.classifier import classifier_of
from autodiffusion.models._adm.half import cast_blocks


@pytest.fixture(scope="module", params=CASES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_blocks_are_cast_as_guided_diffusion_casts_them(recorded: Recorded, dtype: torch.dtype) -> None:
    model, plain = recorded.model(), Plain(recorded.flags)
    plain.load_state_dict(recorded.state)
    plain.cast_blocks(dtype)
    whole: Any = model.module
    half = copy.deepcopy(whole)
    cast_blocks(half, dtype)
    x, t, y = recorded.tensors["x"], recorded.tensors["t"], recorded.y

    def ask(unet: Any, x: Tensor = x) -> Tensor:
        output: Tensor = unet(x, t, class_labels=y, return_dict=False)[0]
        return output

    with torch.inference_mode():
        ours, theirs, exact = ask(half, x.to(dtype)), plain(x, t, y), ask(whole)
        assert ours.dtype == theirs.dtype == torch.float32
        # attention rounds elsewhere, within torch's kernel; so it is as far from the truth as theirs, and no further
        assert 0 < rms(ours - exact) < 1.1 * rms(theirs - exact)
        # the rest is theirs to the last bit
        attention = [layer.number for layer in model.layers if layer.kind == "attention"]
        assert len(attention) == 7
        for module in plain.modules():
            if isinstance(module, SelfAttention):
                module.forward = lambda x, embedding: x  # type: ignore[method-assign]
        bare = recorded.model()
        bare.module = half
        bare.network = lambda x, t, label: half(x.to(dtype), t, class_labels=label, return_dict=False)[0]
        with bare.without(frozenset(attention)):
            assert torch.equal(ask(half, x.to(dtype)), plain(x, t, y))


def test_what_is_cast(recorded: Recorded) -> None:
    half: Any = copy.deepcopy(recorded.unet)
    cast_blocks(half, torch.float16)
    for name, parameter in half.named_parameters():
        single = "norm" in name or "_emb" in name or name.startswith(("class_embedding", "time_embedding", "conv_out"))
        assert parameter.dtype == (torch.float32 if single else torch.float16), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_classifier_is_cast_likewise(dtype: torch.dtype) -> None:
    flags = recorded_flags()
    whole, ours, theirs = classifier_of(STATE, flags), classifier_of(STATE, flags), PlainClassifier(flags)
    theirs.load_state_dict(STATE)
    theirs.cast_blocks(dtype)
    ours.cast_blocks(dtype)
    torch.manual_seed(0)
    x, t = torch.randn(8, 3, 16, 16), torch.full((8,), 300.0)
    with torch.inference_mode():
        logits = ours(x.to(dtype), t)
        assert logits.dtype == torch.float32
        assert 0 < rms(logits - whole(x, t)) < 1.3 * rms(theirs(x, t) - whole(x, t))
        for network in (ours, theirs):
            for module in network.modules():
                if isinstance(module, SelfAttention) or type(module).__name__ == "_Attention":
                    module.forward = lambda x, embedding: x  # type: ignore[method-assign]
        torch.testing.assert_close(ours(x.to(dtype), t), theirs(x, t), rtol=1e-5, atol=1e-6)
