"""Layers: what can be left out of a network, what it costs, and the switch that does it. One file a family of blocks.

A file ends in ``rules = (Rule(...), ...)``, a rule for each class; :func:`register` adds one for a class of the user's
own. A rule says what a block of its class passes on when it is left out.
"""

from __future__ import annotations

from autodiffusion.layers._base import Layer, Rule, register

__all__ = ["Layer", "Rule", "register"]
