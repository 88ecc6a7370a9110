"""OpenAI's ADM networks (Dhariwal and Nichol 2021) in diffusers' UNet2DModel, from the weights of guided-diffusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from autodiffusion._errors import InputError

if TYPE_CHECKING:
    from diffusers import UNet2DModel

GROUPS = 32
"""Of every group normalization in these networks."""

_REMEDY = "give the flags that the checkpoint was trained with"
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


@dataclass(frozen=True)
class ADM:
    """What makes one ADM network another, by guided-diffusion's names for it.

    Attributes:
        image_size: in pixels.
        model_channels: channels that ``channel_mult`` multiplies; a multiple of 32.
        num_res_blocks: residual blocks a level on the way down; on the way up there is one more.
        channel_mult: one factor a level; each level has half the resolution of the one before.
        attention_resolutions: levels with attention, as factors by which they are smaller than the image: 2, 4, 8.
        in_channels, out_channels: twice as many out as in where the variance is learned too.
        num_classes: ``None`` for an unconditional network.
        num_heads: of each attention block, unless ``num_head_channels`` is given.
        num_head_channels: channels of each head; -1 for ``num_heads`` heads.
        use_scale_shift_norm: whether the time scales and shifts the normalized activations; otherwise it is added.
        resblock_updown: whether residual blocks change the resolution; otherwise convolutions do.
        use_new_attention_order: whether the channels of ``qkv`` are [3, heads, head_dim]; otherwise, in the legacy
            order, [heads, 3, head_dim].

    Raises:
        InputError: a level whose channels cannot be divided into 32 groups, or into its heads.
    """

    image_size: int
    model_channels: int
    num_res_blocks: int
    channel_mult: tuple[float, ...]
    attention_resolutions: tuple[int, ...]
    in_channels: int = 3
    out_channels: int = 6
    num_classes: int | None = None
    num_heads: int = 4
    num_head_channels: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False

    def __post_init__(self) -> None:
        last = len(self.channel_mult) - 1
        heads = "num_heads" if self.num_head_channels == -1 else "num_head_channels"
        for level, channels in enumerate(self.channels):
            divisors = {"the groups of the normalization": GROUPS}
            # the middle of the network has attention whatever attention_resolutions says
            if 2**level in self.attention_resolutions or level == last:
                divisors[heads] = getattr(self, heads)
            for what, divisor in divisors.items():
                if divisor < 1 or channels < 1 or channels % divisor:
                    raise InputError(
                        f"ADM: channel_mult[{level}] makes {channels} channels, which do not divide by {divisor} "
                        f"({what}); {_REMEDY}"
                    )

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(int(factor * self.model_channels) for factor in self.channel_mult)


class MisfitError(InputError):
    """A checkpoint is of another network than the flags make.

    Attributes:
        problem: the first key that does not fit, in words.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"checkpoint: {problem}; {_REMEDY}")
        self.problem = problem


def check_fits(state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises :class:`MisfitError` unless the keys are those of ``shapes``, and their tensors of these shapes."""
    for key, shape in shapes.items():
        if key not in state:
            raise MisfitError(f"{key} is missing")
        if tuple(state[key].shape) != tuple(shape):
            raise MisfitError(f"{key} is {list(state[key].shape)}, these flags make {list(shape)}")
    for key in state:
        if key not in shapes:
            raise MisfitError(f"{key} is left over")


def adm_unet(state: Mapping[str, Tensor], flags: ADM) -> UNet2DModel:
    """The network of these weights, in float32 and evaluation mode, its parameters without gradients.

    It computes what guided-diffusion's does, layer by layer. Its configuration cannot say ``num_heads`` or a first
    factor of ``channel_mult`` other than 1: such a network, saved by diffusers, does not come back.

    Args:
        state: guided-diffusion's ``UNetModel.state_dict()``, e.g. ``input_blocks.0.0.weight``. It is copied.

    Raises:
        MisfitError: a key is missing, has another shape than these flags make, or is left over.
    """
    unet: Any = empty_adm_unet(flags)
    check_fits(state, adm_shapes(unet))
    converted = {}
    for theirs, ours in _modules(unet):
        for kind, parameter in unet.get_submodule(ours[0]).named_parameters():
            tensor = state[f"{theirs}.{kind}"].reshape(len(ours) * parameter.shape[0], *parameter.shape[1:])
            parts = [tensor]
            if len(ours) == 3:
                heads = unet.get_submodule(ours[0].rpartition(".")[0]).heads
                parts = _split(tensor, 1 if flags.use_new_attention_order else heads)
            for name, part in zip(ours, parts, strict=True):
                converted[f"{name}.{kind}"] = part.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    unet.load_state_dict(converted, assign=True)
    network: UNet2DModel = unet.eval().requires_grad_(False)
    return network


def adm_shapes(unet: Any) -> dict[str, tuple[int, ...]]:
    """The keys of guided-diffusion's weights of such a network, in execution order, with the shape of each."""
    shapes = {}
    for theirs, ours in _modules(unet):
        for kind, parameter in unet.get_submodule(ours[0]).named_parameters():
            shape = (len(ours) * parameter.shape[0], *parameter.shape[1:])
            # attention is made of convolutions over one dimension there
            flat = kind == "weight" and theirs.endswith((".qkv", ".proj_out"))
            shapes[f"{theirs}.{kind}"] = (*shape, 1) if flat else shape
    return shapes


def empty_adm_unet(flags: ADM) -> UNet2DModel:
    """The network without weights, on torch's meta device."""
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    attends = [2**level in flags.attention_resolutions for level in range(len(flags.channels))]
    plain = "Resnet{}sampleBlock2D" if flags.resblock_updown else "{}Block2D"
    # diffusers makes heads of one size: where these are of one number, any size will do until that is set
    head_dim = GROUPS if flags.num_head_channels == -1 else flags.num_head_channels
    with torch.device("meta"):
        unet: Any = UNet2DModel(
            sample_size=flags.image_size,
            in_channels=flags.in_channels,
            out_channels=flags.out_channels,
            time_embedding_dim=4 * flags.model_channels,
            flip_sin_to_cos=True,
            freq_shift=0,
            down_block_types=tuple("AttnDownBlock2D" if yes else plain.format("Down") for yes in attends),
            up_block_types=tuple("AttnUpBlock2D" if yes else plain.format("Up") for yes in reversed(attends)),
            block_out_channels=flags.channels,
            layers_per_block=flags.num_res_blocks,
            downsample_type="resnet" if flags.resblock_updown else "conv",
            upsample_type="resnet" if flags.resblock_updown else "conv",
            attention_head_dim=head_dim,
            norm_num_groups=GROUPS,
            attn_norm_num_groups=GROUPS,  # else the middle's attention has no normalization
            norm_eps=1e-5,
            resnet_time_scale_shift="scale_shift" if flags.use_scale_shift_norm else "default",
            num_class_embeds=flags.num_classes,
        )
        if flags.channels[0] != flags.model_channels:  # diffusers takes the first level's
            unet.time_proj = Timesteps(flags.model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
            unet.time_embedding = TimestepEmbedding(flags.model_channels, 4 * flags.model_channels)
    if flags.num_head_channels == -1:
        for module in unet.modules():
            if isinstance(module, Attention):
                module.heads = module.sliceable_head_dim = flags.num_heads
                module.scale = (module.inner_dim // flags.num_heads) ** -0.5
    empty: UNet2DModel = unet
    return empty


Pairs: TypeAlias = Iterator[tuple[str, tuple[str, ...]]]
"""Modules with weights: the place in guided-diffusion's network, and here. Here they are three places where one
matrix there is the query's, the key's and the value's."""


def _modules(unet: Any) -> Pairs:
    """All of them, in execution order."""
    yield "time_embed.0", ("time_embedding.linear_1",)
    yield "time_embed.2", ("time_embedding.linear_2",)
    if unet.class_embedding is not None:
        yield "label_emb", ("class_embedding",)
    yield "input_blocks.0.0", ("conv_in",)
    number = 1
    for level, block in enumerate(unet.down_blocks):
        here = f"down_blocks.{level}"
        for i in range(len(block.resnets)):
            yield from _layer(block, i, f"input_blocks.{number}", here)
            number += 1
        if block.downsamplers is not None:
            yield from _resampler(block.downsamplers[0], f"input_blocks.{number}.0", f"{here}.downsamplers.0", "op")
            number += 1
    yield from _resnet(unet.mid_block.resnets[0], "middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _resnet(unet.mid_block.resnets[1], "middle_block.2", "mid_block.resnets.1")
    number = -1
    for level, block in enumerate(unet.up_blocks):
        here = f"up_blocks.{level}"
        for i in range(len(block.resnets)):
            number += 1
            yield from _layer(block, i, f"output_blocks.{number}", here)
        if block.upsamplers is not None:  # stands behind the level's last layer, under the same number
            there = f"output_blocks.{number}.{2 if hasattr(block, 'attentions') else 1}"
            yield from _resampler(block.upsamplers[0], there, f"{here}.upsamplers.0", "conv")
    yield "out.0", ("conv_norm_out",)
    yield "out.2", ("conv_out",)


def _layer(block: Any, number: int, there: str, here: str) -> Pairs:
    yield from _resnet(block.resnets[number], f"{there}.0", f"{here}.resnets.{number}")
    if hasattr(block, "attentions"):
        yield from _attention(f"{there}.1", f"{here}.attentions.{number}")


def _resampler(module: Any, there: str, here: str, convolution: str) -> Pairs:
    if hasattr(module, "conv1"):
        yield from _resnet(module, there, here)
    else:
        yield f"{there}.{convolution}", (f"{here}.conv",)


def _resnet(module: Any, there: str, here: str) -> Pairs:
    for theirs, ours in _RESNET.items():
        if getattr(module, ours) is not None:
            yield f"{there}.{theirs}", (f"{here}.{ours}",)


def _attention(there: str, here: str) -> Pairs:
    yield f"{there}.norm", (f"{here}.group_norm",)
    yield f"{there}.qkv", (f"{here}.to_q", f"{here}.to_k", f"{here}.to_v")
    yield f"{there}.proj_out", (f"{here}.to_out.0",)


def _split(tensor: Tensor, heads: int) -> list[Tensor]:
    """Query's, key's and value's rows ``[C, ...]`` of ``[3 C, ...]``, which lie as [heads, 3, head_dim].

    As one head, what lies as [3, heads, head_dim] comes apart too.
    """
    parts = tensor.unflatten(0, (heads, 3, -1)).unbind(1)
    return [part.flatten(0, 1) for part in parts]
