"""MNIST at 16x16: padded to 32x32 and averaged over 2x2 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def digits(path: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1], float32, ``[N, 1, 16, 16]``, and labels ``[N]``; ``part`` is ``train`` or ``test``."""
    with np.load(path, allow_pickle=False) as file:
        raw, labels = torch.from_numpy(file[f"x_{part}"]), torch.from_numpy(file[f"y_{part}"]).long()
    padded = functional.pad(raw[:, None].float(), (2, 2, 2, 2))
    small = functional.avg_pool2d(padded, 2).round()
    return small / 127.5 - 1, labels
