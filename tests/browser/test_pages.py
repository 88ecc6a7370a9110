"""Reports in a real browser: headless Chromium opens each from its file and says what it sees.

``make test-browser`` runs these; they are skipped, saying so, where there is no Chromium. A page around the
report measures it. It holds the report in a frame as wide as the screen that is asked for: Chromium's own windows are
never less than 500 pixels wide.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_report import keep, of
from test_report_figures import LAYERED

from autodiffusion import Settings
from autodiffusion._report import compare, report
from autodiffusion._report.comparison import runs_in
from autodiffusion._report.style import DARK, LIGHT
from autodiffusion._search.loop import search

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, [os.environ.get("CHROMIUM", ""), *NAMES])), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH; on Debian: apt-get install chromium"),
]

SCREENS = [(1280, 900), (390, 844)]
SCHEMES = {"dark": 0, "light": 1}
"""As Chromium's setting ``preferredColorScheme`` counts them."""
AROUND = """<!doctype html><meta name="color-scheme" content="light dark"><style>body {{ margin: 0 }}</style>
<script>
function measure(frame) {{
  const page = frame.contentWindow, body = frame.contentDocument.body, images = [...frame.contentDocument.images];
  const scrolls = (e) => e && (/auto|scroll/.test(page.getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const seen = (image) => {{
    const box = image.getBoundingClientRect();
    const shown = image.checkVisibility({{ opacityProperty: true, visibilityProperty: true }});
    return {{ alt: image.alt, source: image.currentSrc, natural: image.naturalWidth, shown,
              left: box.left, right: box.right, height: box.height }};
  }};
  const beyond = (e) => e.getBoundingClientRect().right > page.innerWidth + 0.5 && !scrolls(e.parentElement);
  const report = {{
    width: page.innerWidth, dark: page.matchMedia("(prefers-color-scheme: dark)").matches,
    paper: page.getComputedStyle(body).backgroundColor, scroll: frame.contentDocument.documentElement.scrollWidth,
    images: images.map(seen),
    overflowing: [...body.querySelectorAll("*")].filter(beyond).map((e) => e.outerHTML.slice(0, 80)),
    requests: page.performance.getEntriesByType("resource").map((e) => e.name),
  }};
  const zoom = body.querySelector(".zoom input");
  if (zoom) {{ zoom.click(); report.zoomed = seen(zoom.parentElement.querySelector("img")); }}
  const said = document.createElement("pre");
  said.textContent = JSON.stringify(report);
  document.documentElement.append(said);
}}
</script>
<iframe src="{page}" onload="measure(this)" style="border: 0; width: {width}px; height: {height}px"></iframe>
"""


@dataclass(frozen=True)
class Seen:
    """What the browser saw of a page, and what it wrote to its console."""

    page: dict[str, Any]
    console: list[str]


def opened(page: Path, folder: Path, size: tuple[int, int], scheme: str) -> Seen:
    """Opens ``page`` on a screen of this size."""
    folder.mkdir(exist_ok=True)
    width, height = size
    around = AROUND.format(page=page.resolve().as_uri(), width=width, height=height)
    (folder / "around.html").write_text(around, encoding="utf-8")
    assert CHROMIUM
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"),
        *(
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--window-size={max(width, 500)},{height + 200}",
        ),
        *("--allow-file-access-from-files", "--dump-dom", (folder / "around.html").as_uri()),
    ]
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=60, check=False)
    said = re.search(r"<pre>(.+?)</pre>", done.stdout, re.DOTALL)
    assert said, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(json.loads(html.unescape(said[1])), console)


def check(seen: Seen, size: tuple[int, int], scheme: str) -> None:
    """What holds of every page on every screen."""
    page = seen.page
    assert seen.console == []
    assert page["requests"] == []
    assert (page["width"], page["dark"]) == (size[0], scheme == "dark")
    paper = (DARK if scheme == "dark" else LIGHT)["paper"]
    assert [int(part) for part in re.findall(r"\d+", page["paper"])] == list(bytes.fromhex(paper[1:]))
    assert page["scroll"] <= size[0]
    assert page["overflowing"] == []
    for image in page["images"]:
        assert image["natural"] > 0, image["alt"]
        assert image["shown"], image["alt"]
        assert image["height"] > 40, image["alt"]
        assert image["left"] >= 0, image["alt"]
        assert image["right"] <= size[0] + 0.5, image["alt"]
        assert image["source"].startswith("data:image/")
        assert len(image["alt"]) > 10


def few(real: Path, folder: Path, **given: Any) -> Path:
    search(of(real, **given), folder)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, real_images: Path) -> dict[str, Path]:
    """A page of each kind: the demo's, with a teacher, in its midst, with layers, of 1 and of 50 steps, of two."""
    base = tmp_path_factory.mktemp("pages")
    whole = few(real_images, base / "whole", teacher=30)
    layers = {"model": "small:layered_model", "features": "small:features", "layers": True, "max_cost": "60%"}
    demo = {"model": "mnist", "steps": 4, "solver": "gls", "budget": 4000, "samples": 50, "confirm_samples": 100}
    search(Settings.of(**demo), base / "demo")  # as `make demo`, with a twentieth of its evaluations
    runs = {
        "demo": base / "demo",
        "layers": few(real_images, base / "layers", steps=4, min_steps=3, strategy_options=LAYERED, **layers),
        "one": few(real_images, base / "one", steps=1),
        "fifty": few(real_images, base / "fifty", steps=50),
        "hostile": Path(shutil.copytree(whole, base / "hostile")),
    }

    def rename(event: dict[str, Any]) -> bool:
        for row in event.get("rows", []):
            row["name"] = f"{row['name']} <script>console.error(1)</script> {'long' * 40}"
        return True

    keep(runs["hostile"], rename)
    midst = Path(shutil.copytree(whole, base / "midst"))
    keep(midst, lambda event: event["event"] == "start" or event.get("generation") == 0)
    (midst / "grid.png").unlink()
    runs |= {"whole": whole, "midst": midst}
    made = {name: report(folder) for name, folder in runs.items()}
    return made | {"comparison": compare(runs_in([whole, runs["one"]]), base / "comparison.html")}


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("size", SCREENS, ids=["1280", "390"])
@pytest.mark.parametrize("name", ["demo", "whole", "midst", "layers", "one", "fifty", "hostile", "comparison"])
def test_a_page_is_whole(pages: dict[str, Path], tmp_path: Path, name: str, size: tuple[int, int], scheme: str) -> None:
    seen = opened(pages[name], tmp_path / "opened", size, scheme)
    check(seen, size, scheme)
    assert len(seen.page["images"]) >= (2 if name == "comparison" else 3)
    if name == "whole":
        assert seen.page["zoomed"]["height"] > seen.page["images"][0]["height"]


def test_the_two_schemes_have_figures_of_their_own(pages: dict[str, Path], tmp_path: Path) -> None:
    sources = [
        [image["source"] for image in opened(pages["whole"], tmp_path / scheme, SCREENS[0], scheme).page["images"]]
        for scheme in SCHEMES
    ]
    differ = [dark != light for dark, light in zip(*sources, strict=True)]
    assert sum(differ) >= 4  # the figures; the samples are the same
    assert not all(differ)


@pytest.mark.parametrize(
    "wrong",
    [
        "<script>console.error('wrong')</script>",
        "<img src='http://192.0.2.1/x.png' alt='an image elsewhere'>",
        "<img src='data:image/png;base64,AAAA' alt='an image that is none' height=50>",
        "<div style='width: 2000px'>wide</div>",
        "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=' alt='an unseen one' style='display: none'>",
    ],
    ids=["console", "request", "broken", "overflow", "hidden"],
)
def test_what_is_wrong_is_seen(pages: dict[str, Path], tmp_path: Path, wrong: str) -> None:
    text = pages["midst"].read_text(encoding="utf-8").replace("</footer>", f"{wrong}</footer>")
    (tmp_path / "wrong.html").write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError):
        check(opened(tmp_path / "wrong.html", tmp_path / "opened", SCREENS[1], "light"), SCREENS[1], "light")
