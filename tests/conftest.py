"""What several test files need."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``.npz`` of 600 true samples of the small exact model, as guided-diffusion writes images."""
    from small import real

    path = tmp_path_factory.mktemp("reference") / "real.npz"
    np.savez(path, arr_0=real(600).permute(0, 2, 3, 1).numpy())
    return path
