"""Feature networks: from images to the numbers that metrics compare. One file a network; each assigns ``extractor``.

A network is an ``nn.Module`` from a batch of images to features, perhaps with logits and spatial features. The file's
``extractor`` makes one without arguments, as does a user's ``package.module:attribute`` (which may also be the module
itself).
"""

from __future__ import annotations

from autodiffusion.features._base import Extractor, Features

__all__ = ["Extractor", "Features"]
