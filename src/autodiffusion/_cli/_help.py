"""Help in groups: a verb has up to fifty options, and nobody reads that many in one list."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

GROUPS = {
    "The plan": (
        "steps",
        "solver",
        "solver_option",
        "free_end",
        "free_numbers",
        "gap",
        "layers",
        "max_cost",
        "min_steps",
        "max_steps",
    ),
    "The score": ("metric", "reference", "features", "samples", "noise"),
    "The search": (
        "preset",
        "strategy",
        "strategy_option",
        "starts",
        "budget",
        "finalists",
        "confirm_samples",
        "teacher",
        "seed",
    ),
    "The search, with --strategy evolution or random": (
        "population",
        "generations",
        "parents",
        "mutations",
        "crossovers",
        "mutation_probability",
        "initial_mutations",
        "initial_mutation_probability",
        "mutation_scale",
        "candidates",
    ),
    "The model": (
        "guidance_scale",
        "checkpoint",
        "classifier",
        "captions",
        "model_option",
        "classes",
        "null_class",
        "schedule",
    ),
    "Where it runs": ("device", "dtype", "batch_size", "threads", "cache_mb", "workers", "ray_address", "timeout"),
}
"""Options by their names in Python; the others come first."""


class Grouped(TyperCommand):
    """A verb of many options, whose help has them in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments, options that are in no group or alone in theirs, and each group."""
        every = self.get_params(ctx)
        options = [parameter for parameter in every if parameter.param_type_name != "argument"]
        sections = {"Arguments": [parameter for parameter in every if parameter not in options], "Options": options}
        for heading, names in GROUPS.items():
            group = [option for option in options if option.name in names]
            if len(group) > 1:
                sections[heading] = group
                sections["Options"] = [option for option in sections["Options"] if option not in group]
        for heading, parameters in sections.items():
            if records := [record for one in parameters if (record := one.get_help_record(ctx))]:
                with formatter.section(heading):
                    formatter.write_dl(records)
