"""The site that mkdocs makes of docs/: strictly built, whole, and complete without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import autodiffusion

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""What a browser asks for by itself, by tag and attribute; links are followed by readers only."""
FROM_ELSEWHERE = re.compile(r"@import|url\(\s*[\"']?(?:https?:)?//")


class Page(HTMLParser):
    """What a page points to, and where it can be pointed to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name")) if name}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag == "img":
            self.pictures.append(found)
        if found.get(FETCHED.get(tag, "")):
            self.fetched.append(str(found[FETCHED[tag]]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def inside(pages: dict[Path, Page]) -> Iterator[tuple[Path, Path, str]]:
    """Each page with the files of the site that it points to, and the places in them."""
    for file, page in pages.items():
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if not parts.scheme and not parts.netloc and file.name != "404.html":
                yield file, (file.parent / unquote(parts.path)).resolve() if parts.path else file, parts.fragment


def test_every_page_is_built(pages: dict[Path, Page], site: Path) -> None:
    built = {file.relative_to(site).with_suffix(".md").as_posix() for file in pages}
    assert {file.name for file in DOCS.glob("*.md")} <= built
    assert "bench/results/compare.md" in built


def test_what_pages_point_to_is_there(pages: dict[Path, Page]) -> None:
    links = list(inside(pages))
    assert len(links) > 500
    missing = [f"{page.name}: {target}" for page, target, _ in links if not target.is_file()]
    assert not missing
    lost = [
        f"{page.name}: {target.name}#{place}"
        for page, target, place in links
        if place and target in pages and place not in pages[target].anchors
    ]
    assert not lost


def test_nothing_is_fetched_from_a_network(pages: dict[Path, Page], site: Path) -> None:
    assert sum(len(page.fetched) for page in pages.values()) > 2 * len(pages)
    found = [f"{file.name}: {one}" for file, page in pages.items() for one in page.fetched if "//" in one]
    found += [sheet.name for sheet in site.rglob("*.css") if FROM_ELSEWHERE.search(sheet.read_text(encoding="utf-8"))]
    assert not found
    # the theme's script would fetch the one that draws such diagrams
    assert not [file.name for file in pages if 'class="mermaid"' in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "text", ["@import 'x.css'", "url(https://x/f.woff)", "url( '//x/f.woff')", 'url("http://x/f.woff")']
)
def test_such_styles_are_seen(text: str) -> None:
    assert FROM_ELSEWHERE.search(text)
    assert not FROM_ELSEWHERE.search("a { background: url(../x.png), url('data:image/svg+xml,') }")


def test_everything_public_is_on_the_page_on_python(pages: dict[Path, Page]) -> None:
    """And what the other pages take from within the package."""
    [page] = [page for file, page in pages.items() if file.name == "api.html"]
    imports = re.compile(r"^ *from (autodiffusion[.\w]*) import (.+)$", re.MULTILINE)
    found = [match for file in DOCS.glob("*.md") for match in imports.findall(file.read_text(encoding="utf-8"))]
    taken = {f"{module}.{name.strip()}" for module, names in found for name in names.split(",")}
    assert len(taken) > 10
    wanted = {f"autodiffusion.{name}" for name in autodiffusion.__all__} | taken
    assert not {name for name in wanted if name not in page.anchors}


def test_pictures_have_words_for_those_who_do_not_see_them(pages: dict[Path, Page]) -> None:
    pictures = [(file.name, picture) for file, page in pages.items() for picture in page.pictures]
    assert len(pictures) > 3
    assert not [name for name, picture in pictures if len(picture.get("alt") or "") < 20]
