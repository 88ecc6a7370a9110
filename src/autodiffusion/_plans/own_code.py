"""What a plan names as a user's own code: it is never imported because a plan says so."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from autodiffusion._errors import InputError

if TYPE_CHECKING:
    from autodiffusion._plans.plan import Plan


def check_names(plan: Plan, where: str) -> None:
    """Checks that all code that a plan names as ``package.module:attribute`` is here already.

    A plan may come from anybody. What it names is imported where the user names it: on the command line, in settings or
    in a program.

    Raises:
        InputError: some is not.
    """
    texts = [option for option in plan.solver_options.values() if isinstance(option, str)]
    for name in (plan.solver, *texts):
        module, _, attribute = name.partition(":")
        if module and attribute and module not in sys.modules:
            raise InputError(
                f"{where}: names code, {name!r}, which is not run because a plan says so; name it yourself as well, "
                "with --solver, or import its module"
            )
