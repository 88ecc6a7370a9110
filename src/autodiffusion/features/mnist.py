"""The bundled feature network: a small classifier of 16x16 digits."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent.parent / "_bundled" / "mnist" / "classifier.safetensors"


class DigitClassifier(nn.Module):
    """Classifies grey digits and exposes its penultimate layer as features.

    Input: images in [-1, 1], float, ``[B, 1, 16, 16]``. Output: ``(features [B, 64], logits [B, 10])``.
    Trained by ``training/train_classifier.py``; what it is good for is in the model card.
    """

    dimension = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, self.dimension),
            nn.SiLU(),
        )
        self.head = nn.Linear(self.dimension, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, 64]`` and logits ``[B, 10]`` of images ``[B, 1, 16, 16]``."""
        features = self.body(images)
        return features, self.head(features)


def trained() -> DigitClassifier:
    """The classifier with the bundled weights, which are stored in half precision and used in single."""
    network = DigitClassifier()
    network.load_state_dict(load_file(WEIGHTS))
    return network


extractor = trained
