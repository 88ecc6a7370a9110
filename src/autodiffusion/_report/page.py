"""From a study to its page: one HTML file that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from autodiffusion._errors import InputError
from autodiffusion._report import words
from autodiffusion._report.again import command
from autodiffusion._report.figures import Chart, charts
from autodiffusion._report.mosaics import GRID, panels
from autodiffusion._report.run import Run
from autodiffusion._report.style import DARK, LIGHT, data_url, styled, svg
from autodiffusion._study.study import write

REPORT = "report.html"
"""Where a study keeps its report."""
LARGE = 300_000
"""Pixels of a picture above which it is kept as WebP."""


def report(folder: Path | str, out: Path | str | None = None) -> Path:
    """Writes the report of the study in ``folder``, finished or not, in one piece, and gives its path.

    Args:
        out: the file; by default ``report.html`` in the folder.

    Raises:
        InputError: no study there, or the file cannot be written.
    """
    folder = Path(folder)
    run = Run.of(folder)
    out = Path(out) if out else folder / REPORT
    found, settings = run.row("found"), run.settings
    html = render(
        "report.html",
        settings=settings,
        count=len(found["plan"]["steps"]) if found else settings.steps,
        solver=found["plan"]["solver"] if found else settings.solver,
        headline=words.headline(run),
        rows=[words.printed(run, row) for row in run.rows],
        times=run.times,
        samples=run.rows[0]["samples"] if run.rows else None,
        seed=run.rows[0]["seed"] if run.rows else None,
        costs=settings.layers and any("cost" in row for row in run.rows),
        metrics=list(dict.fromkeys(name for row in run.rows for name in row["scores"])),  # a failed row has none
        pictures=_pictures(run),
        drawn=drawn(charts(run)),
        layers=words.left_out(run),
        numbers=words.free_numbers(run),
        spent=words.spent(run),
        problems=words.problems(run),
        command=command(settings),
        identity=words.identity(run),
        config=settings.dump(),
    )
    return put(html, out)


def drawn(made: Iterable[Chart]) -> list[tuple[Chart, str, str]]:
    """Each figure with its two variants, for light and dark pages."""
    with styled():
        return [(chart, *svg(chart.draw(chart.table))) for chart in made]


def render(template: str, **content: Any) -> str:
    """A template filled in; all that is put in is text, whatever is in it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(loader=PackageLoader("autodiffusion._report"), autoescape=True, undefined=StrictUndefined)
    page.trim_blocks = page.lstrip_blocks = True
    return page.get_template(template).render(light=LIGHT, dark=DARK, **content)


def put(html: str, out: Path) -> Path:
    """Writes a page.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write(out, html)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be written ({error.strerror})") from None
    return out


def _pictures(run: Run) -> list[dict[str, Any]]:
    """The study's samples, a picture a plan, with its figure on fresh noise."""
    rows = {row["name"]: row for row in run.rows}
    path = run.folder / GRID
    return [
        {
            "title": name,
            "url": _picture_url(image),
            "width": image.width,
            "height": image.height,
            "said": _said(rows[name], run.settings.metric) if name in rows else "",
        }
        for name, image in (panels(path) if path.exists() else {}).items()
    ]


def _said(row: dict[str, Any], metric: str) -> str:
    score = row["scores"].get(metric, {}).get("value")
    value = "" if score is None else f"{metric} {score:.4g}, "
    return f"{value}{row['nfe']} evaluation{'s' * (row['nfe'] > 1)}"


def _picture_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    if image.width * image.height > LARGE:
        image.save(buffer, format="webp", quality=90)
        return data_url(buffer.getvalue(), "image/webp")
    image.save(buffer, format="png")
    return data_url(buffer.getvalue(), "image/png")
