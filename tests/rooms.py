"""Which files of a room a contract is for, told by what they do, so that a new file is in no list."""

from __future__ import annotations

import torch

from autodiffusion import InputError, NoiseSchedule
from autodiffusion._names import known, resolve
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.metrics import Metric
from autodiffusion.solvers._base import build as build_solver
from autodiffusion.solvers._base import solve
from autodiffusion.strategies._base import build as build_strategy

NOISE = NoiseSchedule.linear(1000)


def stochastic(solver: str) -> bool:
    """Whether a solver draws noise with its default options."""
    try:
        solve(build_solver(solver, NOISE), lambda x, t: x, torch.zeros(1, 3), [900, 500, 100])
    except InputError:
        return True
    return False


def searches_times(strategy: str) -> bool:
    """Whether a strategy searches without layers to leave out."""
    try:
        build_strategy(strategy, SearchSpace.of(NOISE, 3, "ddim"), [], 0, {})
    except InputError:
        return False
    return True


DETERMINISTIC = [name for name in known("solvers") if not stochastic(name)]
SEARCH_TIMES = [name for name in known("strategies") if searches_times(name)]
SEARCH_LAYERS = [name for name in known("strategies") if resolve("strategies", name).layered]
FEATURE_METRICS = [name for name in known("metrics") if issubclass(resolve("metrics", name), Metric)]
