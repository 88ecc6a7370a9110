"""The report of a search: tables become figures, figures one HTML file. Reads the study's files, nothing else.

``run`` reads them, ``tables`` has the data of every figure, ``drawing`` draws it, ``charts`` says what is said of each;
``words`` has the page's sentences and tables, ``page`` is the file; ``comparison`` lays several searches beside each
other, and ``files`` writes figures for papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autodiffusion.report.comparison import compare
from autodiffusion.report.files import save_figures
from autodiffusion.report.mosaics import GRID, mosaic, picture
from autodiffusion.report.page import REPORT, report
from autodiffusion.report.run import Events

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GRID", "REPORT", "compare", "convergence", "mosaic", "picture", "report", "save_figures"]


def convergence(events: Events, metric: str, samples: int) -> Figure | None:
    """The search's full scores over the network evaluations spent, and the best so far; ``None`` without any."""
    from autodiffusion.names import resolve
    from autodiffusion.report import drawing, style, tables
    from autodiffusion.standing import candidates

    rows = [row for event in events if event["event"] == "confirm" for row in event["rows"]]
    table = tables.convergence(list(candidates(events)), rows, metric, samples)
    if not table.where("noise", "search").rows:
        return None
    with style.styled():
        return drawing.convergence(table, metric, resolve("metrics", metric).better == "higher")
