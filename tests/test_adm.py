"""ADM networks from guided-diffusion's weights: recorded numbers, the same network written plainly, bad checkpoints."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file
from torch import Tensor, nn

from autodiffusion import InputError, Model, NoiseSchedule, Plan
from autodiffusion._plans.plan import Step
from autodiffusion._sampling.sampling import Beginnings, Cost, walk
from autodiffusion.models._adm.network import ADM, adm_unet, empty_adm_unet
from autodiffusion.models.adm import PRESETS

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = {name: flags.network() for name, flags in PRESETS.items()}
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "adm.json").read_text())
SCHEDULES = {"cosine": NoiseSchedule.cosine, "linear": NoiseSchedule.linear}


class Recorded:
    """One of the two recorded networks: its facts, its tensors, and ours."""

    def __init__(self, case: str) -> None:
        self.facts = CASES[case]
        self.tensors = load_file(GOLDEN / f"adm_{case}.safetensors")
        self.y = self.tensors.get("y")
        flags = {key: tuple(value) if isinstance(value, list) else value for key, value in self.facts["kwargs"].items()}
        self.flags = ADM(**flags)
        self.state = {key[6:]: value for key, value in self.tensors.items() if key.startswith("state.")}
        self.unet: Any = adm_unet(self.state, self.flags)

    def ask(self) -> Tensor:
        """The network's output for the recorded input."""
        with torch.inference_mode():
            return self.unet(self.tensors["x"], self.tensors["t"], class_labels=self.y, return_dict=False)[0]

    def model(self, dtype: torch.dtype = torch.float32) -> Model:
        unet: Any = nn.Module.to(copy.deepcopy(self.unet), dtype)
        return Model(
            lambda x, t, label: unet(x, t, class_labels=label, return_dict=False)[0],
            SCHEDULES[self.facts["noise_schedule"]](),
            (3, 16, 16),
            classes=self.flags.num_classes,
            dtype=dtype,
            module=unet,
        )

    def ddim(self, steps: list[tuple[int, list[int]]], dtype: torch.dtype) -> Tensor:
        plan = Plan(
            solver="ddim",
            solver_options={"clip": True},
            steps=tuple(Step(t=t, skip=frozenset(skip)) for t, skip in steps),
        )
        begun = Beginnings(self.tensors["xT"].to(dtype), self.y)
        return next(x for _, x in walk(self.model(dtype), [plan], range(2), 0, Cost(), begun=begun))


@pytest.fixture(scope="module", params=CASES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


# Recorded numbers


def test_output(recorded: Recorded) -> None:
    assert error(recorded.ask(), recorded.tensors["out"]) < 1e-5


@pytest.mark.parametrize("case", ["ddim_clip", "ddim_clip_skip"])
def test_ddim(recorded: Recorded, case: str) -> None:
    whole = [(t, []) for t in recorded.facts["timesteps"]]
    steps = whole if case == "ddim_clip" else recorded.facts["skip_plan_descending"]
    theirs = recorded.tensors[case]
    assert error(recorded.ddim(steps, torch.float64), theirs) < 1e-4
    # at t = 950 the clean data is what the network says divided by alpha, 0.01: where clipping does not catch it, in a
    # pixel or two of 1,536, the roundings of both sides are seen, and they differ from one machine to the next
    apart = (recorded.ddim(steps, torch.float32) - theirs).abs()
    assert apart.mean() < 1e-6
    assert apart.max() < 5e-4


def test_output_without_layers(recorded: Recorded) -> None:
    model, outputs = recorded.model(), recorded.tensors["skip_out"]
    assert len(model.layers) == recorded.facts["layer_num"] == 22
    x, t = recorded.tensors["x"], recorded.tensors["t"]
    for skip, theirs in zip(recorded.facts["skip_sets"], outputs, strict=True):
        with torch.inference_mode(), model.without(frozenset(skip)):
            assert error(model.network(x, t, recorded.y), theirs) < 1e-5, skip
    # no two sets look alike, so that a layer under another's number would be seen
    apart = [error(a, b) for i, a in enumerate(outputs) for b in outputs[:i]]
    assert min(apart) > 1e-3


# The published sizes


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [("imagenet64", 295_904_454, 58), ("lsun-cat", 552_814_086, None), ("lsun-bedroom", 552_814_086, None)],
)
def test_published_networks(name: str, parameters: int, layers: int | None) -> None:
    unet: Any = empty_adm_unet(NETWORKS[name])
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters
    if layers:
        assert sum(isinstance(module, ResnetBlock2D | Attention) for module in unet.modules()) == layers


@pytest.mark.parametrize("name", NETWORKS)
def test_published_checkpoints_fit(name: str) -> None:
    # shapes alone: neither network has numbers
    with torch.device("meta"):
        state = Plain(NETWORKS[name]).state_dict()
    unet: Any = adm_unet(state, NETWORKS[name])
    assert sum(tensor.numel() for tensor in state.values()) == sum(p.numel() for p in unet.parameters())


# The same network, written plainly after the paper's appendix, with the checkpoint's names


class Norm(nn.GroupNorm):
    """Computes in the dtype of its weights, whatever that of the rest."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Residual(nn.Module):
    def __init__(self, flags: ADM, ins: int, outs: int, scale: float = 1) -> None:
        super().__init__()
        self.shift_only, self.scale = not flags.use_scale_shift_norm, scale
        embedded = outs if self.shift_only else 2 * outs
        self.in_layers = nn.Sequential(Norm(ins), nn.SiLU(), nn.Conv2d(ins, outs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * flags.model_channels, embedded))
        self.out_layers = nn.Sequential(Norm(outs), nn.SiLU(), nn.Identity(), nn.Conv2d(outs, outs, 3, padding=1))
        self.skip_connection = nn.Identity() if ins == outs else nn.Conv2d(ins, outs, 1)

    def resample(self, x: Tensor) -> Tensor:
        if self.scale == 1:
            return x
        if self.scale < 1:
            # summed in more bits than there are, where these are few
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            wide = wide[..., ::2, ::2] + wide[..., 1::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, 1::2]
            return (wide / 4).to(x.dtype)
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers[2](self.resample(self.in_layers[:2](x)))
        embedding = self.emb_layers(embedding).to(h.dtype)[..., None, None]
        if self.shift_only:
            h = self.out_layers(h + embedding)
        else:
            scale, shift = embedding.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(self.resample(x)) + h


class SelfAttention(nn.Module):
    def __init__(self, flags: ADM, channels: int) -> None:
        super().__init__()
        self.new = flags.use_new_attention_order
        self.heads = flags.num_heads if flags.num_head_channels == -1 else channels // flags.num_head_channels
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.new:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        scale = 1 / math.sqrt(math.sqrt(q.shape[2]))
        weights = torch.einsum("bhct,bhcs->bhts", q * scale, k * scale)
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).softmax(-1).to(weights.dtype)
        mixed = torch.einsum("bhts,bhcs->bhct", weights, v).flatten(1, 2)
        return x + self.proj_out(mixed).view_as(x)


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))


class Plain(nn.Module):
    def __init__(self, flags: ADM) -> None:
        super().__init__()
        width, levels = flags.model_channels, len(flags.channel_mult)
        sizes = [int(width * factor) for factor in flags.channel_mult]
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        if flags.num_classes:
            self.label_emb = nn.Embedding(flags.num_classes, 4 * width)
        now = sizes[0]
        kept = [now]
        blocks = [nn.ModuleList([nn.Conv2d(flags.in_channels, now, 3, padding=1)])]
        for level, size in enumerate(sizes):
            attends = 2**level in flags.attention_resolutions
            for _ in range(flags.num_res_blocks):
                blocks.append(nn.ModuleList([Residual(flags, now, size)] + [SelfAttention(flags, size)] * attends))
                now = size
                kept.append(now)
            if level < levels - 1:
                blocks.append(nn.ModuleList([Residual(flags, now, now, 0.5) if flags.resblock_updown else Down(now)]))
                kept.append(now)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = nn.ModuleList(
            [Residual(flags, now, now), SelfAttention(flags, now), Residual(flags, now, now)]
        )
        blocks = []
        for level, size in reversed(list(enumerate(sizes))):
            attends = 2**level in flags.attention_resolutions
            for i in range(flags.num_res_blocks + 1):
                block = [Residual(flags, now + kept.pop(), size)] + [SelfAttention(flags, size)] * attends
                now = size
                if level and i == flags.num_res_blocks:
                    block.append(Residual(flags, now, now, 2) if flags.resblock_updown else Up(now))
                blocks.append(nn.ModuleList(block))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(Norm(now), nn.SiLU(), nn.Conv2d(now, flags.out_channels, 3, padding=1))

    def down(self, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """To the end of the middle: what is there, the embedding, and what was kept on the way."""
        half = self.width // 2
        angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        outer = self.time_embed[0].weight.dtype
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1).to(outer))
        if y is not None:
            embedding = embedding + self.label_emb(y)
        first = self.input_blocks[0][0]
        h = first(x.to(first.weight.dtype))
        kept = [h]
        for block in self.input_blocks[1:]:
            for layer in block:
                h = layer(h, embedding)
            kept.append(h)
        for layer in self.middle_block:
            h = layer(h, embedding)
        return h, embedding, kept

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        h, embedding, kept = self.down(x, t, y)
        for block in self.output_blocks:
            h = torch.cat([h, kept.pop()], 1)
            for layer in block:
                h = layer(h, embedding)
        return self.out(h.to(self.out[2].weight.dtype))

    def cast_blocks(self, dtype: torch.dtype) -> None:
        """The convolutions of the blocks, as guided-diffusion does."""
        for name, module in self.named_modules():
            if "block" in name and isinstance(module, nn.Conv1d | nn.Conv2d):
                module.to(dtype)


class Pool(nn.Module):
    def __init__(self, flags: ADM, channels: int) -> None:
        super().__init__()
        self.heads = channels // flags.num_head_channels
        side = flags.image_size // 2 ** (len(flags.channel_mult) - 1)
        self.positional_embedding = nn.Parameter(torch.randn(channels, side * side + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, flags.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        flat = torch.cat([flat.mean(2, keepdim=True), flat], 2) + self.positional_embedding
        q, k, v = self.qkv_proj(flat).unflatten(1, (3, self.heads, -1)).unbind(1)
        weights = (torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2])).softmax(-1)
        mixed = torch.einsum("bhts,bhcs->bhct", weights, v).flatten(1, 2)
        return self.c_proj(mixed)[:, :, 0]


class PlainClassifier(Plain):
    def __init__(self, flags: ADM) -> None:
        super().__init__(flags)
        del self.output_blocks
        last = int(flags.model_channels * flags.channel_mult[-1])
        self.out = nn.Sequential(Norm(last), nn.SiLU(), Pool(flags, last))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        h, _, _ = self.down(x, t, None)
        return self.out(h.to(self.out[2].c_proj.weight.dtype))


SMALL = {"image_size": 8, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
OTHERS: dict[str, dict[str, Any]] = {
    "heads": {"num_heads": 2, "attention_resolutions": (1, 2)},
    "heads, new order": {"num_heads": 4, "attention_resolutions": (1, 2), "use_new_attention_order": True},
    "convolutions": {"resblock_updown": False, "attention_resolutions": (2,), "num_head_channels": 16},
    "convolutions, attention first": {"resblock_updown": False, "attention_resolutions": (1,), "num_res_blocks": 2},
    "shift only": {"use_scale_shift_norm": False, "attention_resolutions": (2,), "out_channels": 3},
    "half a first level": {"model_channels": 64, "channel_mult": (0.5, 1, 2), "attention_resolutions": (4,)},
    "no attention on the way": {"attention_resolutions": (), "in_channels": 1, "out_channels": 2, "num_classes": 3},
    "classes": {"attention_resolutions": (2,), "num_classes": 7, "num_head_channels": 32, "num_res_blocks": 2},
}


@pytest.mark.parametrize("other", OTHERS)
def test_equals_the_plain_network(other: str) -> None:
    torch.manual_seed(0)
    flags = ADM(**(SMALL | OTHERS[other]))
    plain = Plain(flags)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # normalizations that do something
    unet: Any = adm_unet(plain.state_dict(), flags)
    x, t = torch.randn(2, flags.in_channels, 8, 8, dtype=torch.float64), torch.tensor([3, 912])
    y = torch.randint(flags.num_classes, (2,)) if flags.num_classes else None
    with torch.inference_mode():
        theirs = plain.double()(x, t, y)
        ours = unet.double()(x, t, class_labels=y, return_dict=False)[0]
    assert theirs.std() > 0.1
    # doubles show what is wrong by as little as another epsilon in a normalization
    assert error(ours, theirs) < 1e-7


def test_the_plain_network_equals_the_recorded(recorded: Recorded) -> None:
    plain = Plain(recorded.flags)
    plain.load_state_dict(recorded.state)
    with torch.inference_mode():
        theirs = plain(recorded.tensors["x"], recorded.tensors["t"], recorded.y)
    assert error(theirs, recorded.tensors["out"]) < 1e-5


# What comes back


def test_it_is_a_network_of_its_own(recorded: Recorded) -> None:
    assert isinstance(recorded.unet, UNet2DModel)
    assert not recorded.unet.training
    parameters = list(recorded.unet.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in parameters)
    state = {key: value.clone().float() for key, value in recorded.state.items()}
    unet: Any = adm_unet(state, recorded.flags)
    for tensor in state.values():
        tensor.zero_()
    for name, parameter in unet.named_parameters():
        assert torch.equal(parameter, recorded.unet.get_parameter(name))


def test_diffusers_saves_it(recorded: Recorded, tmp_path: Path) -> None:
    recorded.unet.save_pretrained(tmp_path)
    again: Any = UNet2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    with torch.inference_mode():
        out = again(recorded.tensors["x"], recorded.tensors["t"], class_labels=recorded.y, return_dict=False)[0]
    assert torch.equal(out, recorded.ask())


# Bad input


def refused(state: dict[str, Tensor], flags: ADM) -> str:
    with pytest.raises(InputError) as caught:
        adm_unet(state, flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "time_embed.2.bias",
        "input_blocks.3.1.qkv.weight",
        "input_blocks.2.0.emb_layers.1.weight",
        "middle_block.1.norm.weight",
        "output_blocks.1.2.out_layers.3.weight",
        "output_blocks.5.0.skip_connection.bias",
        "out.2.weight",
    ],
)
def test_a_key_that_is_missing_or_of_another_shape(recorded: Recorded, key: str) -> None:
    without = {name: tensor for name, tensor in recorded.state.items() if name != key}
    assert refused(without, recorded.flags).startswith(f"checkpoint: {key} is missing; give the flags")
    shape = list(recorded.state[key].shape)
    turned = recorded.state | {key: recorded.state[key][None]}
    assert refused(turned, recorded.flags).startswith(f"checkpoint: {key} is {[1, *shape]}, these flags make {shape};")


def test_a_key_that_is_left_over(recorded: Recorded) -> None:
    more = recorded.state | {"input_blocks.9.0.bias": torch.zeros(1), "out.3.bias": torch.zeros(1)}
    assert refused(more, recorded.flags).startswith("checkpoint: input_blocks.9.0.bias is left over; give the flags")


def test_another_networks_flags() -> None:
    conditional, unconditional = Recorded("class_conditional"), Recorded("unconditional")
    assert "label_emb.weight is missing" in refused(unconditional.state, conditional.flags)
    assert "label_emb.weight is left over" in refused(conditional.state, unconditional.flags)
    assert "time_embed.0.weight is [128, 32], these flags make [768, 192]" in refused(
        conditional.state, NETWORKS["imagenet64"]
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model_channels": 48}, "channel_mult[0] makes 48 channels, which do not divide by 32"),
        ({"channel_mult": (1, 2, 0.25)}, "channel_mult[2] makes 8 channels, which do not divide by 32"),
        ({"num_head_channels": 24}, "channel_mult[1] makes 64 channels, which do not divide by 24 (num_head_channels)"),
        ({"num_heads": 5, "attention_resolutions": (1,)}, "32 channels, which do not divide by 5 (num_heads)"),
        ({"num_heads": 5, "attention_resolutions": ()}, "64 channels, which do not divide by 5 (num_heads)"),
        ({"num_heads": 0}, "divide by 0 (num_heads)"),
        ({"model_channels": 0}, "channel_mult[0] makes 0 channels"),
    ],
)
def test_flags_of_no_network(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        ADM(**(SMALL | {"attention_resolutions": (2,)} | flags))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
