"""``autodiffusion report RUN [RUN2 ...]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autodiffusion._cli._options import check_writable


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="folders of searches, or one that holds several")],
    out: Annotated[
        Path | None, typer.Option(help="file of the page [report.html in RUN; of several comparison.html here]")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="folder for the figures as PNG and PDF, and what they show as CSV")
    ] = None,
) -> None:
    """Draws the report of a search again, finished or not; lays several searches beside each other."""
    from autodiffusion._report import compare, report, save_figures
    from autodiffusion._report.comparison import COMPARISON, runs_in
    from autodiffusion._report.comparison import charts as charts_of
    from autodiffusion._report.figures import charts

    if out:
        check_writable(out)
    found = runs_in(runs)
    if len(found) == 1:
        [run] = found
        print(report(run.folder, out))
        files = save_figures(list(charts(run)), figures, run) if figures else []
    else:
        print(compare(found, out or Path(COMPARISON)))
        files = save_figures(list(charts_of(found)), figures) if figures else []
    for file in files:
        print(file)
