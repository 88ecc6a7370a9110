"""Strategies: which plans to try next. One file a strategy; each ends in ``strategy = ITS_CLASS``. No torch here."""

from __future__ import annotations

from autodiffusion.strategies._base import Strategy

__all__ = ["Strategy"]
