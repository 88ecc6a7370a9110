"""What mkdocs does besides: files of the repository that pages point to come along, and roles become code.

A page of ``docs/`` may point to ``../bench/results/compare.md``. In the repository that is the file; on the site it is
a copy at ``bench/results/compare.md``, Markdown as a page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(\]\()\.\./([^)#\s]+)")
"""A link to a file outside of ``docs/``, from a page directly in it."""
ROLE = re.compile(r":(?:attr|class|data|func|meth):<code>~?([^<]*)</code>")
"""What Markdown makes of a role such as ``:class:`Plan```, with which docstrings name things."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside of ``docs/`` that pages point to."""
    pages = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    found = {path for page in pages for _, path in OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    for path in sorted(found):
        if (ROOT / path).is_file():  # what is not there is left to mkdocs, which complains of the link
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Points to the copies."""
    return OUTSIDE.sub(r"\1\2", markdown) if page.file.generated_by is None else markdown


def on_page_content(html: str, **_: Any) -> str:
    """The names in docstrings without their roles."""
    return ROLE.sub(lambda match: f"<code>{match[1].rpartition('.')[2]}</code>", html)
