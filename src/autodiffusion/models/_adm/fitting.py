"""Which of guided-diffusion's flags a checkpoint would fit, from the shapes of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from itertools import count, takewhile
from math import isqrt
from typing import Any

from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion.models._adm.classifier import empty_classifier
from autodiffusion.models._adm.flags import CLASSES, MULTIPLIERS, Flags
from autodiffusion.models._adm.network import GROUPS, adm_shapes, check_fits, empty_adm_unet

NAMES = (
    "num_channels",
    "num_res_blocks",
    "channel_mult",
    "attention_resolutions",
    "use_scale_shift_norm",
    "resblock_updown",
)
"""Flags of the network that its way down shows."""
FIRST = "input_blocks.1.0.emb_layers.1.weight"
OF_CLASSIFIER = {"num_channels": "classifier_width", "num_res_blocks": "classifier_depth"}
"""What they are called of a classifier; ``classifier_`` and the same word else."""


def fitting(state: Mapping[str, Tensor], flags: Flags, classes: int, classifier: bool = False) -> str | None:
    """How the options would have to differ for these weights to fit: ``num_channels=32 ... classes=5``, or ``None``.

    What weights do not show stays as it is: heads, the order of attention, the noise schedule and, but for a
    classifier, the size of the image.
    """
    for found, labels in _candidates(state, flags, classifier):
        try:
            # heads do not change a shape; these fit any number of channels that groups fit
            bare = replace(found, num_head_channels=GROUPS, classifier_num_head_channels=GROUPS)
            if classifier:
                empty = empty_classifier(bare.classifier(labels)).state_dict()
                check_fits(state, {key: tuple(tensor.shape) for key, tensor in empty.items()})
            else:
                check_fits(state, adm_shapes(empty_adm_unet(bare.network(labels))))
        except InputError:
            continue
        values = [(field.name, getattr(flags, field.name), getattr(found, field.name)) for field in fields(Flags)]
        values.append(("classes", classes, labels))
        return " ".join(f"{name}={str(value).lower()}" for name, given, value in values if value != given)
    return None


def _candidates(state: Mapping[str, Tensor], flags: Flags, classifier: bool) -> Iterator[tuple[Flags, int]]:
    """Flags and numbers of classes that the shapes suggest: one for each way to cut the way down into levels."""
    if not all(tensor.ndim and tensor.numel() for tensor in state.values()):
        return
    last = "out.2.c_proj.weight" if classifier else "out.2.weight"
    outs = list(_outs(state))
    if last not in state or len(outs) < 2 or not {"time_embed.0.weight", FIRST} <= state.keys():
        return
    width, answers = state["time_embed.0.weight"].shape[-1], state[last].shape[0]
    scales = state[FIRST].shape[0] == 2 * outs[1]
    updown = not any(key.endswith(".op.weight") for key in state)
    for blocks in range(1, len(outs)):
        if len(outs) % (blocks + 1):  # every level but the last has one more, which halves the image
            continue
        starts = range(1, len(outs), blocks + 1)
        size = flags.image_size
        if classifier and "out.2.positional_embedding" in state:
            size = isqrt(state["out.2.positional_embedding"].shape[-1] - 1) << (len(starts) - 1)
        sizes = [size >> level for level in range(len(starts))]
        attends = [
            side for side, start in zip(sizes, starts, strict=True) if f"input_blocks.{start}.1.qkv.weight" in state
        ]
        multipliers = ",".join(f"{outs[start] / width:g}" for start in starts)
        values = (width, blocks, multipliers, ",".join(map(str, attends)), scales, updown)
        found: dict[str, Any] = {
            OF_CLASSIFIER.get(name, f"classifier_{name}") if classifier else name: value
            for name, value in zip(NAMES, values, strict=True)
        }
        for name, value in found.items():  # what says the same in other words stays
            given = getattr(flags, name)
            same_levels = name.endswith("channel_mult") and not given and value == MULTIPLIERS.get(size)
            same_sides = name.endswith("attention_resolutions") and attends == [
                side for side in sizes if str(side) in given.split(",")
            ]
            if same_levels or same_sides:
                found[name] = given
        if not classifier:
            found |= {"learn_sigma": answers == 6, "class_cond": "label_emb.weight" in state}
        labels = answers if classifier else len(state.get("label_emb.weight", ())) or CLASSES
        try:
            yield replace(flags, image_size=size, **found), labels
        except InputError:
            continue


def _outs(state: Mapping[str, Tensor]) -> Iterator[int]:
    """The channels that each block of the way down gives."""
    kinds = (".0.weight", ".0.out_layers.3.weight", ".0.op.weight")
    blocks = ([state[key] for kind in kinds if (key := f"input_blocks.{i}{kind}") in state] for i in count())
    return (found[0].shape[0] for found in takewhile(bool, blocks))
