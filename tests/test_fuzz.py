"""Files that somebody else made, changed at random: each is taken or refused with one line, soon and in little memory.

``make test-slow`` tries 100,000 of them.
"""

from __future__ import annotations

import copy
import io
import json
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import yaml
from conftest import draw_nothing
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as run_with
from hypothesis import strategies as st

from autodiffusion import InputError, Plan, Settings, search
from autodiffusion._evaluation.evaluate import describe
from autodiffusion._references.reference import load as load_reference
from autodiffusion._report import report
from autodiffusion._report.again import command
from autodiffusion._report.figures import charts
from autodiffusion._report.run import Run
from autodiffusion._sampling.sampling import stretches
from autodiffusion._study.settings import read_yaml
from autodiffusion._study.standing import Tally
from autodiffusion._study.study import CONFIG, LEDGER, PLAN, Study, stored_settings
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics._build import build

KNOWN = ["arr_0", "images", "features", "mu", "sigma", "mu_s", "sigma_s", "format", "vectors", "name", "extractor"]
"""Arrays that a reference may hold."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""What no line that is printed may hold."""
SECONDS, MIB = 2.0, 1024
"""The most that one file may take."""
MODEL, EXTRACTOR = small.layered_model(), load_features("small:features")

ODD: list[Any] = [None, True, 0, -1, 1.5, 10**18, 10**40, 1e308, -1e-320, "", "x" * 500, "os:system", "../../x", "\n"]
ODD += ["\0", 1e-300, 2**63]
ODD += [[], {}, [[]], {"": None}, [1, 2], "ddim", "nan", "5.0", {"plan": None}, "\u202e", "{{ 7 * 7 }}", "<script>"]
TOKENS = [b'"', b"{", b"[", b"]", b"}", b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"\0", b"\xff", b"\n"]
TOKENS += [b": ", b"- ", b"0o7", b"[" * 3000, b"<<: *a"]
TOKENS += [b"&a ", b"*a", b"!!python/object/apply:os.system [id]", b"{a: " * 500, b"\\u0000"]
TOKENS += [b"../", b"os:system", b"PK\x03\x04", b"\x93NUMPY", b"0x", b"|O", b"1" * 5000, b"'", b"#", b"2020-02-30"]


@pytest.fixture(scope="module")
def run(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that leaves out layers, with a plan of free numbers beside it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    options = {"samples": 16, "confirm_samples": 40, "budget": 900, "finalists": 2, "reference": str(real_images)}
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        search(Settings.of(model="small:layered_model", steps=2, layers=True, max_cost="70%", **options), folder)
    return folder


# what is tried


def taken_plan(content: bytes, folder: Path) -> None:
    (folder / PLAN).write_bytes(content)
    plan = Plan.load(folder / PLAN)
    assert Plan.from_json(plan.to_json()) == plan
    describe(plan)
    plan._repr_html_()
    stretches(plan, MODEL)


def taken_configuration(content: bytes, folder: Path) -> None:
    (folder / CONFIG).write_bytes(content)
    settings = Settings.of(str(folder / CONFIG), **read_yaml(folder / CONFIG))
    settings.dump()
    command(settings)


def taken_reference(content: bytes, folder: Path) -> None:
    file = folder / "reference.npz"
    file.write_bytes(content)
    reference = load_reference(file, EXTRACTOR)
    metric = build("fid", reference)
    metric.fits(EXTRACTOR(small.real(16)))
    if reference.vectors is not None:
        build("kid", reference)


def taken_ledger(content: bytes, folder: Path) -> None:
    """By who looks at it, and by who goes on with it."""
    (folder / LEDGER).write_bytes(content)
    study = Study.open(folder)
    study._repr_html_()
    run = Run.of(folder)
    Tally(run.settings).standing(run.events)
    found = (run.plans, run.spent, run.saved, run.raced, run.ranked, run.best_grid, run.start)
    assert len(found) == 7
    list(charts(run))
    with Study(folder, stored_settings(folder)):
        pass


def taken_report(content: bytes, folder: Path) -> None:
    (folder / LEDGER).write_bytes(content)
    page = report(folder).read_text()
    assert "<script>{{" not in page


Take = Callable[[bytes, Path], None]


def tried(take: Take, content: bytes, folder: Path) -> bool:
    """Whether a file was taken; it may be refused with one line alone."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            take(content, folder)
            taken = True
        except InputError as error:
            said, taken = str(error), False
    if not taken:
        assert said
        assert not CONTROL.search(said)
        assert len(said) < 1500, said[:300]
    # a page takes seconds of drawing, whatever is read
    assert time.process_time() - start < (10 * SECONDS if take is taken_report else SECONDS)
    return taken


# how files are changed


@st.composite
def bytes_changed(draw: st.DrawFn, content: bytes) -> bytes:
    """With bytes that come, go, change and repeat."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(changed)))
        until = min(len(changed), at + draw(st.integers(0, 40)))
        piece = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6)))
        match draw(st.sampled_from(["insert", "replace", "delete", "repeat", "cut"])):
            case "insert":
                changed[at:at] = piece
            case "replace":
                changed[at:until] = piece
            case "delete":
                del changed[at:until]
            case "repeat":
                changed[at:at] = bytes(changed[at:until]) * draw(st.integers(1, 30))
            case _:
                changed = changed[:at] if draw(st.booleans()) else changed[at:]
    return bytes(changed)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each container of a tree with each of its keys or indices."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


@st.composite
def tree_changed(draw: st.DrawFn, text: str) -> Any:
    """A tree of JSON in which values are others, gone, or somewhere else."""
    tree = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(tree))
        if not known:
            break
        holder, key = known[draw(st.integers(0, len(known) - 1))]
        match draw(st.sampled_from(["odd", "odd", "delete", "move", "new", "double"])):
            case "odd":
                odd = st.sampled_from(ODD).map(copy.deepcopy)  # or a later change would be within all that were drawn
                holder[key] = draw(st.one_of(odd, st.integers(), st.floats(), st.text(max_size=9)))
            case "delete":
                del holder[key]
            case "move":
                other, place = known[draw(st.integers(0, len(known) - 1))]
                holder[key] = json.loads(json.dumps(other[place]))
            case "new" if isinstance(holder, dict):
                holder[draw(st.one_of(st.text(max_size=5), st.sampled_from(["t", "steps", "event", "cost"])))] = 1
            case _ if isinstance(holder, list):
                holder.insert(key, json.loads(json.dumps(holder[key])))
    return tree


@st.composite
def array_odd(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """An array of a kind that is not asked for, or only nearly."""
    shape = draw(st.lists(st.integers(0, 9), max_size=5).map(tuple))
    kind = draw(st.sampled_from(["f8", "f4", "f2", "u1", "i8", "c16", "U5", "S3", "b1", "M8[s]", "O", "u1,f4"]))
    made = np.zeros(shape, kind)
    if kind in ("f8", "f4") and draw(st.booleans()):
        made[...] = draw(st.sampled_from([np.nan, np.inf, 1e300, -1.0, 1e-320])) if kind == "f8" else np.nan
    return made


@st.composite
def arrays_changed(draw: st.DrawFn, arrays: dict[str, Any]) -> bytes:
    """An ``.npz`` file with other arrays."""
    arrays = dict(arrays)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*arrays, *KNOWN]))
        if draw(st.booleans()):
            arrays[key] = draw(array_odd())
        else:
            arrays.pop(key, None)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


# the tests


def own_reference(folder: Path) -> list[Path]:
    """References as people have them: images, features, statistics, and what was saved."""
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    made = {"features": {"features": vectors}, "statistics": {"mu": vectors.mean(0), "sigma": np.cov(vectors.T)}}
    made["images"] = {"arr_0": small.real(40).permute(0, 2, 3, 1).numpy()}
    for name, arrays in made.items():
        np.savez(folder / f"{name}.npz", **arrays)
    load_reference(folder / "images.npz", EXTRACTOR).save(folder / "saved.npz")
    return [folder / f"{name}.npz" for name in (*made, "saved")]


def seeds(kind: str, run: Path, folder: Path) -> list[st.SearchStrategy[bytes]]:
    """Strategies that change the files of a kind; first it is seen that unchanged they are taken."""
    if kind == "plan":
        free = Plan.of("gls", [90.0, 50.5], end=1.0, solver_options={"plain": "ddim", "clip": True})
        texts = [(run / PLAN).read_text(), free.tuned([{"x": 0.5}, {}]).to_json()]
        assert tried(taken_plan, texts[0].encode(), folder)
        trees = [tree_changed(text).map(lambda tree: json.dumps(tree).encode()) for text in texts]
    elif kind == "configuration":
        texts = [(run / CONFIG).read_text()]
        assert tried(taken_configuration, texts[0].encode(), folder)
        trees = [tree_changed(json.dumps(yaml.safe_load(t))).map(lambda x: yaml.dump(x).encode()) for t in texts]
    elif kind in ("ledger", "report"):
        (folder / CONFIG).write_bytes((run / CONFIG).read_bytes())
        texts = [(run / LEDGER).read_text()]
        assert tried(TAKE[kind], texts[0].encode(), folder)
        listed = json.dumps([json.loads(line) for line in texts[0].splitlines()])

        def lines(tree: Any) -> bytes:
            return "".join(json.dumps(event) + "\n" for event in tree).encode()

        return [tree_changed(listed).map(lines), bytes_changed(texts[0].encode())]
    else:
        files = own_reference(folder)
        for file in files:
            assert tried(taken_reference, file.read_bytes(), folder), file
        arrays = [dict(np.load(file, allow_pickle=False)) for file in files]
        return [*map(arrays_changed, arrays), *(bytes_changed(file.read_bytes()) for file in files)]
    return [*trees, *(bytes_changed(text.encode()) for text in texts)]


TAKE: dict[str, Take] = {
    "plan": taken_plan,
    "configuration": taken_configuration,
    "reference": taken_reference,
    "ledger": taken_ledger,
    "report": taken_report,
}
slow = pytest.mark.slow
COUNTS = [("plan", 600), ("configuration", 400), ("reference", 600), ("ledger", 400), ("report", 8)]
COUNTS += [pytest.param(kind, 25_000, marks=slow) for kind in TAKE if kind != "report"]  # type: ignore[arg-type]
COUNTS += [pytest.param("report", 300, marks=slow)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "count"), COUNTS)
def test_every_file_is_taken_or_refused_with_one_line(kind: str, count: int, run: Path, tmp_path: Path) -> None:
    changed = st.one_of(seeds(kind, run, tmp_path))
    before, seen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [0, 0]

    @run_with(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 1000,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(changed)
    def every(content: bytes) -> None:
        seen[tried(TAKE[kind], content, tmp_path)] += 1

    every()
    refused, taken = seen
    assert refused > count / 20
    assert taken > 0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MIB
    print(f"{kind}: {taken} taken, {refused} refused")
