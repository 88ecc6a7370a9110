"""``autodiffusion plans [PLAN]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autodiffusion.cli._options import Json, check_writable
from autodiffusion.cli._output import print_json
from autodiffusion.errors import InputError
from autodiffusion.plan import Plan


def plans_command(
    plan: Annotated[
        str | None, typer.Argument(help="a plan's file or a published plan's name; without it, those are listed")
    ] = None,
    resample: Annotated[int | None, typer.Option(min=1, help="give the plan this number of steps")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the resampled plan")] = None,
    as_json: Json = False,
) -> None:
    """Lists the published plans, shows a plan and where it came from, or gives it another number of steps."""
    from autodiffusion.published import published, read
    from autodiffusion.resample import resample as resampled

    if plan is None:
        if resample or out:
            raise InputError("--resample and --out are for one plan; give its file or its name")
        return print_json([_entry(*item) for item in published().items()]) if as_json else _print_list(published())
    chosen = read(plan)
    if resample is None:
        if out:
            raise InputError("--out is for a resampled plan; give --resample with a number of steps")
        return print_json([_entry(plan, chosen)]) if as_json else _print(chosen)
    chosen = resampled(chosen, resample)
    if out:
        check_writable(out)
        chosen.save(out)
    if as_json:
        print_json({"plan": chosen.model_dump(mode="json")})
    elif out:
        from autodiffusion.evaluate import describe

        print(f"{out}: {describe(chosen)}")
    else:
        print(chosen.to_json(), end="")


def _entry(name: str, plan: Plan) -> dict[str, Any]:
    return {"name": name, "source": plan.origin, "plan": plan.model_dump(mode="json")}


def _print(plan: Plan) -> None:
    """A plan in a line, the layers that it leaves out and where it came from."""
    from autodiffusion.evaluate import describe

    print(describe(plan))
    for step in plan.steps:
        if step.skip:
            print(f"at {step.t:g} without layers {', '.join(map(str, sorted(step.skip)))}")
    if plan.origin:
        print(f"from {json.dumps(plan.origin)}")


def _print_list(plans: dict[str, Plan]) -> None:
    """The published plans as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "solver", "steps", "layers left out", "source")
    for name, plan in plans.items():
        left_out = sum(len(step.skip) for step in plan.steps)
        source = f"{plan.origin['source']}{'; in part assumed' if 'assumed' in plan.origin else ''}"
        table.add_row(name, plan.solver, str(len(plan.steps)), str(left_out), source)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False).print(table)
