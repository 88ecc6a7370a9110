"""Workers from the command line: who can reach them, Ctrl-C, and what is said."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faulty
import pytest
from conftest import Command

TESTS = Path(__file__).parent
SEARCH = "search faulty:model --steps 3 --features small:features --samples 48 --confirm-samples 60 --budget 5000"
SEARCH += " --batch-size 8 --threads 1 --reference"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""How Linux writes 127.0.0.1, the same in an address of IPv6, and ::1."""


def start(words: str, **environment: str) -> subprocess.Popen[str]:
    """``autodiffusion`` with these arguments, in a group of processes of its own, as a shell does it."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "autodiffusion", *shlex.split(words)],
        env={**os.environ, "PYTHONPATH": path, "RAY_memory_usage_threshold": "1.0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes(number: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield number
    for thread in Path(f"/proc/{number}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from processes(int(child))


def listening(number: int) -> dict[str, str]:
    """Where a process listens: addresses as Linux writes them, by the socket."""
    sockets = {
        words[9]: words[1].partition(":")[0]
        for kind in ("tcp", "tcp6")
        for line in Path(f"/proc/{number}/net/{kind}").read_text().splitlines()[1:]
        if (words := line.split())[3] == "0A"
    }
    held = set[str]()
    for entry in Path(f"/proc/{number}/fd").iterdir():
        try:
            held.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(entry)))
        except FileNotFoundError:  # closed meanwhile
            continue
    return {inode: address for inode, address in sockets.items() if inode in held}


def rounds(folder: Path) -> int:
    ledger = folder / "study.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="looks at sockets as Linux shows them")
def test_workers_are_for_this_machine_alone_and_an_interrupted_search_goes_on(
    command: Command, real_images: Path, tmp_path: Path
) -> None:
    """One test, since every start of Ray takes seconds."""
    words = f"{SEARCH} {real_images} --json --out"
    assert command(f"{words} {tmp_path / 'alone'}").status == 0
    folder = tmp_path / "run"
    running = start(f"{words} {folder} --workers 2", **{faulty.PAUSE: "0.02"})
    until = time.monotonic() + 120
    while rounds(folder) < 3:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    addresses = [address for number in processes(running.pid) for address in listening(number).values()]
    assert len(addresses) > 4  # the driver, what keeps count of the cluster, two workers ...
    assert set(addresses) <= LOOPBACK
    os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to all of them
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert "finishes the block of noise in work, and stops" in err
    told = err.strip().splitlines()[-1].removeprefix("interrupted; to go on: autodiffusion ")
    assert told == f"{words} {folder} --workers 2"
    assert not (folder / "plan.json").exists()
    (tmp_path / faulty.KILL).touch()
    going_on = start(told, **{faulty.FOLDER: str(tmp_path)})
    out, err = going_on.communicate(timeout=120)
    assert going_on.returncode == 0, err
    assert not (tmp_path / faulty.KILL).exists()  # a worker died
    assert json.loads(out)["plan"]
    for name in ("study.jsonl", "plan.json"):
        assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not (folder / "unfinished").exists()
