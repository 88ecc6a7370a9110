"""DPM-Solver++ (Lu et al. 2022b), multistep and singlestep, orders 1 to 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autodiffusion.solvers.dpm_solver import DPMSolver


@dataclass(frozen=True)
class DPMSolverPP(DPMSolver):
    """DPM-Solver for the predicted clean data instead of the noise (Lu et al. 2022b, section 4); the same options.

    With ``clip`` it is the solver for guided models of pixels; multistep of order 2 is what pipelines use by default.
    """

    predicts_data: ClassVar[bool] = True


solver = DPMSolverPP
