"""A plan for a network of your own, here one of flow matching that needs no training: its data are circles.

    cd examples
    autodiffusion search own_network:factory --features own_network:coarse --reference teacher:50 --steps 4 --out run
    python own_network.py run/plan.json --out circles.png

`factory` and `coarse` are what the search asks of you: the model, and features to compare its images by.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from autodiffusion import Model, NoiseSchedule, Plan, sample

SIZE = 16


class Circles(nn.Module):
    """The velocity that carries noise to one of 64 circles: of a finite set of images it is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        y, x = torch.meshgrid(*[torch.arange(SIZE).float()] * 2, indexing="ij")
        corners, radii = torch.arange(5, 9).float(), torch.arange(2, 6).float()
        middles = torch.cartesian_prod(corners, corners, radii)
        away = torch.stack([((x - a) ** 2 + (y - b) ** 2).sqrt() - r for a, b, r in middles])
        self.register_buffer("circles", torch.tanh(1.5 * away.abs() - 1)[:, None])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at ``x [B, 1, 16, 16]`` and the times ``t [B]`` in 1 to 1000."""
        share = (t / 1000).view(-1, 1).to(x.dtype)
        apart = (x.flatten(1)[:, None] - (1 - share)[..., None] * self.circles.flatten(1)).square().sum(-1)
        likely = torch.softmax(-apart / (2 * share**2).clamp(min=1e-6), dim=1)
        clean = torch.einsum("bn,nchw->bchw", likely, self.circles)
        return (x - clean) / share.view(-1, 1, 1, 1)


def factory() -> Model:
    """The model, as `autodiffusion` takes it; yours loads its weights here."""
    network = Circles().eval()
    return Model(
        lambda x, t, label: network(x, t),
        NoiseSchedule.flow(),  # NoiseSchedule.cosine(), say, for a network that predicts noise
        shape=(1, SIZE, SIZE),
        prediction="flow_prediction",
        module=network,
    )


def coarse() -> nn.Module:
    """Features that the images are compared by; take a better network."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="its file")
    parser.add_argument("--out", type=Path, default=Path("circles.png"))
    args = parser.parse_args()
    images = sample(factory(), Plan.load(args.plan), 16, seed=0)  # uint8 [16, 1, 16, 16]
    rows = images.squeeze(1).unflatten(0, (4, 4)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    Image.fromarray(np.asarray(rows)).save(args.out)
