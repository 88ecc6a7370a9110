"""A model that costs next to nothing and is known exactly: a few 4x4 images, each blurred by a Gaussian.

``small:model`` and ``small:features`` are what tests give to the command line and to the library.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autodiffusion import Model, NoiseSchedule
from autodiffusion.layers import register
from autodiffusion.metrics.fid import FID

SHAPE = (1, 4, 4)
WIDTH = 0.15
"""Standard deviation of the blur around each image."""


def images(count: int = 12) -> Tensor:
    """The images, in [-0.9, 0.9], float64 ``[count, 1, 4, 4]``."""
    draw = np.random.default_rng(7).uniform(-0.9, 0.9, (count, *SHAPE))
    return torch.from_numpy(np.sign(draw) * np.abs(draw) ** 0.5)


def denoise(x: Tensor, t: float, schedule: NoiseSchedule) -> Tensor:
    """E[x0 | x] in closed form, of x's shape."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    centres = images().to(x).flatten(1)
    flat = x.flatten(1)
    variance = alpha**2 * WIDTH**2 + sigma**2
    weights = torch.softmax(-(torch.cdist(flat, alpha * centres) ** 2) / (2 * variance), dim=1)
    mean = weights @ centres
    return (mean + alpha * WIDTH**2 / variance * (flat - alpha * mean)).view_as(x)


def exact(schedule: NoiseSchedule, name: str) -> Model:
    """The exact model on a noise schedule."""

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        time = float(t[0])
        return (x - schedule.alpha(time) * denoise(x, time, schedule)) / schedule.sigma(time)

    return Model(network, schedule, SHAPE, features="small:features", name=name)


def model() -> Model:
    """The exact model, cosine schedule of 100 steps."""
    return exact(NoiseSchedule.cosine(100), "small")


def shifted_model() -> Model:
    """The exact model on the noise schedule of Stable Diffusion, whose noise ends below that of some grids."""
    return exact(NoiseSchedule.scaled_linear(1000), "shifted")


class Sideways(FID):
    """A metric that does not say which direction is better."""

    better = "max"  # type: ignore[assignment]


def broken_model() -> Model:
    """The same, but what it says at times above 70 is not a number."""
    whole = model()

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        output = whole.network(x, t, label)
        return output * float("nan") if float(t[0]) > 70 else output

    return Model(network, whole.schedule, SHAPE, features="small:features", name="broken")


class Projection(nn.Module):
    """Eight fixed random features of a 4x4 image, and three logits."""

    dimension = 8

    def __init__(self) -> None:
        super().__init__()
        draw = np.random.default_rng(3).normal(size=(16, 11)).astype(np.float32)
        self.weights = nn.Parameter(torch.from_numpy(draw), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.tanh(x.flatten(1) @ self.weights)
        return out[:, :8], out[:, 8:]


features = Projection


def real(count: int, seed: int = 0) -> Tensor:
    """Samples of the true distribution as uint8 images ``[count, 1, 4, 4]``."""
    rng = np.random.default_rng(seed)
    centres = images().numpy()
    drawn = centres[rng.integers(len(centres), size=count)] + WIDTH * rng.normal(size=(count, *SHAPE))
    return torch.from_numpy(np.clip(drawn * 127.5 + 127.5, 0, 255).round().astype(np.uint8))


class Shift(nn.Module):
    """Adds ``offset`` to its input, by a branch that costs 32 ``width`` multiply-accumulates a sample."""

    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        draw = np.random.default_rng(width).normal(size=(16, width)).astype(np.float32)
        self.down = nn.Parameter(torch.from_numpy(draw), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(width, 16), requires_grad=False)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.flatten(1) @ self.down @ self.up).view_as(x) + self.offset


register(Shift, "shift", lambda module, x: x)

OFFSETS, WIDTHS = (0.0, 0.4, 0.0, 0.8, 0.0), (16, 8, 8, 4, 4)
"""Of the layers of :func:`layered_model`: the first, third and last do nothing, the fourth matters most."""


class Shifts(nn.Module):
    """Takes the sum of the offsets away and lets the layers add it again, so that whole it changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.shifts = nn.ModuleList(Shift(width, offset) for width, offset in zip(WIDTHS, OFFSETS, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        x = x - sum(OFFSETS)
        for shift in self.shifts:
            x = shift(x)
        return x


def layered_model() -> Model:
    """The exact model behind five layers that may be left out."""
    exact, shifts = model(), Shifts()
    options = {"features": "small:features", "name": "layered", "module": shifts}
    return Model(lambda x, t, label: exact.network(shifts(x), t, label), exact.schedule, SHAPE, **options)
