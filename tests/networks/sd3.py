"""Stable Diffusion 3: two streams, the last block without that of the text, the first with a second attention."""

from __future__ import annotations

from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from networks import PATCHES, POOLED, TEXT, Small


def joint(network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    given = {"encoder_hidden_states": TEXT.expand(len(x), -1, -1), "pooled_projections": POOLED.expand(len(x), -1)}
    output: Tensor = network(x, timestep=t, return_dict=False, **given)[0]
    return output


def last(block: nn.Module) -> list[nn.Module]:
    second = [] if block.attn2 is None else [block.attn2.to_out[0]]
    text = [] if block.context_pre_only else [block.attn.to_add_out, block.ff_context.net[-1]]
    return [block.attn.to_out[0], block.ff.net[-1], *second, *text]


network = Small(
    SD3Transformer2DModel,
    PATCHES
    | {
        "num_layers": 3,
        "joint_attention_dim": 16,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
    },
    joint,
    (4, 8, 8),
    {"JointTransformerBlock": last},
)
