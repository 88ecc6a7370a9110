"""Solvers: from noise to data along any list of time steps. One file a solver; each ends in ``solver = ITS_CLASS``.

A solver sees no model, only ``predict(x, t)``, which says the noise in x, or of flow matching the velocity. It first
turns a plan's times into moves, then makes them one by one. States are immutable and moves comparable, so plans whose
first moves are equal share the states between them.
"""

from __future__ import annotations

from autodiffusion._plans.free import FreeNumber
from autodiffusion.solvers._base import Move, Predict, Solver, State

__all__ = ["FreeNumber", "Move", "Predict", "Solver", "State"]
