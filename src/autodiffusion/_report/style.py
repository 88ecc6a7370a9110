"""How the figures of a report look: one palette for light and dark pages, one size, one font."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT = {"paper": "#ffffff", "ink": "#1c2128", "quiet": "#59636e", "rule": "#d1d9e0", "tint": "#f4f6f8"} | {
    "blue": "#0a5fc2",
    "orange": "#a34e08",
    "green": "#1a7338",
    "violet": "#6e40c9",
    "rose": "#b3245a",
    "teal": "#0b6a75",
}
DARK = {"paper": "#12161b", "ink": "#e8ecf0", "quiet": "#9da8b3", "rule": "#39424c", "tint": "#1b2129"} | {
    "blue": "#6cb4ff",
    "orange": "#f0a25c",
    "green": "#5fcb86",
    "violet": "#b89bff",
    "rose": "#ff8fb3",
    "teal": "#5ccfd6",
}
"""The same colours on a dark page. All but the rule, which is decoration, have a contrast of 4.5 with the paper."""
SERIES = tuple(LIGHT[name] for name in ("blue", "orange", "green", "violet", "rose", "teal"))
INK, QUIET, RULE, ACCENT = LIGHT["ink"], LIGHT["quiet"], LIGHT["rule"], LIGHT["blue"]

WIDTH, HEIGHT = 4.8, 3.2
"""Inches. Narrow, so that the text of a figure can still be read where a phone shows it at three quarters."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
"""Of the figures on the page, which is that of the page itself; files for papers have matplotlib's own."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # names are a user's: a dollar sign is one
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlecolor": QUIET,
    "axes.titlelocation": "left",
    "axes.formatter.use_mathtext": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.2,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "autodiffusion",  # the same figure is the same file
}


@contextmanager
def styled() -> Iterator[None]:
    """Within it figures are made and saved in this style."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        yield


def blank(height: float = HEIGHT) -> Figure:
    """An empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def svg(drawing: Figure) -> tuple[str, str]:
    """A figure as two data URLs, for light and for dark pages."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    light = re.sub(r"(font: [^;\"]*?)'DejaVu Sans'", lambda found: found[1] + FONT, buffer.getvalue())
    # one drawing, recoloured: half the time of two
    turned = {LIGHT[name]: DARK[name] for name in LIGHT}
    dark = re.sub("|".join(turned), lambda found: turned[found[0]], light)
    return data_url(light.encode(), "image/svg+xml"), data_url(dark.encode(), "image/svg+xml")


def save(drawing: Figure, path: Path) -> list[Path]:
    """Writes a figure as PNG and as PDF beside ``path``, on white paper."""
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    for file in files:
        metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
        drawing.savefig(file, dpi=220, facecolor=LIGHT["paper"], metadata=metadata)
    return files


def data_url(content: bytes, kind: str) -> str:
    """A file that is part of the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
