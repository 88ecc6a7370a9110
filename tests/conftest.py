"""What several test files need."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``.npz`` of 600 true samples of the small exact model, as guided-diffusion writes images."""
    from small import real

    path = tmp_path_factory.mktemp("reference") / "real.npz"
    np.savez(path, arr_0=real(600).permute(0, 2, 3, 1).numpy())
    return path


class Done(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


Command: TypeAlias = Callable[[str], Done]
ANSI = re.compile(r"\x1b")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``autodiffusion`` with these arguments in an empty folder, in this process."""
    import huggingface_hub.constants

    from autodiffusion._cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(line: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["autodiffusion", *shlex.split(line)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, int)
        done = Done(caught.value.code, *capsys.readouterr())
        assert not ANSI.search(done.out + done.err)
        return done

    return run


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches without picture and report, which take longer than all the rest."""
    draw_nothing(monkeypatch)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """As ``plain``, for fixtures that live longer."""
    module = import_module("autodiffusion._search.loop")
    patch.setattr(module, "report", lambda folder: None)
    patch.setattr(module, "show", lambda *parts: None)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``HF_HUB_OFFLINE=1`` does in a process that has not read it yet."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def refused_model(name: str | Path, **options: Any) -> str:
    """The one line that loading a model fails with."""
    from autodiffusion import InputError, load_model

    with pytest.raises(InputError) as caught:
        load_model(str(name), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message
