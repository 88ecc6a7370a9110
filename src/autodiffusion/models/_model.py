"""Model: what evaluation needs of a diffusion model, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from autodiffusion._errors import InputError, nearest, short
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.layers import Layer
from autodiffusion.layers._find import Network, find
from autodiffusion.models._captions import Captions

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
NOISE, LABELS = 0, 1
"""Streams of random numbers of a sample: its first noise, its class or caption. Stochastic solvers draw from 2 on."""


def generator(seed: int, stream: int, index: int) -> torch.Generator:
    """The random numbers of sample ``index`` alone: the same in any batch, on any device, in any worker."""
    state = np.random.SeedSequence((seed, stream, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


@dataclass(eq=False)
class Model:
    """A diffusion model, ready to be sampled.

    Attributes:
        network: ``(x [B, *shape], t [B] float, label [B] int or None) -> prediction [B, *shape]``; twice the channels
            where the variance is learned too, of which the first half is used.
        schedule: the noise schedule it was trained with.
        shape: of one sample, e.g. ``(3, 64, 64)``; of its latent where there is a ``decoder``.
        prediction: what the network predicts: ``epsilon``, ``v_prediction`` or ``sample`` (clean data); of flow
            matching ``flow_prediction``, the velocity ``noise - x0``, or ``sample``.
        clip: whether samples are pixels in [-1, 1], so that solvers clip their view of the clean data.
        classes: number of classes, drawn evenly; ``None`` for an unconditional model.
        null_class: the label that stands for "no class" or "no caption", needed for guidance.
        guidance_scale: classifier-free guidance (Ho and Salimans 2022) as diffusers counts it: 1 is none,
            above 1 pushes away from the null class. With a classifier its scale, of which 0 is none. One guided
            prediction counts as one network evaluation.
        name: how reports call it.
        features: the feature network that fits its images, by name; ``inception`` where nothing else is said.
        reference: the reference that belongs to it, if it brings one.
        device: where the network runs. Noise is drawn on the CPU whatever the device.
        dtype: of the network's inputs; solvers and metrics keep float32.
        module: what ``network`` calls where that is a function: the torch module whose layers a plan may leave out.
        classifier: ``(x [B, *shape], t [B] float) -> logits [B, classes]`` of noisy samples, through which gradients
            flow; it guides the model towards the labels (see :meth:`guide`).
        captions: what a text-to-image model is asked to show: a sample's label is then the number of its caption, which
            ``network`` looks up.
        decoder: from samples ``[B, *shape]``, float32, to images in [-1, 1], where samples are not images themselves.
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
    module: nn.Module | None = None
    classifier: Callable[[Tensor, Tensor], Tensor] | None = None
    captions: Captions | None = None
    decoder: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InputError(
                f"prediction '{self.prediction}' is unknown {nearest(self.prediction, get_args(Prediction))}"
            )
        if self.prediction not in self.schedule.predictions:
            known = " or ".join(self.schedule.predictions)
            raise InputError(f"prediction '{self.prediction}' does not go with this noise schedule; give {known}")
        if not math.isfinite(self.guidance_scale):
            raise InputError(f"guidance_scale = {self.guidance_scale} is not a finite number")
        if self.classes is not None and self.classes < 1:
            raise InputError(f"classes = {self.classes} is less than 1; leave it out for a model without classes")
        if self.classifier is not None:
            if self.classes is None or self.null_class is not None:
                raise InputError("a classifier guides a model with classes and without a null class; mend one of them")
        elif self.guidance_scale != 1 and (self.null_class is None or (self.classes is None and self.captions is None)):
            raise InputError(
                f"guidance_scale = {self.guidance_scale:g} needs a class-conditional model with a null class; "
                "give its number (--null-class) or leave the scale at 1"
            )

    def noise(self, indices: Sequence[int], seed: int, stream: int = NOISE) -> Tensor:
        """Standard normal noise ``[len(indices), *shape]`` that depends on (seed, stream, index) alone."""
        drawn = [torch.randn(self.shape, generator=generator(seed, stream, i)) for i in indices]
        return torch.stack(drawn).to(self.device)

    def condition(self, indices: Sequence[int], seed: int) -> Tensor | None:
        """What these samples are asked to show: class labels or numbers of captions ``[len(indices)]``, or ``None``.

        Raises:
            InputError: the model needs captions and has none.
        """
        if self.captions is not None:
            return self.captions.numbers(indices, generator(seed, LABELS, 0)).to(self.device)
        if self.classes is None:
            return None
        draw = [torch.randint(self.classes, (1,), generator=generator(seed, LABELS, i)) for i in indices]
        return torch.cat(draw).to(self.device)

    def predict(self, x: Tensor, t: float, condition: Tensor | None) -> Tensor:
        """What solvers ask for: the noise in ``x`` at time ``t``, ``[B, *shape]``, classifier-free guidance included.

        Of flow matching it is the velocity, :attr:`NoiseSchedule.predictions`.
        """
        if self.guidance_scale == 1 or self.classifier is not None:
            return self._slope(x, t, condition)
        assert condition is not None and self.null_class is not None
        labels = torch.cat([torch.full_like(condition, self.null_class), condition])
        without, given = self._slope(torch.cat([x, x]), t, labels).chunk(2)
        return without + self.guidance_scale * (given - without)

    def guide(self, x: Tensor, t: float, condition: Tensor | None) -> Tensor | None:
        """What the classifier adds to epsilon ``[B, *shape]``, or ``None``: ``-sigma scale grad log p(label | x)``.

        It belongs behind whatever clips the clean data (Dhariwal and Nichol 2021, algorithm 2).
        """
        if self.classifier is None or self.guidance_scale == 0:
            return None
        assert condition is not None
        # tensors of inference mode take no part in gradients, their copies do
        with torch.inference_mode(False), torch.enable_grad():
            at, labels = x.clone().requires_grad_(), condition.clone()
            logits = self.classifier(at.to(self.dtype), torch.full((len(x),), float(t), device=x.device)).to(x.dtype)
            # samples do not see each other: the gradient of the sum has that of each
            chosen = logits.log_softmax(-1).gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, at)
        return -self.schedule.sigma(t) * self.guidance_scale * gradient

    @torch.inference_mode()
    def recognize(self, images: Tensor) -> Tensor | None:
        """What to ask for where real images ``[B, *shape]`` in [-1, 1] are looked at, which come without labels.

        The null class or no caption; without one, the classes that the classifier takes them for.

        Raises:
            InputError: the model has classes, and neither of the two.
        """
        if self.null_class is not None:
            return torch.full((len(images),), self.null_class, device=images.device)
        if self.classes is None:
            return None
        if self.classifier is None:
            raise InputError(
                f"{self.name}: real images come without labels, for which kl needs a null class or a classifier; give "
                "--null-class or --classifier"
            )
        times = torch.full((len(images),), float(self.schedule.first), device=images.device)
        return self.classifier(images.to(self.dtype), times).argmax(-1)

    def _slope(self, x: Tensor, t: float, labels: Tensor | None) -> Tensor:
        return self.read(self._ask(x, t, labels), x, t)

    def _ask(self, x: Tensor, t: float, labels: Tensor | None) -> Tensor:
        return self.network(x.to(self.dtype), torch.full((len(x),), float(t), device=x.device), labels)

    def read(self, output: Tensor, x: Tensor, t: float) -> Tensor:
        """What the network's ``output`` says of ``x`` at time ``t``: what :meth:`predict` gives without guidance.

        Args:
            output: of any dtype; channels beyond those of ``x`` are those of a learned variance.

        Raises:
            InputError: it is no tensor, or of another shape.
        """
        if not isinstance(output, Tensor):
            raise InputError(
                f"network of {self.name} returns a {type(output).__name__}, not a tensor; return a tensor of the shape "
                f"of x, {list(x.shape)}, such as .sample of what diffusers gives"
            )
        if output.shape != x.shape:
            whole, output = output, output[:, : x.shape[1]] if output.ndim > 1 else output
            if output.shape != x.shape:
                raise InputError(
                    f"network of {self.name} returns {list(whole.shape)} for x {list(x.shape)}; return x's shape, or "
                    "more channels, of which the first are taken"
                )
        if output.dtype != x.dtype:
            output = output.to(x.dtype)
        if self.prediction == self.schedule.predictions[0]:
            return output
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction == "v_prediction":  # Salimans and Ho 2022: v = alpha epsilon - sigma x0
            return alpha * output + sigma * x
        return self.schedule.slope((x - alpha * output) / sigma, output)

    @torch.no_grad()
    def check_network(self, name: str) -> None:
        """Raises :class:`InputError` unless the network answers for one sample in the middle of the schedule.

        Args:
            name: by which the model was loaded.
        """
        x, t, label = self._one()
        try:
            output = self._ask(x, t, label)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of a network that somebody else wrote
            reason = short(f"{type(error).__name__}: {error}")
            asked = f"x {list(x.shape)}, t [1], label {None if label is None else list(label.shape)}"
            raise InputError(
                f"model '{name}': its network failed on {asked} ({reason}); it takes (x, t, label) and returns a "
                "tensor of x's shape"
            ) from error
        self.read(output, x, t)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Finished samples as images: uint8 ``[B, C, H, W]`` on the CPU."""
        images = x if self.decoder is None else self.decoder(x.to(self.device)).float()
        return (images.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).cpu()

    @property
    def guidance(self) -> str:
        """How it is guided, as the origin of a plan has it: ``none``, or such as ``classifier-free, scale 7.5``."""
        scale = float(self.guidance_scale)
        if self.classifier is not None:
            return f"classifier, scale {scale}" if scale else "none"
        return "none" if scale == 1 else f"classifier-free, scale {scale}"

    @cached_property
    def parts(self) -> Network:
        """What the network consists of, seen in one call for one sample in the middle of the schedule."""
        whole = self.network if self.module is None and isinstance(self.network, nn.Module) else self.module
        x, t, label = self._one()
        # not read: what repaints takes more channels than it makes, of which nothing follows for the sample
        return find(whole, lambda: self._ask(x, t, label))

    def _one(self) -> tuple[Tensor, int, Tensor | None]:
        """One sample to try the network on: noise, a time in the middle of the schedule, what is asked for."""
        # where captions are missing, or not encoded yet, the prompt of no caption has neither fault
        null = None if self.captions is None else self.null_class
        label = self.condition([0], seed=0) if null is None else torch.full((1,), null, device=self.device)
        return self.noise([0], seed=0), (len(self.schedule) - 1) // 2, label

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What a plan may leave out, in execution order; none where no layer rule knows a block of the network."""
        return self.parts.layers

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a prediction for one sample; a guided one counts once."""
        return self.parts.macs

    def check(self, skip: frozenset[int]) -> None:
        """Raises :class:`InputError` unless the network has layers, and those of these numbers."""
        if not self.layers:
            whole = isinstance(self.network, nn.Module) or self.module is not None
            known = (
                "has no layer that is known; register a rule for its blocks (autodiffusion.layers.register)"
                if whole
                else "is a function; name the torch module that it calls (Model(..., module=...)) to leave out layers"
            )
            raise InputError(f"network of {self.name} {known}")
        last = len(self.layers) - 1
        wrong = min((number for number in skip if not 0 <= number <= last), default=None)
        if wrong is not None:
            raise InputError(f"layer {wrong} does not exist; {self.name} has layers 0 to {last}")

    def without(self, skip: frozenset[int]) -> AbstractContextManager[None]:
        """A context in which the layers of these numbers are left out of every prediction, of this model alone.

        Contexts may lie within one another; then the layers of all of them are left out. Models that share their
        ``module`` share what is left out of it. A network that is compiled is compiled once for each set, up to torch's
        ``torch._dynamo.config.recompile_limit``, beyond which it runs uncompiled.

        Raises:
            InputError: the network has no layer of such a number.
        """
        if not skip:
            return nullcontext()
        self.check(skip)
        return self.parts.without(skip)
