"""Sampling: many plans on the same noise, in this process or by workers elsewhere."""
