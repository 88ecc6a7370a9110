"""The Frechet distance between Gaussians fitted to spatial features (Nash et al. 2021): the sFID."""

from __future__ import annotations

from autodiffusion._references.reference import Reference
from autodiffusion.metrics.fid import FID


class SFID(FID):
    """The FID of features that say where in the image they are, so that what lies in the wrong place counts.

    Those of guided-diffusion's evaluator (Dhariwal and Nichol 2021), with the ``inception`` features; the reference's
    are the ``mu_s`` and ``sigma_s`` of its reference batches, or made from images.
    """

    needs = "spatial"

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference.need_spatial("sfid"))


metric = SFID
