"""Rules that no single module can keep: the weight of the import, the size of files, what no file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import autodiffusion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / name for name in ("src", "tests", "training", "bench", "examples", "paper", "docs", ".ci")]
MAX_LINES = 300
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def written_files() -> list[Path]:
    """What people wrote: the text files at the top and in the named folders."""
    below = (path for folder in FOLDERS for path in folder.rglob("*") if "__pycache__" not in path.parts)
    files = [path for path in (*ROOT.glob("[!.]*"), *ROOT.glob(".pre-commit*"), *below) if path.is_file()]
    return sorted(path for path in files if b"\0" not in path.read_bytes()[:4096] and path.suffix != ".safetensors")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# the weight of `import autodiffusion`

HEAVY = {"diffusers", "transformers", "matplotlib", "scipy", "typer", "rich", "torchvision", "torch_fidelity", "optuna"}


def loaded_by(statement: str, after: str) -> set[str]:
    """The modules that ``statement`` brings into a fresh interpreter that has run ``after``."""
    code = (
        f"{after}\nimport sys\nbefore = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_nothing_heavy() -> None:
    # torch alone is 1,100 modules and what comes with it is free; diffusers would be 1,200 more, scipy.stats 700
    added = loaded_by("import autodiffusion", after="import torch")
    assert "autodiffusion" in added
    assert not {name.partition(".")[0] for name in added} & HEAVY
    assert len(added) < 200


# files


def test_source_files_are_short() -> None:
    folders = [ROOT / name for name in ("src", "bench", "paper", "training", "examples", "docs")]
    lengths = {relative(path): len(path.read_text().splitlines()) for path in python_files(*folders)}
    assert len(lengths) > 5
    assert not {name: lines for name, lines in lengths.items() if lines >= MAX_LINES}


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NEEDED_ARGUMENT = {
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
}


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Where ``source`` could run code that came with data: (line, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in FORBIDDEN_IMPORTS:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_IMPORTS:
            yield node.lineno, f"from {node.module} import"
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy"):
            if any(alias.name == "load" for alias in node.names):  # would hide from the check of calls
                yield node.lineno, f"from {node.module} import load"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.removeprefix("builtins.") in ("eval", "exec", "__import__"):
                yield node.lineno, name
            if name in NEEDED_ARGUMENT and NEEDED_ARGUMENT[name] not in map(ast.unparse, node.keywords):
                yield node.lineno, f"{name} without {NEEDED_ARGUMENT[name]}"


def test_nothing_runs_code_that_came_with_data() -> None:
    found = [
        f"{relative(path)}:{line}: {what}" for path in python_files(*FOLDERS) for line, what in faults(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("x = eval('1')", "eval"),
        ("import builtins; builtins.exec('1')", "builtins.exec"),
        ("import pickle", "import pickle"),
        ("from marshal import loads", "from marshal import"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("def f():\n    return np.load(path, mmap_mode='r')", "np.load without allow_pickle=False"),
        ("numpy.load(path, allow_pickle=True)", "numpy.load without allow_pickle=False"),
        ("from torch import Tensor, load", "from torch import load"),
    ],
)
def test_faults_are_seen(source: str, what: str) -> None:
    assert [found for _, found in faults(source)] == [what]


def test_the_harmless_passes() -> None:
    source = "model.eval()\ntorch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\njson.load(f)\n# eval(x)"
    assert not list(faults(source))


# folders of one machine and addresses of package indexes, spelled so that this file is not found
PLACES = re.compile(
    r"(?<![\w.~-])/(?:" + "|".join(["wor" + "k", "ro" + "ot", "hom" + "e", "op" + "t", "Use" + "rs"]) + r")/"
    r"|\bshar" + r"ed/"
    r"|pyp" + r"i\.org|pythonhos" + r"ted|extra-index" + r"-url|find-lin" + r"ks",
    re.IGNORECASE,
)


def test_no_file_names_a_place_on_one_machine() -> None:
    files = written_files()
    assert len(files) > 15
    found = [
        f"{relative(path)}: {match.group()}"
        for path in files
        for match in PLACES.finditer(path.read_text(errors="replace"))
    ]
    assert not found


@pytest.mark.parametrize(
    "text", ["see /" + "work/main", "'/ho" + "me/me/x'", "shar" + "ed/golden", "https://pyp" + "i.org/x"]
)
def test_such_places_are_seen(text: str) -> None:
    assert PLACES.search(text)


@pytest.mark.parametrize("text", ["network/layers", "the noise is shared by all plans", "runs/work/1", "homes"])
def test_ordinary_words_pass(text: str) -> None:
    assert not PLACES.search(text)


# what git says, pasted into a file: lines of `git status --short`, and the marks of a conflict that was not resolved
PASTED = re.compile(
    r"^(?:(?! {2})[ MADRCU]{2}|\?\?) [\w./-]+\.\w+(?: -> \S+)?$|^(?:<{7}|={7}|>{7})(?: |$)", re.MULTILINE
)


def test_nothing_that_git_says_was_pasted() -> None:
    found = [
        f"{relative(path)}: {match.group()}"
        for path in written_files()
        for match in PASTED.finditer(path.read_text(errors="replace"))
    ]
    assert not found


@pytest.mark.parametrize(
    "text", [" M docs/apply.md", "R  a/b.json -> a/c.json", "?? docs/x.md", "MM a.py", "<" * 7 + " HEAD", "=" * 7]
)
def test_what_git_says_is_seen(text: str) -> None:
    assert PASTED.search(f"| a table |\n{text}\n\nA paragraph")


@pytest.mark.parametrize("text", ["    autodiffusion report run", "A docs/apply.md", "  run/plan.json", "=======x"])
def test_what_people_write_passes(text: str) -> None:
    assert not PASTED.search(text)


# the measurements

COMMAND = re.compile(r"python (-m bench\.\w+|bench/\w+\.py)")
SCRIPTS = [path for path in python_files(ROOT / "bench") if "__main__" in path.read_text()]
DOCUMENTED = sorted(
    {m[1] for path in written_files() if path.suffix in (".py", ".md") for m in COMMAND.finditer(path.read_text())}
)


def test_no_module_hides_one_of_the_standard_library() -> None:
    """A script's own folder comes first where Python looks for modules."""
    names = {path.stem for path in python_files(*(ROOT / name for name in ("bench", "training", "tests", "paper")))}
    assert len(names) > 50
    assert not names & sys.stdlib_module_names


def test_every_measurement_says_how_it_is_run() -> None:
    assert len(SCRIPTS) > 10
    for path in SCRIPTS:
        said = {f"-m bench.{path.stem}", f"bench/{path.name}"} & set(COMMAND.findall(path.read_text()))
        assert len(said) == 1, path
    assert len(DOCUMENTED) == len(SCRIPTS)


@pytest.mark.parametrize("file", [command for command in DOCUMENTED if command.startswith("bench/")])
def test_a_measurement_runs_by_its_file(file: str) -> None:
    done = subprocess.run([sys.executable, file, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def test_measurements_run_as_modules() -> None:
    """All of them in one interpreter, which imports torch once."""
    names = [command.removeprefix("-m ") for command in DOCUMENTED if command.startswith("-m ")]
    code = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("END", name, end.code)
"""
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r"^END (\S+) (\S+)", done.stdout, re.MULTILINE) == [(name, "0") for name in names], done.stderr


# the release


def test_the_release_says_its_version_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == autodiffusion.__version__
    first = re.findall(r"^## \[(\d.*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert first == (autodiffusion.__version__, str(cited["date-released"]))


# the pins


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Package to version, as constraints.txt has them; asserts the form of every line."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][A-Za-z0-9.!]*)", line)
        assert match, f"constraints.txt: {line!r} is not name==version"
        assert normal(match[1]) not in found, f"constraints.txt: {match[1]} stands there twice"
        found[normal(match[1])] = match[2]
    return found


def test_pins_are_plain() -> None:
    names = list(pins())
    assert names == sorted(names)
    assert "torchvision" not in names  # what the index has wants another build of torch


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[normal(requirement.name)]), text
