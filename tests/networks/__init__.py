"""Small networks of every kind whose blocks a rule of ``layers/`` knows. One file a kind; each ends in ``network``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]
"""How a network is called: (network, x, t, label) -> prediction."""


@dataclass(frozen=True)
class Small:
    """A small network.

    Attributes:
        cls: its class in diffusers.
        config: what it is made of.
        call: how it is called.
        shape: of a sample.
        last: for classes of its blocks, by name, the modules that end the branches of a block: with their weights at
            zero nothing leaves the branches. Written by hand from the class's code, not from the rule.
        classes: of labels, where it takes any.
    """

    cls: type[nn.Module]
    config: Mapping[str, Any]
    call: Call
    shape: tuple[int, ...]
    last: Mapping[str, Callable[[Any], list[Any]]] = field(default_factory=dict)
    classes: int | None = None


def text(seed: int, *shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


TEXT, POOLED = text(0, 5, 16), text(1, 12)
"""What texts are to the networks that take them, before and after pooling."""


def plain(network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    output: Tensor = network(x, t, return_dict=False)[0]
    return output


def texted(network: nn.Module, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    given = TEXT.to(x.dtype).expand(len(x), -1, -1)
    output: Tensor = network(x, timestep=t, encoder_hidden_states=given, return_dict=False)[0]
    return output


UNET = {"sample_size": 8, "norm_num_groups": 4, "attention_head_dim": 8}
BLOCKS = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4}
PATCHES = BLOCKS | {"patch_size": 2, "sample_size": 8, "out_channels": 4}
"""What several kinds have in common."""


def found() -> dict[str, Small]:
    """The networks by their files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").network for name in names}
