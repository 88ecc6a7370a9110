"""guided-diffusion's classifier of noisy images (Dhariwal and Nichol 2021, section 4), with its checkpoint's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autodiffusion.models._adm.network import ADM, GROUPS, check_fits


class Classifier(nn.Module):
    """The way down of an ADM network, its middle, and an attention pool: images and times to logits.

    Args:
        flags: attention is of the legacy order in the blocks; ``out_channels`` is the number of classes.
    """

    def __init__(self, flags: ADM) -> None:
        super().__init__()
        self.width = width = flags.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        now = flags.channels[0]
        blocks = [nn.ModuleList([nn.Conv2d(flags.in_channels, now, 3, padding=1)])]
        for level, channels in enumerate(flags.channels):
            for _ in range(flags.num_res_blocks):
                block: list[nn.Module] = [_Residual(flags, now, channels)]
                if 2**level in flags.attention_resolutions:
                    block.append(_Attention(flags, channels))
                blocks.append(nn.ModuleList(block))
                now = channels
            if level < len(flags.channels) - 1:
                down = _Residual(flags, now, now, down=True) if flags.resblock_updown else _Down(now)
                blocks.append(nn.ModuleList([down]))
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = nn.ModuleList(
            [_Residual(flags, now, now), _Attention(flags, now), _Residual(flags, now, now)]
        )
        side = flags.image_size // 2 ** (len(flags.channels) - 1)
        self.out = nn.Sequential(_Norm(GROUPS, now), nn.SiLU(), _Pool(flags, now, side))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, C, H, W]`` at times ``[B]``."""
        outer, inner = next(self.time_embed.parameters()).dtype, next(self.input_blocks.parameters()).dtype
        half = self.width // 2
        angles = t.float()[:, None] * torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device))
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1).to(outer))
        h = x.to(inner)
        for block in (*self.input_blocks, self.middle_block):
            for layer in cast("nn.ModuleList", block):
                h = layer(h) if isinstance(layer, nn.Conv2d) else layer(h, embedding)
        logits: Tensor = self.out(h.to(outer))
        return logits

    def cast_blocks(self, dtype: torch.dtype) -> None:
        """Casts the convolutions of the blocks, and nothing else, as guided-diffusion's ``convert_to_fp16`` does."""
        for part in (self.input_blocks, self.middle_block):
            for module in part.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                    module.to(dtype)


def classifier_of(state: Mapping[str, Tensor], flags: ADM) -> Classifier:
    """The classifier of these weights, in float32 and evaluation mode, its parameters without gradients.

    Args:
        state: guided-diffusion's ``EncoderUNetModel.state_dict()``. It is copied.

    Raises:
        MisfitError: a key is missing, has another shape than these flags make, or is left over.
    """
    classifier = empty_classifier(flags)
    check_fits(state, {key: tuple(tensor.shape) for key, tensor in classifier.state_dict().items()})
    classifier.load_state_dict({key: tensor.to(torch.float32, copy=True) for key, tensor in state.items()}, assign=True)
    return classifier.eval().requires_grad_(False)


def empty_classifier(flags: ADM) -> Classifier:
    """The classifier without weights, on torch's meta device."""
    with torch.device("meta"):
        return Classifier(flags)


class _Norm(nn.GroupNorm):
    """Computes in the dtype of its weights, and gives what it got."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class _Residual(nn.Module):
    def __init__(self, flags: ADM, ins: int, outs: int, down: bool = False) -> None:
        super().__init__()
        self.scales, self.down = flags.use_scale_shift_norm, down
        embedded = 2 * outs if self.scales else outs
        self.in_layers = nn.Sequential(_Norm(GROUPS, ins), nn.SiLU(), nn.Conv2d(ins, outs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * flags.model_channels, embedded))
        convolution = nn.Conv2d(outs, outs, 3, padding=1)
        # the third is the dropout of training
        self.out_layers = nn.Sequential(_Norm(GROUPS, outs), nn.SiLU(), nn.Identity(), convolution)
        self.skip_connection = nn.Identity() if ins == outs else nn.Conv2d(ins, outs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers[:2](x)
        if self.down:
            x, h = functional.avg_pool2d(x, 2), functional.avg_pool2d(h, 2)
        h = self.in_layers[2](h)
        added = self.emb_layers(embedding).to(h.dtype)[..., None, None]
        if self.scales:
            scale, shift = added.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + added)
        result: Tensor = self.skip_connection(x) + h
        return result


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        halved: Tensor = self.op(x)
        return halved


class _Attention(nn.Module):
    def __init__(self, flags: ADM, channels: int) -> None:
        super().__init__()
        self.heads = channels // flags.num_head_channels
        self.norm = _Norm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1)).unbind(2)
        mixed: Tensor = self.proj_out(_attend(q, k, v))
        return (flat + mixed).view_as(x)


class _Pool(nn.Module):
    """Attention among the places of an image and their mean, of which the mean's answer is kept."""

    def __init__(self, flags: ADM, channels: int, side: int) -> None:
        super().__init__()
        self.heads = channels // flags.num_head_channels
        self.positional_embedding = nn.Parameter(torch.empty(channels, side**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, flags.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        flat = torch.cat([flat.mean(-1, keepdim=True), flat], -1) + self.positional_embedding
        # in the new order, whatever that of the blocks
        q, k, v = self.qkv_proj(flat).unflatten(1, (3, self.heads, -1)).unbind(1)
        pooled: Tensor = self.c_proj(_attend(q, k, v)[..., :1])
        return pooled[..., 0]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``[B, heads, C, places]``, as ``[B, heads * C, places]``."""
    mixed = functional.scaled_dot_product_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3))
    return mixed.transpose(2, 3).flatten(1, 2)
