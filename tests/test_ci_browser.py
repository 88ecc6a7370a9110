"""What CI does about a browser: uses the one that is there, installs one, or says in a line why it can't."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "browser"
TOOLS = ("bash", "dirname", "grep", "mktemp", "rm", "tail", "env", "chmod", "cat")
RUNS = "#!/bin/sh\nexit 0\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository with this script and a Python that says what it is asked, and a PATH with little on it."""
    for name in (".ci", ".venv/bin", "path"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / ".ci" / "browser")
    program(tmp_path / ".venv/bin/python", '#!/bin/sh\necho "$CHROMIUM: $*"\nexit 3\n')
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (tmp_path / "path" / tool).symlink_to(found)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def user(place: Path, number: int) -> None:
    program(place / "path" / "id", f"#!/bin/sh\necho {number}\n")


def run(place: Path, *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [place / ".ci" / "browser", *arguments],
        env={"PATH": str(place / "path"), "TMPDIR": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


ASKED = "-m pytest -m slow tests/browser"


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_that_is_there_is_used(place: Path, name: str) -> None:
    program(place / "path" / name, RUNS)
    assert run(place, "-k", "whole") == (3, [f"{name}: {ASKED} -k whole"])  # a test that fails is a failure


def test_without_apt_get_it_is_skipped(place: Path) -> None:
    status, said = run(place)
    assert (status, said) == (
        0,
        ["test-browser: skipped, no test was run: no Chromium on PATH, and no apt-get to install it with"],
    )


def test_only_root_installs(place: Path) -> None:
    user(place, 1000)
    program(place / "path" / "apt-get", "#!/bin/sh\nexit 1\n")
    status, [said] = run(place)
    assert status == 0
    assert said.endswith("no Chromium on PATH, and only root may install it: apt-get install chromium")


def test_what_cannot_be_installed_is_said(place: Path) -> None:
    user(place, 0)
    program(
        place / "path" / "apt-get", '#!/bin/sh\n[ "$1" = update ] || { echo "E: no such package" >&2; exit 100; }\n'
    )
    assert run(place) == (
        0,
        [
            "Installing Chromium",
            "test-browser: skipped, no test was run: Chromium cannot be installed: E: no such package",
        ],
    )
    assert not list(place.glob("tmp.*"))


@pytest.mark.parametrize("runs", [True, False])
def test_it_is_installed_where_that_may_be_done(place: Path, runs: bool) -> None:
    user(place, 0)
    chromium = place / "path" / "chromium"
    installs = f"printf '#!/bin/sh\\nexit {int(not runs)}\\n' > {chromium}; chmod +x {chromium}"
    program(
        place / "path" / "apt-get", f'#!/bin/sh\necho "$*" >> {place}/asked\n[ "$1" = update ] || {{ {installs}; }}\n'
    )
    status, said = run(place)
    assert (place / "asked").read_text().splitlines() == ["update", "install -y --no-install-recommends chromium"]
    if runs:
        assert (status, said) == (3, ["Installing Chromium", f"chromium: {ASKED}"])
    else:
        assert (status, said[1:]) == (
            0,
            ["test-browser: skipped, no test was run: the package chromium of this system is none that runs"],
        )
