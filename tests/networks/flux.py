"""Flux: two streams, then one that has both; an image as a list of tokens with their places."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from networks import BLOCKS, POOLED, TEXT, Small


def flat(network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
    given = {"encoder_hidden_states": TEXT.expand(len(x), -1, -1), "pooled_projections": POOLED.expand(len(x), -1)}
    output = network(x.flatten(2).transpose(1, 2), timestep=t, return_dict=False, **given, **places)[0]
    return output.transpose(1, 2).reshape(x.shape)


def last(block: nn.Module) -> list[nn.Module]:
    return [block.attn.to_out[0], block.attn.to_add_out, block.ff.net[-1], block.ff_context.net[-1]]


network = Small(
    FluxTransformer2DModel,
    BLOCKS
    | {
        "num_layers": 2,
        "num_single_layers": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 12,
        "axes_dims_rope": (2, 2, 4),
    },
    flat,
    (4, 4, 4),
    {"FluxTransformerBlock": last, "FluxSingleTransformerBlock": lambda block: [block.proj_out]},
)
