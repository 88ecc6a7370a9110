"""The ledger on disk: append-only, one writer, and whole again after any interruption."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autodiffusion._errors import InputError
from autodiffusion._study.settings import Settings
from autodiffusion._study.study import CONFIG, LEDGER, Study, read_events, stored_settings, write

GIVEN: dict[str, Any] = {"model": "mnist", "steps": 4, "samples": 250}
SETTINGS = Settings.of(**GIVEN)
PLAN_OF_SOME = {"solver": "ddim", "steps": [{"t": 90.0}]}
ROUND = {"event": "scores", "evaluations": 3, "saved": 0, "samples": 3}
EVENTS: list[dict[str, Any]] = [
    {"event": "start", "times": [0.0, 0.1], "log_snr": [1.0, 0.5], "planned": 4},
    ROUND | {"generation": 0, "scores": [{"plan": PLAN_OF_SOME, "value": None, "problem": "größer\n"}]},
    ROUND | {"generation": 1, "scores": [{"plan": PLAN_OF_SOME, "value": -1.5e-7, "problem": None}]},
]


def begun(folder: Path) -> Path:
    """A study with all of ``EVENTS``, closed."""
    with Study(folder, SETTINGS) as study:
        for event in EVENTS:
            study.record(event)
    return folder / LEDGER


def refused(folder: Path, settings: Settings = SETTINGS) -> str:
    with pytest.raises(InputError) as caught:
        Study(folder, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_events_are_lines_and_come_back(tmp_path: Path) -> None:
    ledger = begun(tmp_path / "deep" / "run")
    lines = ledger.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == EVENTS
    with Study(ledger.parent, SETTINGS) as study:
        assert study.events == EVENTS
        assert study.of_kind("scores") == EVENTS[1:]
        assert study.of_kind("confirm") == []


def test_the_ledger_is_only_appended_to_and_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    with Study(tmp_path, SETTINGS) as study:
        assert not (tmp_path / LEDGER).exists()
        before = b""
        for event in EVENTS:
            study.record(event)
            after = (tmp_path / LEDGER).read_bytes()  # read while the study is open
            assert after.startswith(before)
            assert after.endswith(b"\n")
            assert synced[-1] == len(after)
            before = after
    assert len(synced) == 1 + len(EVENTS)  # the settings, and each of them


def test_numbers_that_are_none_are_not_recorded(tmp_path: Path) -> None:
    with Study(tmp_path, SETTINGS) as study:
        with pytest.raises(ValueError, match="not JSON compliant"):
            study.record({"event": "scores", "value": float("nan")})
        assert study.events == []
    assert read_events(tmp_path / LEDGER) == []


# damage


def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    whole = ledger.read_bytes()
    kept = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
    assert read_events(ledger) == EVENTS
    for length in range(len(kept) + 1, len(whole)):
        ledger.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match="the last line was cut off and is dropped"):
            assert read_events(ledger) == EVENTS[:-1]
        assert len(ledger.read_bytes()) == length  # looking changes nothing
        with pytest.warns(UserWarning, match="the last line was cut off"):
            study = Study(tmp_path, SETTINGS)
        with study:
            assert study.events == EVENTS[:-1]
            assert ledger.read_bytes() == kept
            study.record(EVENTS[-1])
        assert ledger.read_bytes() == whole
    ledger.write_bytes(kept)
    with Study(tmp_path, SETTINGS) as study:  # nothing torn, no warning
        assert study.events == EVENTS[:-1]


@pytest.mark.parametrize(
    ("line", "damage"),
    [
        (1, b"{"),
        (2, b""),
        (2, b'{"event": "scor'),
        (3, b"\xff\xfe"),
        (3, b"[1]"),
        (3, b'{"generation": 1}'),
        (1, b"null"),
        (2, b'{"event": "scores", "generation": NaN}'),
        (2, b"[" * 100_000),
    ],
)
def test_earlier_damage_is_refused(tmp_path: Path, line: int, damage: bytes) -> None:
    ledger = begun(tmp_path)
    lines = ledger.read_bytes().splitlines()
    lines[line - 1] = damage
    ledger.write_bytes(b"\n".join(lines) + b"\n")
    before = ledger.read_bytes()
    message = (
        rf"{re.escape(str(ledger))}: line {line} is not an event of a search( \(.+\))?; restore the file or start in .*"
    )
    for _ in range(2):  # the first refusal has let go of the folder
        assert re.fullmatch(message, refused(tmp_path))
    assert ledger.read_bytes() == before


def test_killed_as_it_began(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml.partial").write_text("model: mni")
    with Study(tmp_path, SETTINGS) as study:
        assert study.events == []
    assert stored_settings(tmp_path) == SETTINGS


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    write(file, "größer")
    assert file.read_text(encoding="utf-8") == "größer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]

    def fail(source: Path, target: Path) -> None:
        raise OSError("as if killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="as if killed here"):
        write(file, "x")
    assert file.read_text(encoding="utf-8") == "größer"


# folders


def test_settings_are_kept(tmp_path: Path) -> None:
    begun(tmp_path)
    assert stored_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"samples": 500}, "samples: 250 there, 500 here"),
        ({"strategy": "random", "seed": 1}, "seed: 0 there, 1 here"),
        ({"preset": "paper"}, "preset: default there, paper here"),
        ({"dtype": "float16"}, "dtype: float32 there, float16 here"),
    ],
)
def test_another_search_is_refused(tmp_path: Path, change: dict[str, Any], difference: str) -> None:
    ledger = begun(tmp_path)
    before = ledger.read_bytes(), (tmp_path / CONFIG).read_bytes()
    other = Settings.of(**{**GIVEN, **change})
    message = refused(tmp_path, other)
    assert message == f"{tmp_path}: holds a search with other settings ({difference}); give another folder with --out"
    assert (ledger.read_bytes(), (tmp_path / CONFIG).read_bytes()) == before


def test_running_otherwise_is_the_same_search(tmp_path: Path) -> None:
    begun(tmp_path)
    other = Settings.of(**GIVEN, batch_size=3, threads=2, device="cuda")
    with Study(tmp_path, other) as study:
        assert study.events == EVENTS


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert refused(tmp_path) == f"{tmp_path}: is not empty and holds no search; give another folder with --out"
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    with Study(tmp_path / "empty", SETTINGS) as study:
        assert study.events == []


def test_files_are_no_folders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert refused(file) == f"{file}: is a file; give a folder with --out"
    below = file / "run"
    assert refused(below) == f"{below}: cannot be written (Not a directory); give another folder with --out"


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = tmp_path / "run"
    message = f"{folder}: cannot be written (Permission denied); give another folder with --out"
    with monkeypatch.context() as patch:  # not by its mode: root may write everywhere
        patch.setattr(Path, "mkdir", fail)
        assert refused(folder) == message
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", fail)
        assert refused(folder) == message
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert refused(folder) == message
    Study(folder, SETTINGS).__exit__(None, None, None)  # and none of that is left behind


@pytest.mark.parametrize("content", ["model: [", "model: mnist\nstep: 4\n", "- a\n"])
def test_damaged_settings_are_refused(tmp_path: Path, content: str) -> None:
    begun(tmp_path)
    (tmp_path / CONFIG).write_text(content)
    assert refused(tmp_path).startswith(f"{tmp_path / CONFIG}: ")


# one writer


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    message = f"{tmp_path}: another process is writing this search; wait for it or give another folder"
    with Study(tmp_path, SETTINGS):
        assert refused(tmp_path) == message
        code = (
            "import sys\nfrom pathlib import Path\nfrom autodiffusion import InputError, Settings\n"
            "from autodiffusion._study.study import Study\n"
            "try:\n    Study(Path(sys.argv[1]), Settings.of(model='mnist', steps=4, samples=250))\n"
            "except InputError as error:\n    print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == message
    with Study(tmp_path, SETTINGS) as study:
        assert study.events == []


def test_a_failing_search_lets_go_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Study(tmp_path, SETTINGS):
        raise RuntimeError
    with Study(tmp_path, SETTINGS) as study:
        assert study.events == []
