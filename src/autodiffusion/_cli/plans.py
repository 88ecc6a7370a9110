"""``autodiffusion plans [PLAN]``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autodiffusion._cli._options import MODELS, Json, check_writable
from autodiffusion._cli._output import print_json, print_table
from autodiffusion._errors import InputError, nearest
from autodiffusion._plans.plan import Plan

if TYPE_CHECKING:
    from autodiffusion._pipelines.check import Following
    from autodiffusion._plans.schedule import NoiseSchedule

LEAST = 1.0
"""Least time of a resampled plan, which does not say of which kind its model is: every kind has it."""


def plans_command(
    plan: Annotated[
        str | None, typer.Argument(help="a plan's file or a published plan's name; without it, those are listed")
    ] = None,
    resample: Annotated[int | None, typer.Option(min=1, help="give the plan this number of steps")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the plan, resampled if that is asked for")] = None,
    sigmas: Annotated[
        bool, typer.Option("--sigmas", help="print its sigmas for other programs; also of a grid such as ays_sd:10")
    ] = False,
    model: Annotated[str | None, typer.Option(help=f"whose noise schedule the sigmas are of: {MODELS}")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="that noise schedule: linear, scaled_linear, cosine or flow")
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option("--for", help="folder or hub name of a diffusers pipeline: would it follow the plan, and how"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists the published plans; shows a plan, where it came from, its sigmas, or what a pipeline would do with it;
    gives it another number of steps; writes it to a file.
    """
    from autodiffusion._plans.published import published, read
    from autodiffusion._plans.resample import resample as resampled

    if (model or schedule) and not sigmas:
        raise InputError("--model and --schedule say of which noise schedule sigmas are; give --sigmas too")
    if sigmas and pipeline is not None:
        raise InputError("--sigmas are for other programs, --for is for a pipeline of diffusers; give one of them")
    if plan is None:
        if resample or out or sigmas or pipeline is not None:
            raise InputError("--resample, --out, --sigmas and --for are for one plan; give its file or its name")
        return print_json([_entry(*item) for item in published().items()]) if as_json else _print_list(published())
    noise = _noise(model, schedule) if sigmas else None
    chosen = _grid(plan, noise) or read(plan)
    if resample is not None:
        chosen = resampled(chosen, resample, LEAST)
    follows = None if pipeline is None else _follows(chosen, pipeline)
    if out:
        check_writable(out)
        chosen.save(out)
    if follows:
        entry = {"plan": chosen.model_dump(mode="json"), "follows": asdict(follows)}
        print_json(entry) if as_json else print(f"follows: {follows}")
    elif noise:
        _print_sigmas(chosen, noise, as_json)
    elif resample is None and not out:
        print_json([_entry(plan, chosen)]) if as_json else _print(chosen)
    elif as_json:
        print_json({"plan": chosen.model_dump(mode="json")})
    elif out:
        from autodiffusion._evaluation.evaluate import describe

        print(f"{out}: {describe(chosen)}")
    else:
        print(chosen.to_json(), end="")


def _noise(model: str | None, schedule: str | None) -> NoiseSchedule:
    """The noise schedule that a model or a name stands for."""
    from autodiffusion.models._load import SCHEDULES, load

    if model is not None:
        if model.partition("/")[0] == "adm":
            raise InputError(
                f"--model {model}: an adm model needs files that this verb does not take; give the name of its noise "
                "schedule instead, --schedule cosine for ImageNet 64 and linear for LSUN"
            )
        return load(model, schedule=schedule).schedule
    if schedule is None:
        raise InputError(f"--sigmas depend on the noise schedule; give --model, or --schedule {', '.join(SCHEDULES)}")
    if schedule not in SCHEDULES:
        raise InputError(f"schedule '{schedule}' is unknown {nearest(schedule, SCHEDULES)}")
    return SCHEDULES[schedule]()


def _grid(name: str, noise: NoiseSchedule | None) -> Plan | None:
    """The named grid ``name`` as a plan, where that is what is named.

    Raises:
        InputError: it is, and there is no noise schedule.
    """
    from autodiffusion._plans.grids import NAMED, grid, parse

    if name.partition(":")[0] not in NAMED:
        return None
    if noise is None:
        raise InputError(
            f"'{name}' is a grid, whose times depend on the noise schedule; give --sigmas, or evaluate or sample it"
        )
    return Plan.of("ddim", grid(*parse(name), noise, continuous=True))


def _follows(plan: Plan, pipeline: str) -> Following:
    """What this pipeline would do with the plan."""
    from autodiffusion._pipelines.check import check

    return check(plan, pipeline)


def _print_sigmas(plan: Plan, noise: NoiseSchedule, as_json: bool) -> None:
    """The sigmas alone on standard output; what they leave out of the plan on the other."""
    from autodiffusion.export import left_out, sigmas, text

    values = sigmas(plan, noise)
    print_json({"plan": plan.model_dump(mode="json"), "sigmas": values}) if as_json else print(text(values))
    if lost := left_out(plan):
        print(f"autodiffusion: sigmas carry the plan's times alone, not {lost}", file=sys.stderr)


def _entry(name: str, plan: Plan) -> dict[str, Any]:
    return {"name": name, "source": plan.origin, "plan": plan.model_dump(mode="json")}


def _print(plan: Plan) -> None:
    """A plan in a line, the layers that it leaves out and where it came from."""
    from autodiffusion._evaluation.evaluate import describe

    print(describe(plan))
    for step in plan.steps:
        if step.skip:
            print(f"at {step.t:g} without layers {', '.join(map(str, sorted(step.skip)))}")
    for name, value in plan.origin.items():
        print(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")


def _print_list(plans: dict[str, Plan]) -> None:
    """The published plans as a table."""
    from rich.table import Table

    table = Table("name", "solver", "steps", "layers left out", "source")
    for name, plan in plans.items():
        left_out = sum(len(step.skip) for step in plan.steps)
        source = f"{plan.origin['source']}{'; in part assumed' if 'assumed' in plan.origin else ''}"
        table.add_row(name, plan.solver, str(len(plan.steps)), str(left_out), source)
    print_table(table)
