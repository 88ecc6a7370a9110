"""guided-diffusion's flags: what makes a checkpoint's networks, and which flags a checkpoint would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from math import isqrt
from typing import Any

from torch import Tensor

from autodiffusion.errors import InputError, nearest
from autodiffusion.models._adm import ADM, GROUPS, adm_shapes, check_fits, empty_adm_unet
from autodiffusion.models._classifier import empty_classifier
from autodiffusion.schedule import NoiseSchedule

MULTIPLIERS = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4"}
"""Of each level, by the size of the image, where nothing is said."""
CLASSES = 1000
"""Of a class-conditional network and of a classifier, where nothing is said."""
SCHEDULES = ("linear", "cosine")


@dataclass(frozen=True)
class Flags:
    """Flags of guided-diffusion's scripts, with their names and defaults, as far as sampling depends on them.

    A classifier there has 64 channels a head and takes its levels' multipliers from the size of the image; here
    ``classifier_num_head_channels`` and ``classifier_channel_mult`` may say otherwise.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_head_channels: int = -1
    attention_resolutions: str = "16,8"
    channel_mult: str = ""
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False
    classifier_width: int = 128
    classifier_depth: int = 2
    classifier_attention_resolutions: str = "32,16,8"
    classifier_channel_mult: str = ""
    classifier_num_head_channels: int = 64
    classifier_use_scale_shift_norm: bool = True
    classifier_resblock_updown: bool = True

    def __post_init__(self) -> None:
        for name in ("image_size", "num_res_blocks", "diffusion_steps", "classifier_depth"):
            if getattr(self, name) < 1:
                raise InputError(f"model option {name} = {getattr(self, name)} is not above 0")
        if self.noise_schedule not in SCHEDULES:
            raise InputError(
                f"model option noise_schedule = '{self.noise_schedule}' is unknown "
                f"{nearest(self.noise_schedule, SCHEDULES)}"
            )

    def network(self, classes: int = CLASSES) -> ADM:
        """The denoising network.

        Raises:
            InputError: flags that make no network.
        """
        return ADM(
            self.image_size,
            self.num_channels,
            self.num_res_blocks,
            self._multipliers("channel_mult"),
            self._factors("attention_resolutions"),
            out_channels=6 if self.learn_sigma else 3,
            num_classes=classes if self.class_cond else None,
            num_heads=self.num_heads,
            num_head_channels=self.num_head_channels,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
            use_new_attention_order=self.use_new_attention_order,
        )

    def classifier(self, classes: int = CLASSES) -> ADM:
        """The classifier of noisy images, whose ``out_channels`` are the classes.

        Raises:
            InputError: flags that make no network.
        """
        return ADM(
            self.image_size,
            self.classifier_width,
            self.classifier_depth,
            self._multipliers("classifier_channel_mult"),
            self._factors("classifier_attention_resolutions"),
            out_channels=classes,
            num_head_channels=self.classifier_num_head_channels,
            use_scale_shift_norm=self.classifier_use_scale_shift_norm,
            resblock_updown=self.classifier_resblock_updown,
        )

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule; the linear one has the same ends for any number of steps."""
        steps = self.diffusion_steps
        if self.noise_schedule == "cosine":
            return NoiseSchedule.cosine(steps)
        return NoiseSchedule.linear(steps, 0.1 / steps, 20 / steps)

    @property
    def time_scale(self) -> float:
        """What the networks' times are multiplied by."""
        return 1000 / self.diffusion_steps if self.rescale_timesteps else 1.0

    def _multipliers(self, name: str) -> tuple[float, ...]:
        text = getattr(self, name) or MULTIPLIERS.get(self.image_size)
        if text is None:
            raise InputError(
                f"model option {name} is missing: image_size = {self.image_size} has none; e.g. {name}=1,2,2"
            )
        levels = _numbers(name, text)
        if self.image_size % 2 ** (len(levels) - 1):
            raise InputError(
                f"model option {name} = {text}: image_size = {self.image_size} cannot be halved {len(levels) - 1} times"
            )
        return levels

    def _factors(self, name: str) -> tuple[int, ...]:
        """How much smaller than the image those levels are that have attention; without any, the text is empty."""
        text = getattr(self, name)
        sizes = _numbers(name, text) if text else ()
        if not all(size.is_integer() for size in sizes):
            raise InputError(f"model option {name} = {text}: sizes of images are whole numbers, e.g. {name}=32,16,8")
        return tuple(self.image_size // int(size) for size in sizes)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
        if min(numbers) > 0:
            return numbers
    except ValueError:
        pass
    raise InputError(f"model option {name} = '{text}' is not numbers above 0 by commas, e.g. {name}=1,2,2")


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
                shapes = {
                    key: tuple(w.shape) for key, w in empty_classifier(bare.classifier(labels)).state_dict().items()
                }
            else:
                shapes = adm_shapes(empty_adm_unet(bare.network(labels)))
            check_fits(state, shapes)
        except InputError:
            continue
        differ: dict[str, Any] = {
            field.name: value
            for field in fields(Flags)
            if (value := getattr(found, field.name)) != getattr(flags, field.name)
        }
        differ |= {"classes": labels} if labels != classes else {}
        return " ".join(f"{name}={str(value).lower()}" for name, value in differ.items())
    return None


def _candidates(state: Mapping[str, Tensor], flags: Flags, classifier: bool) -> Iterator[tuple[Flags, int]]:
    """Flags and numbers of classes that the shapes suggest: one for each way to cut the blocks into levels."""
    try:
        width = state["time_embed.0.weight"].shape[1]
        outs = [state["input_blocks.0.0.weight"].shape[0]]
        while (
            place := f"input_blocks.{len(outs)}.0"
        ) + ".in_layers.0.weight" in state or f"{place}.op.weight" in state:
            last = state.get(f"{place}.out_layers.3.weight", state.get(f"{place}.op.weight"))
            outs.append(0 if last is None else last.shape[0])
        norm = state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * outs[1]
        answers = state["out.2.c_proj.weight" if classifier else "out.2.weight"].shape[0]
        positions = state["out.2.positional_embedding"].shape[1] if classifier else 0
    except (KeyError, IndexError):
        return
    updown = not any(key.endswith(".op.weight") for key in state)
    labels = answers if classifier else len(state.get("label_emb.weight", ())) or CLASSES
    for blocks in range(1, len(outs)):  # of each level but the last, with the one that halves the image
        if len(outs) % (blocks + 1):
            continue
        starts = range(1, len(outs), blocks + 1)
        size = isqrt(positions - 1) << (len(starts) - 1) if classifier else flags.image_size
        factors = [outs[start] / width for start in starts]
        attends = [size >> i for i, start in enumerate(starts) if f"input_blocks.{start}.1.qkv.weight" in state]
        multipliers = ",".join(f"{factor:g}" for factor in factors)
        resolutions = ",".join(str(resolution) for resolution in attends)
        mult = "classifier_channel_mult" if classifier else "channel_mult"
        if multipliers == MULTIPLIERS.get(size):
            multipliers = getattr(flags, mult) and multipliers
        where = "classifier_attention_resolutions" if classifier else "attention_resolutions"
        if set(getattr(flags, where).split(",")) & {str(size >> i) for i in range(len(starts))} == set(
            map(str, attends)
        ):
            resolutions = getattr(flags, where)
        given: dict[str, Any] = {mult: multipliers, where: resolutions, "image_size": size}
        if classifier:
            given |= {"classifier_width": width, "classifier_depth": blocks}
            given |= {"classifier_use_scale_shift_norm": norm, "classifier_resblock_updown": updown}
        else:
            given |= {"num_channels": width, "num_res_blocks": blocks, "learn_sigma": answers == 6}
            given |= {
                "use_scale_shift_norm": norm,
                "resblock_updown": updown,
                "class_cond": "label_emb.weight" in state,
            }
        try:
            yield replace(flags, **given), labels
        except InputError:
            continue
