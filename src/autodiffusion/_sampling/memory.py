"""Memory: as many samples at a time as it suffices for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def halved(work: Callable[[int], T], size: int, free: Callable[[], bool] = lambda: False) -> T:
    """What ``work`` gives for ``size`` samples at a time; for half as many, and so on, where memory does not suffice.

    Args:
        free: gives up what memory holds besides, and says whether there was anything; then the same size is tried
            again.

    Raises:
        torch.OutOfMemoryError: memory does not suffice for a single sample.
    """
    while True:
        try:
            return work(size)
        except torch.OutOfMemoryError:
            if not free():
                if size == 1:
                    raise
                size = -(-size // 2)
        # not within the except, where the error still holds what did not fit
        gc.collect()
        torch.cuda.empty_cache()


def in_blocks(work: Callable[[range], T], count: int, size: int) -> list[T]:
    """What ``work`` gives for the samples 0 to ``count`` - 1, at most ``size`` at a time and as :func:`halved` has it.

    Once memory has run out, all that follows is done in the smaller blocks that fit.
    """
    found: list[T] = []
    done = 0

    def next_block(size: int) -> tuple[int, T]:
        block = range(done, min(done + size, count))
        return len(block), work(block)

    while done < count:
        size, part = halved(next_block, min(size, count - done))
        done += size
        found.append(part)
    return found
