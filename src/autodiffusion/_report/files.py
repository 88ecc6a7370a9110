"""The figures of a report as files for papers."""

from __future__ import annotations

import os
from pathlib import Path

from autodiffusion._errors import InputError
from autodiffusion._report.figures import Chart
from autodiffusion._report.mosaics import GRID
from autodiffusion._report.run import Run
from autodiffusion._report.style import save, styled
from autodiffusion._study.study import write


def save_figures(charts: list[Chart], folder: Path, run: Run | None = None) -> list[Path]:
    """Writes each figure as PNG and PDF, on white, and what it shows as CSV, into ``folder``; gives their paths.

    Args:
        run: whose samples are written as well, where it has any.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be a folder ({error.strerror}); give another one") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written; give another folder")
    files: list[Path] = []
    with styled():
        for chart in charts:
            files += save(chart.draw(chart.table), folder / chart.name)
            write(folder / f"{chart.name}.csv", chart.table.csv())
            files.append(folder / f"{chart.name}.csv")
    if run and (run.folder / GRID).exists():
        files += _samples(run.folder / GRID, folder)
    return files


def _samples(picture: Path, folder: Path) -> list[Path]:
    """The picture of samples as PNG and as PDF, its pixels as they are."""
    from PIL import Image

    with Image.open(picture) as image:
        pixels = image.convert("RGB")
    files = [folder / "samples.png", folder / "samples.pdf"]
    for file in files:
        pixels.save(file, resolution=200)
    return files
