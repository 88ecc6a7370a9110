"""The benchmark's models: the bundled one, and two whose best denoiser is known in closed form.

Each function below makes a ``Model`` for ``--model bench.models:NAME``. The closed forms have no training error and
cost next to nothing, so that searches of the paper's size can be run on them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autodiffusion import Model, NoiseSchedule, load_model
from autodiffusion._references.reference import Reference
from autodiffusion.features import Extractor
from autodiffusion.features._base import load as load_features

SHAPE = (1, 16, 16)
DIMENSION = 256
ABOUT = (
    "Models (`bench/models.py`): `mixture`, ten Gaussians in 256 dimensions, and `empirical`, 500 blurred digits,\n"
    "have a best denoiser that is known in closed form; `bundled` is the package's network, in bfloat16 and compiled."
)
"""What the tables say of them."""
REFERENCES = Path("runs/references")
REAL = 20_000
"""Exact samples in the reference of an exact model."""
CHUNK = 50
"""Samples that the compiled network gets at a time: one shape, one compilation."""


def bundled() -> Model:
    """The bundled network in bfloat16, compiled: twice as fast on a CPU, for a benchmark of hours."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    whole = load_model("mnist", dtype="bfloat16")
    compiled = torch.compile(whole.network, dynamic=False)

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        parts = []
        for start in range(0, len(x), CHUNK):
            some, times, labels = (values[start : start + CHUNK] for values in (x, t, label))
            left = CHUNK - len(some)
            if left:
                some = torch.cat([some, some.new_zeros(left, *some.shape[1:])])
                times, labels = torch.cat([times, times.new_zeros(left)]), torch.cat([labels, labels.new_zeros(left)])
            parts.append(compiled(some, times, labels)[: CHUNK - left].clone())
        return torch.cat(parts)

    return replace(whole, network=network, name="bundled")


class Mixture:
    """Ten Gaussians in 256 dimensions, each with a mean and 12 directions of its own along which it varies.

    Component k is N(m_k, U_k diag(l) U_k^T + w^2 I); l falls as j^-1.5, as the spectra of images do.
    """

    components, rank, width = 10, 12, 0.05

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self.means = rng.normal(0, 0.25, (self.components, DIMENSION))
        bases = [np.linalg.qr(rng.normal(size=(DIMENSION, self.rank)))[0] for _ in range(self.components)]
        self.bases = np.stack(bases)
        self.variances = 8.0 * np.arange(1, self.rank + 1) ** -1.5
        weights = rng.uniform(0.5, 1.5, self.components)
        self.weights = weights / weights.sum()

    def sample(self, count: int, seed: int) -> Tensor:
        """Exact samples, ``[count, *SHAPE]``."""
        rng = np.random.default_rng(seed)
        which = rng.choice(self.components, count, p=self.weights)
        along = rng.normal(size=(count, self.rank)) * np.sqrt(self.variances)
        x = self.means[which] + np.einsum("ndr,nr->nd", self.bases[which], along)
        return torch.from_numpy(x + self.width * rng.normal(size=x.shape)).float().view(count, *SHAPE)

    def model(self) -> Model:
        schedule = NoiseSchedule.linear(1000)
        means, bases = torch.from_numpy(self.means).float(), torch.from_numpy(self.bases).float()
        variances, prior = torch.from_numpy(self.variances).float(), torch.from_numpy(np.log(self.weights)).float()
        flat_bases = bases.permute(1, 0, 2).reshape(DIMENSION, -1)

        def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            """Of x = alpha x0 + sigma e the best guess of e: -sigma times the score of the mixture's marginal."""
            time = float(t[0])
            alpha, sigma = schedule.alpha(time), schedule.sigma(time)
            across = alpha**2 * self.width**2 + sigma**2  # variance of a component off its directions
            along = alpha**2 * variances + across
            flat = x.flatten(1)
            centres = alpha * means
            distance = flat.square().sum(1, keepdim=True) - 2 * flat @ centres.T + centres.square().sum(1)
            inside = (flat @ flat_bases).view(len(x), self.components, self.rank)
            inside = inside - torch.einsum("kd,kdr->kr", centres, bases)
            squares = inside.square()
            mahalanobis = distance / across - (squares * (1 / across - 1 / along)).sum(2)
            responsibility = torch.softmax(prior - mahalanobis / 2, dim=1)
            shrunk = inside * (1 / across - 1 / along) * responsibility[:, :, None]
            score = (responsibility @ centres - flat) / across + shrunk.flatten(1) @ flat_bases.T
            return (-sigma * score).view_as(x)

        return Model(network, schedule, SHAPE, clip=False, features="bench.models:mixture_features", name="mixture")


class Projection(nn.Module):
    """64 fixed random nonlinear features of an image, two layers deep."""

    dimension = 64

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(12)
        for name, shape, scale in (("first", (DIMENSION, 128), 2.0), ("second", (128, 64), 1.5)):
            weights = rng.normal(0, scale / np.sqrt(shape[0]), shape)
            self.register_buffer(name, torch.from_numpy(weights).float())

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(images.flatten(1) @ self.get_buffer("first"))
        return torch.tanh(hidden @ self.get_buffer("second"))


def mixture() -> Model:
    return Mixture().model()


def mixture_features() -> nn.Module:
    return Projection()


class Empirical:
    """Digits of the bundled reference, each blurred by a Gaussian: what a perfect, memorizing model would be."""

    width = 0.1

    def __init__(self) -> None:
        reference = load_model("mnist").reference
        assert reference is not None
        with np.load(reference, allow_pickle=False) as arrays:
            self.images = torch.from_numpy(arrays["images"][:500]).float() / 127.5 - 1

    def sample(self, count: int, seed: int) -> Tensor:
        """Exact samples, ``[count, *SHAPE]``."""
        rng = np.random.default_rng(seed)
        x = self.images[rng.integers(len(self.images), size=count)]
        return x + self.width * torch.from_numpy(rng.normal(size=x.shape)).float()

    def model(self) -> Model:
        schedule = NoiseSchedule.cosine(1000)
        flat_images = self.images.flatten(1)
        norms = flat_images.square().sum(1)

        def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            """Of x = alpha x0 + sigma e the best guess of e: -sigma times the score of the blurred images' marginal."""
            time = float(t[0])
            alpha, sigma = schedule.alpha(time), schedule.sigma(time)
            variance = alpha**2 * self.width**2 + sigma**2
            flat = x.flatten(1)
            weights = torch.softmax((alpha * flat @ flat_images.T - alpha**2 * norms / 2) / variance, dim=1)
            return (sigma * (flat - alpha * (weights @ flat_images)) / variance).view_as(x)

        return Model(network, schedule, SHAPE, clip=False, features="mnist", name="empirical")


def empirical() -> Model:
    return Empirical().model()


EXACT = {"mixture": Mixture, "empirical": Empirical}


def reference_of(name: str) -> str | None:
    """The file with the reference of a model above, made where it is missing; ``None`` where the model brings one."""
    if name not in EXACT:
        return None
    file = REFERENCES / f"{name}.npz"
    if not file.exists():
        distribution = EXACT[name]()
        extractor: Extractor = load_features(distribution.model().features)
        images = distribution.model().decode(distribution.sample(REAL, seed=13))
        features = replace(extractor, batch_size=1000)(images)
        file.parent.mkdir(parents=True, exist_ok=True)
        made = replace(Reference.of(features, extractor.name, name=name), vectors=None)
        made.save(file.with_suffix(f".{os.getpid()}.npz"))
        os.replace(file.with_suffix(f".{os.getpid()}.npz"), file)
    return str(file)
