"""The FID's own network: InceptionV3 of 2015 with TensorFlow's weights, through torch-fidelity."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from autodiffusion._errors import InputError
from autodiffusion.features._base import Extractor

WEIGHTS_VARIABLE = "AUTODIFFUSION_INCEPTION"
WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
SPATIAL_LAYER = "Mixed_6d.branch1x1"
"""torch-fidelity's name for TensorFlow's ``mixed_6/conv``."""
SPATIAL_CHANNELS = 7
BATCH_SIZE = 64
"""Its images are enlarged to 299x299; larger batches take memory and save no time."""


class Inception(nn.Module):
    """The 2048 features that the FID compares (Heusel et al. 2017), the logits of the inception score, and the sFID's.

    The logits are without the bias of the last layer, as in the first implementation of the score (Salimans et al.
    2016). The spatial features are those of guided-diffusion's evaluator (Dhariwal and Nichol 2021, after Nash et al.
    2021): the first 7 channels of the layer that TensorFlow calls ``mixed_6/conv``, 17x17, in the order [row, column,
    channel]. Grey images are repeated to three channels.
    """

    dimension = 2048
    wants_uint8 = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``[B, 2048]``, logits ``[B, 1008]``, spatial features ``[B, 2023]`` of images ``[B, 1 or 3, H, W]``.

        The images are uint8.

        Raises:
            InputError: images with another number of channels.
        """
        channels = images.shape[1]
        if channels not in (1, 3):
            raise InputError(f"features 'inception': images have {channels} channels; it takes grey and RGB images")
        maps: list[Tensor] = []
        layer = self.network.get_submodule(SPATIAL_LAYER)
        hook = layer.register_forward_hook(lambda module, inputs, output: maps.append(output))
        try:
            features, logits = self.network(images.expand(-1, 3, -1, -1).contiguous())
        finally:
            hook.remove()
        return features, logits, maps[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def pretrained() -> Extractor:
    """The network with its published weights: from the file that ``AUTODIFFUSION_INCEPTION`` names, else downloaded.

    Raises:
        InputError: torch-fidelity is not installed, or the weights can be neither read nor downloaded.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise InputError(
            f"features 'inception': {error}; install its packages with: pip install 'autodiffusion[inception]', "
            "or name another network with --features"
        ) from None
    path = os.environ.get(WEIGHTS_VARIABLE)
    if path:
        _check_weights(Path(path))
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path or None
        )
    except Exception as error:  # whatever goes wrong between here and a download server
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if path:
            raise InputError(f"{path}: is not {WEIGHTS_NAME} of torch-fidelity ({reason})") from error
        raise InputError(
            f"features 'inception': its weights could not be downloaded ({reason}); "
            f"set {WEIGHTS_VARIABLE} to the path of a copy of torch-fidelity's {WEIGHTS_NAME}"
        ) from error
    return Extractor(Inception(network), batch_size=BATCH_SIZE)


def _check_weights(path: Path) -> None:
    """Refuses a file that holds more than tensors before it reaches a library that may unpickle it."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file of plain weights"
        raise InputError(
            f"{path}: cannot be read ({reason}); set {WEIGHTS_VARIABLE} to the path of torch-fidelity's {WEIGHTS_NAME}"
        ) from error


extractor = pretrained
