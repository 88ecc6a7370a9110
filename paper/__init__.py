"""AutoDiffusion's own experiments; not a part of the package. ``python -m paper --help`` says how they are run."""
