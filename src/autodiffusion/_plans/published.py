"""Published plans by name: those of AutoDiffusion (Li et al. 2023) and of Align Your Steps (Sabour et al. 2024).

AutoDiffusion's names are MODEL/DATASET/STEPS (``adm-g/imagenet64/4``), and what distinguishes the plan where there are
several: ``plms``, ``dpm_solver++`` (the solver), ``random`` (found by random search), ``layers`` (leaves out layers).
Align Your Steps' are ``ays/sd/10`` and ``ays/sdxl/10``; in other numbers of steps they are the grids ``ays_sd`` and
``ays_sdxl``. ``published.yaml`` has them as printed.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from autodiffusion._errors import InputError, nearest
from autodiffusion._plans.plan import Plan, Step

DATA = Path(__file__).parent / "published.yaml"
TRAINING_STEPS = 1000
"""Of all models that the plans were made for."""


@cache
def published() -> dict[str, Plan]:
    """The plans by name, AutoDiffusion's first, in the order of its tables.

    Times are the models' training time steps, 0 to 999, and fall. DPM-Solver's were printed in (0, 1]: its node s is
    the time ``1000 s - 1``, a real number, and the last node is the plan's ``end``. ``origin`` tells the source, the
    model and, where the source leaves something open, what was ``assumed``.
    """
    import yaml

    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return {entry["name"]: _plan(entry, data) for entry in data["plans"]}


def _plan(entry: dict[str, Any], data: dict[str, Any]) -> Plan:
    """The plan of one entry of ``published.yaml``."""
    solver = data["solvers"][entry["solver"]]
    model = data["models"]["/".join(entry["name"].split("/")[:2])]
    if "nodes" in entry:
        *times, end = (time_of(node) for node in entry["nodes"])
    else:
        times, end = sorted(entry["times"], reverse=True), solver.get("end")
    skips = reversed(entry.get("skips", [[]] * len(times)))
    assumed = {"assumed": entry["assumed"]} if "assumed" in entry else {}
    return Plan(
        solver=entry["solver"],
        solver_options=solver["options"],
        steps=tuple(Step(t=t, skip=frozenset(skip)) for t, skip in zip(times, skips, strict=True)),
        end=end,
        origin={"published": entry["name"], "source": entry["source"], **model, **assumed},
    )


def time_of(node: float) -> float:
    """The time of DPM-Solver's node s in (0, 1], of four decimals as they are printed: ``1000 s - 1``."""
    return round(TRAINING_STEPS * node - 1, 1)


def read(name: str) -> Plan:
    """The published plan ``name``, else the plan in the file ``name``.

    Raises:
        InputError: neither; or as :meth:`Plan.load`.
    """
    if name in published():
        return published()[name]
    if name.endswith(".json") or os.path.isfile(name):  # pathlib's fails on names that are too long
        return Plan.load(name)
    if os.path.isdir(name):
        inside = os.path.join(name, "plan.json")
        remedy = f"give {inside}" if os.path.isfile(inside) else "give the file of a plan"
        raise InputError(f"plan '{name}' is a folder; {remedy}")
    raise InputError(f"plan '{name}' is neither a file nor published {nearest(name, published())}")
