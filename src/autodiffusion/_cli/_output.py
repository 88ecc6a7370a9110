"""What verbs print on standard output."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def print_json(content: Any) -> None:
    """One object on one line."""
    print(json.dumps(content, allow_nan=False))


def print_rows(rows: list[dict[str, Any]], costs: bool = False) -> None:
    """The one table of a search or an evaluation.

    Args:
        costs: say what each plan costs, where the rows do.
    """
    from rich.table import Table

    from autodiffusion._evaluation.confirm import figure
    from autodiffusion._evaluation.evaluate import describe
    from autodiffusion._plans.plan import Plan
    from autodiffusion._spaces.costs import priced

    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    title = f"{rows[0]['samples']:,} samples on fresh noise, seed {rows[0]['seed']}, 95 % intervals"
    cost = ["cost of a sample"] if costs and any("cost" in row for row in rows) else []
    table = Table("plan", "network evaluations", *cost, *metrics, "time steps", title=title, title_justify="left")
    for row in rows:
        scores = [figure(row["scores"][name]) if name in row["scores"] else str(row["problem"]) for name in metrics]
        plan = describe(Plan.model_validate(row["plan"])) if len(row["plan"]["steps"]) <= 20 else "..."
        price = [priced(row.get("cost", {}))] if cost else []
        table.add_row(row["name"], str(row["nfe"]), *price, *scores, plan)
    print_table(table)


def print_table(table: Table) -> None:
    """As wide as the terminal, or 160 where there is none."""
    from rich.console import Console

    # what the user named is printed as it is: neither markup nor emoji
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False).print(table)
