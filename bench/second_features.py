"""A second opinion on digits: a classifier that shares neither architecture nor initialisation with the bundled one.

    autodiffusion evaluate PLAN --model mnist --features bench.second_features:extractor \\
        --reference bench/results/second_reference.npz

What a search found for one feature network may please that network alone; this one has had no part in any search.
How it was trained is in ``bench/results/second_features.log``. Its reference of real digits is made by

    python -m bench.second_features --data mnist.npz [--vectors 5000] [--seed 0]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from autodiffusion._references.reference import Reference
from autodiffusion.features import _base as features

NAME = "bench.second_features:extractor"
RESULTS = Path(__file__).parent / "results"
WEIGHTS, REFERENCE = RESULTS / "second_features.safetensors", RESULTS / "second_reference.npz"


class Residual(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one, added to what goes in: ``[B, C, H, W]`` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.branch(x))


class SecondClassifier(nn.Module):
    """Classifies grey digits; the means of its last maps over the image are the features.

    Input: images in [-1, 1], float, ``[B, 1, 16, 16]``. Output: ``(features [B, 48], logits [B, 10])``. Where the
    bundled network has strided convolutions, SiLU and a dense layer that keeps places apart, this one has depthwise
    residual blocks (Howard et al. 2017; He et al. 2016), batch normalization, ReLU, max pooling and a global mean.
    """

    dimension = 48

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 5, padding=2),
            nn.ReLU(),
            Residual(24),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.ReLU(),
            Residual(48),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 80, 3, padding=1),
            nn.ReLU(),
            Residual(80),
            nn.Conv2d(80, self.dimension, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(self.dimension, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, 48]`` and logits ``[B, 10]`` of images ``[B, 1, 16, 16]``."""
        vectors = self.body(images)
        return vectors, self.head(vectors)


def extractor() -> SecondClassifier:
    """The second classifier with its weights, which are stored in half precision and used in single."""
    network = SecondClassifier()
    network.load_state_dict(load_file(WEIGHTS))
    return network


def main() -> None:
    """Makes the reference, as ``training/build_reference.py`` does the bundled one: statistics of all training images,
    single vectors of a seeded choice, which for equal options is the same."""
    from training.data import digits  # only who has the data needs it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--out", type=Path, default=REFERENCE)
    parser.add_argument("--vectors", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = ((digits(args.data, "train")[0] + 1) * 127.5).round().to(torch.uint8)
    whole = Reference.of(features.load(NAME)(images), NAME, name="mnist, second features")
    assert whole.vectors is not None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
    dataclasses.replace(whole, vectors=whole.vectors[order[: args.vectors]]).save(args.out, half=True)
    print(f"{len(images)} images, {args.vectors} vectors kept: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
