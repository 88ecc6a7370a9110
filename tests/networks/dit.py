"""DiT, whose blocks are told the class."""

from __future__ import annotations

from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from networks import PATCHES, Small


def labelled(network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    output: Tensor = network(x, t, class_labels=label, return_dict=False)[0]
    return output


def last(block: nn.Module) -> list[nn.Module]:
    crossed = [] if block.attn2 is None else [block.attn2.to_out[0]]
    return [block.attn1.to_out[0], *crossed, block.ff.net[-1]]


network = Small(
    DiTTransformer2DModel,
    PATCHES | {"num_layers": 3, "num_embeds_ada_norm": 4},
    labelled,
    (4, 8, 8),
    {"BasicTransformerBlock": last},
    classes=3,
)
