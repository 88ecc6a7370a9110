"""What results look like in a notebook: small tables, everything escaped, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

LEFT = ' style="text-align: left"'


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> str:
    """An HTML table with a caption above and notes below.

    Args:
        caption: and all else is text, no HTML.
        rows: of as many cells as ``head``.
    """
    lines = [f"<caption{LEFT}>{escape(caption)}</caption>", _row("th", head), *(_row("td", row) for row in rows)]
    below = "".join(f"<div>{escape(note)}</div>" for note in notes if note)
    return f"<div><table>{''.join(lines)}</table>{below}</div>"


def _row(kind: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{kind}{LEFT}>{escape(str(cell))}</{kind}>" for cell in cells) + "</tr>"
