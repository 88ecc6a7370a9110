"""guided-diffusion's flags: what makes a checkpoint's networks."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from autodiffusion._errors import InputError, nearest
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.models._adm.network import ADM

MULTIPLIERS = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4"}
"""Of each level, by the size of the image, where nothing is said."""
CLASSES = 1000
"""Of a class-conditional network and of a classifier, where nothing is said."""
SCHEDULES = ("linear", "cosine")
POSITIVE = ("image_size", "num_res_blocks", "diffusion_steps", "classifier_depth", "classifier_num_head_channels")
"""Flags that nothing else would find fault with."""


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
        for name in POSITIVE:
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
        if all(0 < number < inf for number in numbers):
            return numbers
    except ValueError:
        pass
    raise InputError(f"model option {name} = '{text}' is not numbers above 0 by commas, e.g. {name}=1,2,2")
