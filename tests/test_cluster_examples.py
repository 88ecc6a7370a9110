"""The files of examples/cluster: their searches are read by the command line, the rest by whom it is for."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Command
from ray.scripts.scripts import start

from autodiffusion._errors import InputError
from autodiffusion._names import resolve
from autodiffusion._study.settings import Settings

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
START = {option for parameter in start.params for option in parameter.opts}
"""Options of ``ray start``."""


def searches(path: Path) -> list[str]:
    """The commands of a file, each on one line, with its variables filled in."""
    text = path.read_text().replace("\\\n", " ").replace("$address", "host").replace("$port", "6379")
    if path.suffix == ".py":
        text = re.sub(r"\n {4}", " ", text)
    return [line.removesuffix("&") for line in re.findall(r"^autodiffusion (search .*)$", text, re.MULTILINE)]


def test_there_is_one_for_each_kind_of_place() -> None:
    assert [path.name for path in FILES] == ["one_machine.sh", "ray_cluster.yaml", "search_on_ray.py", "slurm.sh"]
    assert sum(len(searches(path)) for path in FILES) == 3


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix != ".yaml"], ids=lambda path: path.name)
def test_its_search_is_read(command: Command, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    found: list[Settings] = []

    def search(settings: Settings, *_: Any) -> None:
        found.append(settings)
        raise InputError("enough")

    monkeypatch.setattr("autodiffusion._search.loop.search", search)
    [words] = searches(path)
    done = command(shlex.join(shlex.split(words)))
    assert done.err == "autodiffusion: enough\n"
    [settings] = found
    resolve("solvers", settings.solver)
    assert settings.device == "cuda"
    assert settings.timeout
    assert (settings.workers or 0) > 1 or settings.ray_address


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_reads_it(path: Path) -> None:
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert path.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_is_started_with_options_that_it_has(path: Path) -> None:
    lines = re.findall(r"ray start (.*)", path.read_text().replace("\\\n", " "))
    assert bool(lines) == (path.name in ("slurm.sh", "ray_cluster.yaml"))
    for line in lines:
        assert set(re.findall(r"--[\w-]+", line)) <= START


def test_the_cluster_is_whole() -> None:
    file = FOLDER / "ray_cluster.yaml"
    cluster = yaml.safe_load(file.read_text())
    kinds = cluster["available_node_types"]
    assert cluster["head_node_type"] in kinds
    assert max(kind.get("max_workers", 0) for kind in kinds.values()) <= cluster["max_workers"]
    assert all(
        (FOLDER.parents[1] / name).exists() for name in re.findall(r"examples/cluster/\w+\.\w+", file.read_text())
    )


def heard() -> None:
    """A shell that is begun where the signal is not heard cannot pass it on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_job_of_slurm_stops_as_from_the_keyboard(tmp_path: Path) -> None:
    """The lines that pass the signal on, with a search that notes what it gets."""
    text = (FOLDER / "slurm.sh").read_text()
    assert "#SBATCH --signal=B:INT@" in text
    end = text[text.index("search=$!") :]
    fake = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (print("told", flush=True), sys.exit(130)))
print("there", flush=True)
time.sleep(60)
"""
    (tmp_path / "search.py").write_text(fake)
    (tmp_path / "job.sh").write_text(f"set -euo pipefail\npython3 search.py &\n{end}")
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    assert job.stdout
    assert job.stdout.readline() == "there\n"
    job.send_signal(signal.SIGINT)
    assert job.communicate(timeout=30)[0] == "told\n"
    assert job.returncode == 130
