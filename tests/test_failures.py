"""What happens to a search: killed at any moment, no room on the disk, a folder that nobody can write, Ctrl-C.

Each is caused here, and in each the search that goes on ends as an undisturbed one: nothing that was scored is lost,
and nothing is scored twice.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import faulty
import numpy as np
import pytest
from conftest import draw_nothing

from autodiffusion import InputError, Settings, search
from autodiffusion._study.study import CONFIG, LEDGER, PLAN, read_events

TESTS = Path(__file__).parent
SEARCH = "search faulty:model --steps 3 --features small:features --samples 48 --confirm-samples 60 --batch-size 8"
SEARCH += " --strategy evolution --population 5 --parents 2 --mutations 2 --crossovers 1 --finalists 2 --threads 1"
LINES = ("start", *["scores"] * 4, "confirm")


def settings(images: Path, **given: Any) -> Settings:
    """As :data:`SEARCH`, of four rounds."""
    evolution = {"population": 5, "generations": 4, "parents": 2, "mutations": 2, "crossovers": 1}
    options = {"samples": 48, "confirm_samples": 60, "batch_size": 8, "finalists": 2, "threads": 1} | given
    model = {"model": "faulty:model", "features": "small:features", "reference": str(images)}
    return Settings.of(**model, steps=3, strategy="evolution", strategy_options=evolution, **options)


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / LEDGER).read_bytes(), (folder / PLAN).read_bytes()


@pytest.fixture(scope="module")
def whole(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed search."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        search(settings(real_images), folder)
    assert tuple(event["event"] for event in read_events(folder / LEDGER)) == LINES
    return folder


# the driver is killed


@pytest.mark.usefixtures("plain")
def test_the_ledger_is_whole_again_after_a_kill_at_any_byte(whole: Path, real_images: Path, tmp_path: Path) -> None:
    ledger, given = (whole / LEDGER).read_bytes(), settings(real_images)
    events = read_events(whole / LEDGER)
    ends = [place + 1 for place, byte in enumerate(ledger) if byte == ord("\n")]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / CONFIG).write_bytes((whole / CONFIG).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the last line was cut off
        for length in range(len(ledger)):
            (folder / LEDGER).write_bytes(ledger[:length])
            there = sum(end <= length for end in ends)
            assert read_events(folder / LEDGER, mend=True) == events[:there]
            assert (folder / LEDGER).read_bytes() == ledger[: ends[there - 1] if there else 0]
    for end in (0, *ends):  # so a search goes on from one of these
        (folder / LEDGER).write_bytes(ledger[:end])
        (folder / PLAN).unlink(missing_ok=True)
        search(given, folder)
        assert files(folder) == files(whole)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", [CONFIG, PLAN])
def test_a_kill_while_another_file_is_written(whole: Path, real_images: Path, tmp_path: Path, name: str) -> None:
    given, content = settings(real_images), (whole / name).read_bytes()
    for length in np.linspace(0, len(content), 5, dtype=int).tolist():
        folder = tmp_path / str(length)
        folder.mkdir()
        if name == PLAN:
            for before in (CONFIG, LEDGER):
                (folder / before).write_bytes((whole / before).read_bytes())
        (folder / f"{name}.partial").write_bytes(content[:length])
        search(given, folder)
        assert files(folder) == files(whole)
        assert not (folder / f"{name}.partial").exists()


def child(work: Callable[[], object], log: Path) -> int:
    """Does something in a forked process, which has all modules at once; gives its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            work()
            status = 0
    except BaseException as error:
        log.write_text(repr(error))
        status = 3
    finally:
        os._exit(status)


def ended(number: int) -> int:
    """The status of a child when it has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_as_if_nothing_had_been(
    whole: Path, real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    monkeypatch.setenv(faulty.PAUSE, "0.001")
    monkeypatch.setattr("autodiffusion._sampling.unfinished.WORTH", 0.01)  # so that there are such files
    given, log = settings(real_images), tmp_path / "log"
    told = tmp_path / "answers"
    first = child(lambda: (search(given, tmp_path / "first"), told.write_text(str(next(faulty.answers)))), log)
    assert ended(first) == 0, log.read_text()
    answers, rng = int(told.read_text()), np.random.default_rng(0)
    assert answers > 100
    killed = searches = 0
    left = set[int]()
    while killed < kills:
        folder, done = tmp_path / f"run {searches}", False
        while not done:
            # not by the clock, which on a busy machine falls on few moments; but within an answer's time of them
            moment = f"{rng.integers(1, answers)} {rng.uniform(0, 0.01)}" if killed < kills else "0 0"
            monkeypatch.setenv(faulty.MOMENT, moment)
            status = ended(child(lambda folder=folder: search(given, folder), log))
            assert status in (0, -signal.SIGKILL), log.read_text()
            done = status == 0
            killed += not done
            left.add((folder / LEDGER).read_bytes().count(b"\n") if (folder / LEDGER).exists() else -1)
        assert files(folder) == files(whole)
        searches += 1
    assert len(left) > 3  # they fell on different moments


# the system refuses


@pytest.mark.usefixtures("plain")
def test_where_files_may_not_grow_the_search_goes_on_later(whole: Path, real_images: Path, tmp_path: Path) -> None:
    given, log = settings(real_images), tmp_path / "log"
    ledger = (whole / LEDGER).read_bytes()
    for length in [*np.linspace(1, len(ledger), 5, dtype=int).tolist(), len((whole / CONFIG).read_bytes()) - 1]:
        folder = tmp_path / str(length)

        def limited(folder: Path = folder, length: int = length) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))
            try:
                search(given, folder)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        status = ended(child(limited, log))
        if length < len(ledger):
            assert status == 3
            assert re.search(r"OSError\(27, 'File too large'\)|cannot be written \(File too large\)", log.read_text())
            left = (folder / LEDGER).read_bytes() if (folder / LEDGER).exists() else b""
            assert ledger.startswith(left)
            assert ledger[: length + 1].count(b"\n") - left.count(b"\n") in (0, 1)  # what there was room for is there
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search(given, folder)
        assert files(folder) == files(whole)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system with these options, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("a file system can only be mounted by root")
        return place

    yield mounted
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def start(words: str, **environment: str) -> subprocess.Popen[str]:
    """``autodiffusion`` with these arguments."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "autodiffusion", *shlex.split(words)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


PROGRESS = re.compile(r"search: [\d,]+ of at most .*\n")
"""What a slow machine says besides, every ten seconds."""


@pytest.mark.usefixtures("plain")
@pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does")
def test_a_full_disk_is_one_line_and_the_search_goes_on_where_there_is_room(
    disk: Callable[[str], Path], whole: Path, real_images: Path, tmp_path: Path
) -> None:
    place = disk("size=24k")  # six pages
    folder = place / "run"
    running = start(f"{SEARCH} --generations 4 --reference {real_images} --out {folder}")
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (1, "")
    assert re.fullmatch(
        r"autodiffusion: .*No space left on device; mend that and call it again\n", PROGRESS.sub("", err)
    )
    left = (folder / LEDGER).read_bytes()
    assert left.count(b"\n") > 1
    subprocess.run(["mount", "-o", "remount,size=1m", str(place)], check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search(settings(real_images), folder)
    assert files(folder) == files(whole)
    assert (folder / LEDGER).read_bytes().startswith(left[: left.rindex(b"\n") + 1])
    # and one that nobody can write
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    message = r"cannot be written \(Read-only file system\); give another folder with --out"
    for name in ("new", "run"):
        with pytest.raises(InputError, match=message):
            search(settings(real_images), place / name)
    assert [entry.name for entry in place.iterdir()] == ["run"]


# from the keyboard


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_once_finishes_the_block_and_twice_stops_now(
    command: Callable[..., Any], real_images: Path, tmp_path: Path, times: int
) -> None:
    # rounds of a few blocks, each of which takes some seconds
    line = f"{SEARCH} --generations 2 --reference {real_images} --out {tmp_path / 'run'}"
    running = start(line, **{faulty.PAUSE: "0.2"})
    ledger, deadline = tmp_path / "run" / LEDGER, time.monotonic() + 120
    while not ledger.exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    assert running.stderr
    running.send_signal(signal.SIGINT)
    said = (line for line in iter(running.stderr.readline, "") if not PROGRESS.match(line))
    told = list(islice(said, 2))
    assert told == ["\n", "finishes the block of noise in work, and stops; Ctrl-C again stops now\n"]
    begun = time.monotonic()
    if times == 2:
        running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, "")
    assert PROGRESS.sub("", err) == f"interrupted; to go on: {shlex.join(['autodiffusion', *shlex.split(line)])}\n"
    kept = tmp_path / "run" / "unfinished"
    assert kept.exists() == (times == 1)
    if times == 1:  # 5 plans of 3 steps, of which some begin alike
        assert time.monotonic() - begun > 0.5
        assert len(list(kept.iterdir())) == 1
    assert command(line).status == 0
    assert not kept.exists()
    assert command(f"{line}2").status == 0
    assert (tmp_path / "run2" / LEDGER).read_bytes() == ledger.read_bytes()
    rounds = [event["generation"] for event in map(json.loads, ledger.read_text().splitlines()) if "scores" in event]
    assert rounds == [0, 1]
