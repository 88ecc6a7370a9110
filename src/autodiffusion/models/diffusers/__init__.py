"""Models in the folders that diffusers writes. One file a kind; each ends in ``networks`` and ``model``.

``networks`` names the classes of diffusers whose folders and hub names the file is for. ``model`` is a function of the
name that makes a Model, of the keywords of :func:`autodiffusion.models._load.load` that it takes.
"""

from __future__ import annotations

from autodiffusion._names import modules

ROOM = "models.diffusers"


def by_network() -> dict[str, str]:
    """Of each class of networks that is known, the file it is loaded by."""
    return {network: name for name, file in modules(ROOM).items() for network in file.networks}
