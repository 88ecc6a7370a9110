"""The report of a search: tables become figures, figures one HTML file. Reads the study's files, nothing else.

``run`` reads them, ``figures/`` has one file a figure; ``words`` has the page's sentences and tables, ``page`` is the
file; ``comparison`` lays several searches beside each other, and ``files`` writes figures for papers.
"""

from __future__ import annotations

from autodiffusion._report.comparison import compare
from autodiffusion._report.files import save_figures
from autodiffusion._report.mosaics import GRID, check_new, mosaic, picture, save_each
from autodiffusion._report.page import REPORT, report

__all__ = ["GRID", "REPORT", "check_new", "compare", "mosaic", "picture", "report", "save_each", "save_figures"]
