"""Strategies: which plans to try next. One file a strategy; each ends in ``strategy = ITS_CLASS``. No torch here."""

from __future__ import annotations

from autodiffusion.strategies._base import RUNGS, WIDER, Strategy, build, hopeful

__all__ = ["RUNGS", "WIDER", "Strategy", "build", "hopeful"]
