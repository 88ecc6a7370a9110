"""Manifolds as unions of balls around features (Kynkaanniemi et al. 2019): what precision and recall share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from autodiffusion.metrics._base import Floats

NEIGHBOURS = 3
"""A ball reaches to its centre's third neighbour, as in section 3.1 of the paper."""

ROWS = 1024
"""Rows of a distance matrix that are held at a time."""


def distances(x: Floats, y: Floats) -> Iterator[tuple[int, Floats]]:
    """Squared distances from the rows of ``x`` ``[N, D]`` to those of ``y`` ``[M, D]``: (first row, ``[rows, M]``)."""
    squares = np.square(y).sum(1)
    for start in range(0, len(x), ROWS):
        block = x[start : start + ROWS]
        yield start, (np.square(block).sum(1)[:, None] + squares - 2 * block @ y.T).clip(min=0)


def radii(x: Floats) -> Floats:
    """Squared distances ``[N]`` from each row of ``x`` to its third nearest other row; needs four rows."""
    found = np.empty(len(x))
    for start, block in distances(x, x):
        np.fill_diagonal(block[:, start:], np.inf)
        found[start : start + len(block)] = np.partition(block, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]
    return found


def covered(x: Floats, centres: Floats, reach: Floats) -> NDArray[np.bool_]:
    """Whether each row of ``x`` ``[N, D]`` lies in any of the balls: bool ``[N]``.

    Args:
        centres: ``[M, D]``.
        reach: squared radii ``[M]``.
    """
    return np.concatenate([(block <= reach).any(1) for _, block in distances(x, centres)])
