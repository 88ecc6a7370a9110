"""Trains the bundled feature network: a classifier of 16x16 digits. Or another one, by its class.

    python training/train_classifier.py --data mnist.npz --out classifier.safetensors [--epochs 6]
    PYTHONPATH=. python training/train_classifier.py --data mnist.npz --out bench/results/second_features.safetensors \\
        --network bench.second_features:SecondClassifier --seed 1

Writes float16 weights and prints the test accuracy of exactly these after every epoch. Training images are moved by up
to one pixel; nothing else is done to them, so that the features keep telling blurred and noisy digits from clean ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from data import digits
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from autodiffusion._names import own


def moved(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels along both axes."""
    size = images.shape[-1]
    padded = functional.pad(images, (1, 1, 1, 1), value=-1)
    rows, columns = torch.randint(3, (2, len(images), 1)) + torch.arange(size)
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are written: float16."""
    return {name: value.half() for name, value in state.items()}


def accuracy(make: Callable[[], nn.Module], state: dict[str, Tensor], images: Tensor, labels: Tensor) -> float:
    network = make().eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        right = [
            (network(x)[1].argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return float(sum(right)) / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--network",
        default="autodiffusion.features.mnist:DigitClassifier",
        help="package.module:attribute that makes a network of images [B, 1, 16, 16] to (features, logits [B, 10])",
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    images, labels = digits(args.data, "train")
    test_images, test_labels = digits(args.data, "test")
    make = own(args.network, "network")
    network = make()
    batches = len(images) // args.batch_size
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=batches * args.epochs, pct_start=0.1
    )
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {args.epochs} epochs of {batches} batches")
    start = time.time()
    for epoch in range(args.epochs):
        order, total = torch.randperm(len(images)), 0.0
        for batch in order[: batches * args.batch_size].view(batches, -1):
            loss = functional.cross_entropy(network(moved(images[batch]))[1], labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            total += loss.item()
        state = rounded(network.state_dict())
        test = accuracy(make, state, test_images, test_labels)
        print(
            f"epoch {epoch + 1}: loss {total / batches:.4f}, test {test:.2%}, {time.time() - start:.0f} s", flush=True
        )
        save_file(state, args.out)


if __name__ == "__main__":
    main()
