"""Model: what evaluation needs of a diffusion model, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from autodiffusion.errors import InputError, nearest
from autodiffusion.schedule import NoiseSchedule

Prediction = Literal["epsilon", "v_prediction", "sample"]
NOISE, LABELS = 0, 1
"""Streams of random numbers of a sample: its first noise, its class. Noise of stochastic solvers follows from 2 on."""


def generator(seed: int, stream: int, index: int) -> torch.Generator:
    """The random numbers of sample ``index`` alone: the same in any batch, on any device, in any worker."""
    state = np.random.SeedSequence((seed, stream, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


@dataclass(frozen=True)
class Layer:
    """A part of a network that a plan may leave out.

    Attributes:
        number: place in execution order, input to output, from 0.
        name: the module's path in the network.
        kind: what it is, e.g. ``resnet`` or ``attention``.
        macs: multiply-accumulates for one sample.
    """

    number: int
    name: str
    kind: str
    macs: int


@dataclass(eq=False)
class Model:
    """A diffusion model, ready to be sampled.

    Attributes:
        network: ``(x [B, *shape], t [B] float, label [B] int or None) -> prediction [B, *shape]``; twice the channels
            where the variance is learned too, of which the first half is used.
        schedule: the noise schedule it was trained with.
        shape: of one sample, e.g. ``(3, 64, 64)``.
        prediction: what the network predicts: ``epsilon``, ``v_prediction`` or ``sample`` (clean data).
        clip: whether samples are pixels in [-1, 1], so that solvers clip their view of the clean data.
        classes: number of classes, drawn evenly; ``None`` for an unconditional model.
        null_class: the label that stands for "no class", needed for guidance.
        guidance_scale: classifier-free guidance (Ho and Salimans 2022) as diffusers counts it: 1 is none,
            above 1 pushes away from the null class. One guided prediction counts as one network evaluation.
        name: how reports call it.
        features: the feature network that fits its images, by name; ``inception`` where nothing else is said.
        reference: the reference that belongs to it, if it brings one.
        device: where the network runs. Noise is drawn on the CPU whatever the device.
        dtype: of the network's inputs; solvers and metrics keep float32.
    """

    network: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    prediction: Prediction = "epsilon"
    clip: bool = True
    classes: int | None = None
    null_class: int | None = None
    guidance_scale: float = 1.0
    name: str = "own"
    features: str = "inception"
    reference: Path | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    layers: Sequence[Layer] = ()

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InputError(
                f"prediction '{self.prediction}' is unknown {nearest(self.prediction, get_args(Prediction))}"
            )
        if self.guidance_scale != 1 and (self.classes is None or self.null_class is None):
            raise InputError(
                f"guidance_scale = {self.guidance_scale:g} needs a class-conditional model with a null class; "
                "give its number (--null-class) or leave the scale at 1"
            )

    def noise(self, indices: Sequence[int], seed: int, stream: int = NOISE) -> Tensor:
        """Standard normal noise ``[len(indices), *shape]`` that depends on (seed, stream, index) alone."""
        drawn = [torch.randn(self.shape, generator=generator(seed, stream, i)) for i in indices]
        return torch.stack(drawn).to(self.device)

    def condition(self, indices: Sequence[int], seed: int) -> Tensor | None:
        """What these samples are asked to show: class labels ``[len(indices)]``, or ``None``."""
        if self.classes is None:
            return None
        draw = [torch.randint(self.classes, (1,), generator=generator(seed, LABELS, i)) for i in indices]
        return torch.cat(draw).to(self.device)

    def predict(self, x: Tensor, t: float, condition: Tensor | None) -> Tensor:
        """The noise in ``x`` at time ``t``, epsilon ``[B, *shape]``, guidance included."""
        if self.guidance_scale == 1:
            return self._epsilon(x, t, condition)
        assert condition is not None and self.null_class is not None
        labels = torch.cat([torch.full_like(condition, self.null_class), condition])
        without, given = self._epsilon(torch.cat([x, x]), t, labels).chunk(2)
        return without + self.guidance_scale * (given - without)

    def _epsilon(self, x: Tensor, t: float, labels: Tensor | None) -> Tensor:
        times = torch.full((len(x),), float(t), device=x.device)
        output = self.network(x.to(self.dtype), times, labels)[:, : self.shape[0]].to(x.dtype)
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction == "v_prediction":  # Salimans and Ho 2022: v = alpha epsilon - sigma x0
            return alpha * output + sigma * x
        return (x - alpha * output) / sigma

    def decode(self, x: Tensor) -> Tensor:
        """Finished samples as images: uint8 ``[B, C, H, W]`` on the CPU."""
        return (x.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).cpu()

    def without(self, skip: frozenset[int]) -> AbstractContextManager[Any]:
        """A context in which the layers of these numbers are left out.

        Raises:
            InputError: the network has no layer of such a number.
        """
        if skip:
            raise InputError(f"{self.name}: layers {sorted(skip)} cannot be left out; none of this model's can yet")
        return nullcontext()
