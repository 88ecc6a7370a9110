"""Spaces: which plans a search may try, and what they may cost."""
