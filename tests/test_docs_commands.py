"""Every command and snippet on the pages of docs/, page by page in its order, on models that cost next to nothing.

What is replaced is said in :data:`MODELS`, :data:`INSTEAD`, :data:`FEWER` and :data:`PYTHON`; all else runs as it
stands on the page. Commands for models that cannot be had here are read by the command line, as far as where it would
load them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from PIL import Image
from small import SHAPE, Shifts, denoise
from torch import Tensor, nn
from typer.main import get_command

from autodiffusion import Model, NoiseSchedule, Plan, Settings, load_model
from autodiffusion._cli import app
from autodiffusion._cli._options import MODELS as MODEL_NAMES
from autodiffusion._errors import InputError
from autodiffusion._names import resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# what is replaced, and what lies in the folder where the commands run

HERE, PIPELINE, REAL = "test_docs_commands:model", "google/ddpm-cifar10-32", "real.npz"
MODELS = {"mnist": HERE, "MODEL": HERE, PIPELINE: PIPELINE}
"""Models that pages name, and those that take their place; a folder of that name is the pipeline."""
OWN = re.compile(r"[a-z_]+:[A-Za-z_]+")
"""What is in a file that the page shows, such as a model, stays."""
FILES = re.compile(r"^[\w.-]+/[\w.-]+$|\.(ckpt|safetensors)$")
"""Models from elsewhere, whose commands are only read: hub names and single files."""
INSTEAD = {
    HERE: {"--reference": REAL, "--features": "small:features"},
    PIPELINE: {"--features": "test_docs_commands:pooled"},
    None: {"--features": "test_docs_commands:pooled"},
}
"""Of a command with this model, what is given instead of what the page gives, or leaves to the model."""
TEACHER = "teacher:9:24"
"""What every teacher becomes."""
FEWER = {
    "--samples": 24,
    "--confirm-samples": 60,
    "--budget": 1500,
    "--teacher": 10,
    "--finalists": 1,
    "-n": 4,
    "--population": 6,
    "--generations": 2,
    "--parents": 2,
    "--mutations": 2,
    "--crossovers": 1,
    "--initial-mutations": 2,
    "--candidates": 6,
    "--batch-size": 64,
}
"""Numbers that are replaced where they are greater."""
UNSAID = {
    "search": ("--samples", "--confirm-samples", "--budget", "--finalists"),
    "evaluate": ("--samples",),
    "sample": ("-n",),
}
"""Of these, what is given also where the page leaves it to its default."""
PYTHON = {
    r'model="mnist"': f'model="{HERE}", reference="{REAL}", samples=24, confirm_samples=60',
    r'model="google/ddpm-cifar10-32", reference="cifar10/"': (
        f'model="{PIPELINE}", reference="cifar10/", features="test_docs_commands:pooled", samples=24, '
        "confirm_samples=60, budget=1500"
    ),
    r'load_model\("mnist"\)': f'load_model("{HERE}")',
    r'"fid,recall", samples=\d+': f'"fid,recall", reference="{REAL}", samples=24',
    r"teacher:\d+": TEACHER,
    r"budget=[\d_]+": "budget=1500",
    r"batch_size=\d+": "batch_size=2",
    r'"cuda"': '"cpu"',
}
FOREIGN = re.compile(r'"(?!google/)[\w-]+/[\w.-]+"')
"""A hub name in Python that nothing here takes the place of: the block is only read."""


def model() -> Model:
    """The exact model behind layers that may be left out, with the thousand times that most models have."""
    schedule, shifts = NoiseSchedule.cosine(), Shifts()

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        time, x = float(t[0]), shifts(x)
        return (x - schedule.alpha(time) * denoise(x, time, schedule)) / schedule.sigma(time)

    return Model(network, schedule, SHAPE, features="small:features", name="here", module=shifts)


def pooled() -> nn.Module:
    """Features of images of any size."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


MYNETWORKS = """
from torch import nn

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Conv2d(3, 3, 1)

    def forward(self, x, t):
        return self.only(x)
"""


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory, real_images: Path) -> Path:
    """What readers have: a pipeline, images, weights, a plan that was found."""
    folder = tmp_path_factory.mktemp("things")
    torch.manual_seed(0)
    level = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    network = UNet2DModel(4, block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, **level)
    for name in (PIPELINE, "my-pipeline"):
        DDPMPipeline(unet=network, scheduler=DDIMScheduler()).save_pretrained(folder / name)
    draw = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    for name in ("images", "photos", "cifar10"):
        (folder / name).mkdir()
        for number, pixels in enumerate(draw):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    shutil.copy(real_images, folder / REAL)
    (folder / "mynetworks.py").write_text(MYNETWORKS)
    torch.save({"only.weight": torch.eye(3)[:, :, None, None], "only.bias": torch.zeros(3)}, folder / "weights.pt")
    (folder / "run").mkdir()
    Plan.of("ddim", [900.0, 600.0, 300.0, 50.0]).save(folder / "run" / "plan.json")
    return folder


# what pages hold


@dataclass(frozen=True)
class Block:
    """A block of code: ``language`` and ``title`` as after its backticks; ``indented`` is one without."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Fenced and indented blocks, in their order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        start = at
        if fence := re.fullmatch(r"```(\w*)(?: title=\"([^\"]+)\")?", lines[at]):
            at = lines.index("```", at + 1)
            yield Block(page, start + 2, fence[1], fence[2] or "", "\n".join(lines[start + 1 : at]) + "\n")
        elif lines[at].startswith("    ") and not lines[at - 1].strip():
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            text = "\n".join(line[4:] for line in lines[start:at]).rstrip() + "\n"
            first = text.split()[0]
            language = "python" if first in ("import", "from") else "sh" if first in PROGRAMS else "indented"
            yield Block(page, start + 1, language, "", text)
            at -= 1
        at += 1


def commands(text: str) -> list[list[str]]:
    """The commands of a block, cut into words."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


# commands


def verbs() -> dict[str, set[str]]:
    """The options of each verb."""
    listed: dict[str, Any] = vars(get_command(app))["commands"]
    return {
        name: {option for p in verb.params for option in (*p.opts, *p.secondary_opts) if option.startswith("-")}
        for name, verb in listed.items()
    }


VERBS = verbs()


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def with_option(words: list[str], name: str, value: str) -> list[str]:
    """With another value of an option, or with the option."""
    if name not in words:
        return [*words, name, value]
    at = words.index(name) + 1
    return [*words[:at], value, *words[at + 1 :]]


def without(words: list[str], name: str) -> list[str]:
    """Without an option and its value."""
    return words if name not in words else [*words[: words.index(name)], *words[words.index(name) + 2 :]]


def smaller(words: list[str]) -> list[str] | None:
    """A command with a small model and few samples; ``None`` if its model cannot be had here."""
    verb, named = words[0], option(words, "--model")
    if verb in ("search", "layers") and len(words) > 1 and not words[1].startswith("-"):
        named = words[1]
    if "--config" in words:
        named = yaml.safe_load(Path(words[words.index("--config") + 1]).read_text())["model"]
    model = None if named is None else named if OWN.fullmatch(named) else MODELS.get(named)
    if named is not None and (model is None or "--captions" in words):
        return None
    words = [model if word == named and model is not None else word for word in words]
    words = [TEACHER if word.startswith("teacher:") else word for word in words]
    for name, value in (INSTEAD.get(model, {}) | {"--device": "cpu", "--dtype": "float32"}).items():
        given = option(words, name)
        wanted = given is not None or (model is not None and name not in ("--device", "--dtype"))
        if name in VERBS[verb] and wanted and given != TEACHER and not OWN.fullmatch(given or ""):
            words = with_option(words, name, value)
    for name, most in FEWER.items():
        given = option(words, name)
        if name == "--budget" and "," in (option(words, "--solver") or ""):
            most = 10_000  # each of several solvers gets a part
        if given is not None or name in UNSAID.get(verb, ()):
            words = with_option(words, name, str(min(most, int(given or most))))
    for name in ("--workers", "--ray-address", "--timeout"):  # which start Ray: what it does then is tested elsewhere
        words = without(words, name)
    if (option(words, "--max-cost") or "").endswith(" ms"):  # which pay for hundreds of steps of a small network
        words = with_option(words, "--max-steps", option(words, "--steps") or "")
    if option(words, "--preset") == "paper" and option(words, "--strategy") in (None, "evolution"):
        for name in ("--population", "--generations", "--parents"):
            words = with_option(words, name, str(FEWER[name]))
    return words


def on_small(text: str) -> str:
    """Python as :data:`PYTHON` has it."""
    for pattern, replacement in PYTHON.items():
        text = re.sub(pattern, replacement, text)
    return text


class Reading:
    """A page on the way through its blocks."""

    def __init__(self, command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.command, self.folder, self.monkeypatch = command, folder, monkeypatch
        self.names: dict[str, Any] = {}
        self.searched: dict[str, list[str]] = {}

    def run(self, block: Block) -> None:
        if block.title:
            (self.folder / block.title).write_text(on_small(block.text))
            if block.title.endswith(".yaml"):
                Settings.of(**{"model": HERE, "steps": 4} | yaml.safe_load(block.text))
        elif block.language == "python":
            self.python(block)
        elif block.language == "json":
            Plan.model_validate_json(block.text)
        elif block.language == "sh":
            for words in commands(block.text):
                assert words[0] in PROGRAMS, f"{block.place}: no rule for '{words[0]}'"
                PROGRAMS[words[0]](self, words, block.place)
        else:
            assert block.language in ("indented", "text"), f"{block.place}: no rule for '{block.language}'"
            assert not re.search(r"^\s*(\$ )?autodiffusion ", block.text, re.MULTILINE), block.place
            if block.text.startswith("--"):  # the options of a command
                self.only_read(["evaluate", "uniform:4", *commands(block.text)[0]], block.place)

    def python(self, block: Block) -> None:
        """Runs a block with what the page's earlier blocks have left."""
        if FOREIGN.search(block.text):
            return check_names(block)
        text = on_small(block.text)
        script = self.folder / "snippet.py"
        script.write_text("\n" * (block.line - 1) + text)
        if "search(" in text:  # into the folder that it names, where nothing of the page's commands may lie
            for out in re.findall(r'"([a-z-]+)"', text):
                assert out not in self.searched, f"{block.place}: a command has searched into {out} before"
                if (self.folder / out / "plan.json").exists():
                    shutil.rmtree(self.folder / out)
        self.names |= runpy.run_path(str(script), init_globals=self.names)

    def autodiffusion(self, words: list[str], place: str) -> None:
        words = words[1:]
        assert words[0] in VERBS, f"{place}: no verb {words[0]}"
        reduced = smaller(words)
        if reduced is None:
            return self.only_read(words, place)
        out = option(reduced, "--out")
        if words[0] == "search" and out:  # the same again goes on, another does not
            assert self.searched.get(out, words) == words, f"{place}: the page has another search in {out}"
            if out not in self.searched:  # a reader's run of before
                shutil.rmtree(self.folder / out, ignore_errors=True)
            self.searched[out] = words
        done = self.command(shlex.join(reduced))
        assert done.status == 0, f"{place}: autodiffusion {shlex.join(reduced)}\n{done.err}"

    def only_read(self, words: list[str], place: str) -> None:
        """As far as where the model would be loaded; what is to be searched is checked by name."""
        model = option(words, "--model") or words[1]
        known = re.findall(r"[\w/-]+", MODEL_NAMES.partition(", a folder")[0].replace("(also ", ""))
        assert model in known or (FILES.search(model) and model.partition("/")[0] not in known), f"{place}: {model}"

        def search(settings: Settings, *_: Any) -> None:
            for room, name in (("solvers", settings.solver), ("metrics", settings.metric)):
                resolve(room, name)
            resolve("strategies", settings.strategy.partition(":")[0])
            raise InputError("enough")

        def load(*_: Any, **__: Any) -> None:
            raise InputError("enough")

        for name in ("contest", "several"):  # or they would first be imported with what is put in here
            importlib.import_module(f"autodiffusion._search.{name}")
        known_as = [
            (module, name)
            for place, module in list(sys.modules.items())
            if place.startswith("autodiffusion")
            for name, value in vars(module).items()
            if value is load_model
        ]
        with self.monkeypatch.context() as patch:
            for module, name in known_as:
                patch.setattr(module, name, load)
            patch.setattr("autodiffusion._search.loop.search", search)
            done = self.command(shlex.join(words))
        assert done.err == "autodiffusion: enough\n", f"{place}: {done.err}"

    def make(self, words: list[str], place: str) -> None:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), place

    def pip(self, words: list[str], place: str) -> None:
        """Of this package, with extras that there are."""
        assert words[1] == "install", place
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words[2:]:
            named = re.fullmatch(r"(?:\.|autodiffusion)(?:\[([\w,]+)\])?", word)
            assert named, f"{place}: {word}"
            assert set((named[1] or "docs").split(",")) <= set(extras), place

    def tensorboard(self, words: list[str], place: str) -> None:
        """Shows a folder in which an earlier command left something to be shown."""
        from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

        assert words[1] == "--logdir", place
        [found] = EventMultiplexer().AddRunsFromDirectory(words[2]).Reload().Runs().values()
        assert found["scalars"], place

    def script(self, words: list[str], place: str) -> None:
        """A measurement reads its options, and stops there."""

        def parse(self: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> Any:
            _, unknown = self.parse_known_args(given, namespace)
            assert not unknown, f"{place}: {unknown}"
            raise InputError("enough")

        run, target = (runpy.run_module, words[2]) if words[1] == "-m" else (runpy.run_path, str(ROOT / words[1]))
        with self.monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse)
            patch.setattr(sys, "argv", words[2:] if words[1] == "-m" else words[1:])
            patch.syspath_prepend(str(ROOT))
            with pytest.raises(InputError, match="enough"):
                run(target, run_name="__main__")


PROGRAMS: dict[str, Callable[[Reading, list[str], str], None]] = {
    "autodiffusion": Reading.autodiffusion,
    "make": Reading.make,
    "pip": Reading.pip,
    "tensorboard": Reading.tensorboard,
    ".venv/bin/python": Reading.script,
}


def check_names(block: Block) -> None:
    """What a block imports is there, and of this package also what it takes from it."""
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), block.place
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "autodiffusion":
            assert hasattr(importlib.import_module("autodiffusion"), node.attr), f"{block.place}: {node.attr}"


@pytest.fixture
def reading(things: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Reading(command, tmp_path, monkeypatch)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_page_shows_runs(page: Path, reading: Reading) -> None:
    for block in blocks(page):
        reading.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_the_text_are_there(page: Path) -> None:
    of_paper = re.findall(r"\"(--[a-z-]+)\"", (ROOT / "paper" / "__main__.py").read_text())
    known = set().union(*VERBS.values(), {"--help"}, of_paper)
    prose = re.sub(r"^(    |```).*", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for span in re.findall(r"`([^`\n]+)`", prose):
        words = span.split()
        if words[0] == "autodiffusion" and words[1:] and words[1] in VERBS:
            assert {word for word in words if word.startswith("--")} <= VERBS[words[1]], span
        elif words[0].startswith("--"):
            assert words[0].partition("=")[0] in known, span


# that it would be noticed


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    "text",
    [
        "autodiffusion search mnist --steps 4 --solvr gls --out run",
        "autodiffusion search mnist --steps 4 --solver gsl --out run",
        "autodiffusion search minst --steps 4 --out run",
        "autodiffusion search adm/imagenet46 --steps 4 --checkpoint x.pt --out run",
        "autodiffusion serch mnist --steps 4 --out run",
        "autodiffusion search adm/imagenet64 --steps 4 --strategy laddr --out run",
        "autodiffusion search adm/imagenet64 --steps 4 --checkpoint x.pt --referenc x.npz --out run",
        "autodiffusion evaluate run/plan.json --model CompVis/stable-diffusion-v1-4 --caption x.txt",
        "make dmo",
        "pip install 'autodiffusion[inceptoin]'",
        ".venv/bin/python -m bench.honesty --serches 3",
        "conda install autodiffusion",
    ],
)
def test_a_wrong_command_fails(text: str, reading: Reading) -> None:
    with pytest.raises(AssertionError):
        reading.run(Block(Path("page.md"), 1, "sh", "", text))


def test_a_wrong_name_in_python_fails(reading: Reading) -> None:
    for text in ("from autodiffusion import Plam", 'import autodiffusion\nautodiffusion.aply("a/b")'):
        with pytest.raises((ImportError, AssertionError)):
            reading.run(Block(Path("page.md"), 1, "python", "", text))


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('a\n\n    make demo\n    make test\n\nb\n\n```python title="x.py"\nx = 1\n```\n\n    d = 2 t\n')
    found = [(block.line, block.language, block.title, block.text) for block in blocks(page)]
    assert found == [
        (3, "sh", "", "make demo\nmake test\n"),
        (9, "python", "x.py", "x = 1\n"),
        (12, "indented", "", "d = 2 t\n"),
    ]
