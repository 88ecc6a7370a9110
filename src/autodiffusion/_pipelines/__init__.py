"""Pipelines: a plan followed by a diffusers pipeline, and whether one can follow it."""
