"""Figures of a search's report. One file a figure; each ends in ``figure = Entry(PLACE, chart)``.

A file has the figure's data as a table, how that is drawn, and what is said of it; the page, the CSV, PNG and PDF files
follow from that.
"""

from __future__ import annotations

from autodiffusion._report.figures._base import Chart, Entry, charts

__all__ = ["Chart", "Entry", "charts"]
