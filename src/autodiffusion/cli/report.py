"""``autodiffusion report RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(run: Annotated[Path, typer.Argument(help="folder of a search")]) -> None:
    """Draws the report of a search again, finished or not."""
    from autodiffusion.report import report

    print(report(run))
