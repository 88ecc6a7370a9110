"""Pictures of samples: each a file, or squares of them beside each other as one file, and taken apart again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from autodiffusion._errors import InputError

GRID = "grid.png"
"""Where a study keeps its samples."""
SIDE = 340
"""Pixels that a square has at least; its pixels are repeated until it has."""
MOST = 1600
"""And at most: larger ones are shrunk."""
GAP, HEAD = 16, 34
"""Pixels between squares, and above them for their titles."""
PANELS = "autodiffusion"
"""The text in the file that says where its squares are."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def picture(images: Mapping[str, Tensor], path: Path) -> None:
    """Writes one PNG with a titled square of images for each name, the same seeds at the same places.

    Args:
        images: uint8 ``[N, C, H, W]``, of equal N; three channels are colours, one is grey, and of other numbers the
            first three or the first one are shown.
    """
    from matplotlib.figure import Figure

    squares = {name: _sized(_shown(mosaic(batch))) for name, batch in images.items()}
    height = HEAD + max(square.shape[0] for square in squares.values()) + GAP
    width = GAP + sum(square.shape[1] + GAP for square in squares.values())
    dpi = 100
    # a hair more, as matplotlib rounds down to pixels, and one less would shift the squares
    drawing = Figure(figsize=((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi, facecolor="white")
    panels, left = [], GAP
    for name, square in squares.items():
        tall, wide = square.shape[:2]
        drawing.figimage(square, left, height - HEAD - tall)  # counted from below
        drawing.text(
            (left + wide / 2) / width,
            1 - HEAD / 2 / height,
            name,
            ha="center",
            va="center",
            fontsize=10,
            parse_math=False,
        )
        panels.append({"name": name, "box": [left, HEAD, left + wide, HEAD + tall]})
        left += wide + GAP
    partial = path.with_name(path.name + ".partial")  # a search that is killed here must not take half for the whole
    drawing.savefig(partial, format="png", metadata={PANELS: json.dumps(panels)})
    partial.replace(path)


def check_new(folder: Path) -> None:
    """Raises :class:`InputError` unless ``folder`` is empty, or can be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; give a new or an empty folder for the images")
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: cannot be made; {folder.parent} is no folder")


def save_each(folder: Path, numbers: range, images: Tensor) -> None:
    """Writes images, uint8 ``[B, 1 or 3, H, W]``, as ``00000.png`` and so on, by their numbers."""
    folder.mkdir(exist_ok=True)
    for number, image in zip(numbers, images.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(folder / f"{number:05d}.png")


def panels(path: Path) -> dict[str, Image.Image]:
    """The squares of a picture by their titles; the whole picture, without a title, where it does not say."""
    try:
        with Image.open(path) as image:
            image.load()
            said = json.loads(getattr(image, "text", {}).get(PANELS, "[]"))
            found = {panel["name"]: image.crop(panel["box"]).convert("RGB") for panel in said}
            return found or {"": image.convert("RGB")}
    except (OSError, UnidentifiedImageError, ValueError, TypeError, KeyError):
        return {}  # a report without pictures is better than none


def mosaic(images: Tensor) -> Pixels:
    """Images ``[N, C, H, W]`` as one, ``[H', W', C]``, row by row, one pixel apart; as square as they go."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.zeros((rows * (height + 1), columns * (width + 1), channels), dtype=np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        tiles[top : top + height, left : left + width] = image
    return tiles[:-1, :-1]


def _shown(tiles: Pixels) -> Pixels:
    """The channels of a mosaic that are shown, ``[H, W, 3]``."""
    return tiles[..., :3] if tiles.shape[-1] >= 3 else tiles[..., :1].repeat(3, -1)


def _sized(tiles: Pixels) -> Pixels:
    """A mosaic of :data:`SIDE` to :data:`MOST` pixels: each pixel repeated as often as that takes, or all shrunk."""
    side = max(tiles.shape[:2])
    if side > MOST:
        size = [max(1, round(length * MOST / side)) for length in (tiles.shape[1], tiles.shape[0])]
        return np.asarray(Image.fromarray(tiles).resize((size[0], size[1]), Image.Resampling.LANCZOS))
    times = math.ceil(SIDE / side)
    return tiles.repeat(times, 0).repeat(times, 1)
