"""Makes the bundled reference of 16x16 digits.

    python training/build_reference.py --data mnist.npz --out reference.npz

Mean and covariance are of all 60,000 training images; single vectors and images, which take more room, of a seeded
choice among them. Run after ``train_classifier.py``, whose weights it reads from the installed package.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from data import digits

from autodiffusion import features
from autodiffusion._references.reference import Reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=5000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    extractor = features.load("mnist")
    images = ((digits(args.data, "train")[0] + 1) * 127.5).round().to(torch.uint8)
    whole = Reference.of(extractor(images), extractor.name, name="mnist")
    assert whole.vectors is not None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
    chosen, shown = whole.vectors[order[: args.vectors]], images[order[: args.images]]
    dataclasses.replace(whole, vectors=chosen, images=shown).save(args.out, half=True)
    print(f"{len(images)} images, {args.vectors} vectors, {args.images} images kept: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
