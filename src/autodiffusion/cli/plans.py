"""``autodiffusion plans PLAN``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from autodiffusion.cli._options import Json, check_writable
from autodiffusion.cli._output import print_json
from autodiffusion.errors import InputError
from autodiffusion.plan import Plan


def plans_command(
    plan: Annotated[Path, typer.Argument(help="a plan's file")],
    resample: Annotated[int | None, typer.Option(min=1, help="give the plan this number of steps")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the resampled plan")] = None,
    as_json: Json = False,
) -> None:
    """Shows a plan and where it came from, or gives it another number of steps."""
    from autodiffusion.evaluate import describe
    from autodiffusion.resample import resample as resampled

    chosen = Plan.load(plan)
    if resample is None:
        if out:
            raise InputError("--out is for a resampled plan; give --resample with a number of steps")
        if as_json:
            entry = {"name": str(plan), "source": chosen.origin, "plan": chosen.model_dump(mode="json")}
            return print_json([entry])
        print(describe(chosen))
        if chosen.origin:
            print(f"from {json.dumps(chosen.origin)}")
        return
    chosen = resampled(chosen, resample)
    if out:
        check_writable(out)
        chosen.save(out)
    if as_json:
        print_json({"plan": chosen.model_dump(mode="json")})
    elif out:
        print(f"{out}: {describe(chosen)}")
    else:
        print(chosen.to_json(), end="")
