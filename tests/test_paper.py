"""The paper's experiments: what was published, the settings, and every one of them on small stand-ins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command
from PIL import Image
from test_adm import Plain, PlainClassifier
from test_adm_files import CLASSES, CONDITIONAL, UNCONDITIONAL
from test_text_to_image import TEXTS, made

from autodiffusion import Plan, load_model
from autodiffusion._report.mosaics import panels
from autodiffusion.models._adm.flags import Flags
from autodiffusion.strategies.evolution import Evolution
from autodiffusion.strategies.random import Random
from paper import pictures
from paper.__main__ import main
from paper.experiments import Paper, experiments
from paper.runs import Runs

ROOT = Path(__file__).parents[1]
WHOLE = Paper.read()
EVERY = experiments(WHOLE)

# what was printed, from the text of the appendix

TABLE_1 = """
x 4  22.43 29.70  39.13 23.05  38.22 22.00
o 4  18.22 (-4.21) 33.10 (+3.40)  26.72 (-12.41) 27.73 (+4.68)  20.94 (-17.28) 30.38 (+8.38)
x 6  17.36 34.03  18.87 31.63  32.40 24.41
o 6  12.95 (-4.41) 34.26 (+0.23)  16.44 (-2.43) 33.70 (+2.07)  16.48 (-15.92) 33.58 (+9.17)
x 10 15.95 36.23  14.93 34.97  19.16 30.22
o 10 12.67 (-3.28) 36.54 (+0.31)  14.06 (-0.87) 35.38 (+0.42)  13.57 (-5.59) 36.79 (+6.57)
"""
SOLVERS = ("DPM-Solver", "DDIM", "PLMS")
BY_METHOD = {
    "table_2": """
FID 17.86 / 34.88 11.17 / 43.47 6.24 / 57.85
KID 21.06 / 30.78 12.68 / 39.42 9.72 / 42.60
KL-divergence 414.9 / 1.125 414.3 / 1.13 414.8 / 1.14
""",
    "table_3": """
Evolutionary search 17.86 / 34.88 11.17 / 43.47 6.24 / 57.85
Random search 18.84 / 34.17 11.17 / 43.02 7.05 / 51.43
Uniform time steps 138.66 / 7.06 23.71 / 31.53 8.86 / 46.50
""",
}


def of(name: str) -> dict[tuple[str, int], tuple[float, ...]]:
    """What an experiment says was published."""
    return {(row.name, steps): values for row in EVERY[name].rows for steps, values in row.published.items()}


def test_table_1_is_as_printed() -> None:
    expected = {}
    for line in TABLE_1.strip().splitlines():
        mark, steps, *rest = re.sub(r"\([^)]*\)", "", line).split()
        for i, solver in enumerate(SOLVERS):
            name = f"{solver}, found" if mark == "o" else solver
            expected[name, int(steps)] = (float(rest[2 * i]), float(rest[2 * i + 1]))
    assert of("table_1") == expected
    # what was gained, as printed in brackets
    for line in TABLE_1.strip().splitlines():
        steps = int(line.split()[1])
        gains = [float(gain) for gain in re.findall(r"\(([-+.\d]+)\)", line)]
        for i, gain in enumerate(gains):
            name, place = SOLVERS[i // 2], i % 2
            change = expected[f"{name}, found", steps][place] - expected[name, steps][place]
            assert abs(change - gain) < 0.011, (name, steps)  # one of them is off in the last digit


@pytest.mark.parametrize("name", BY_METHOD)
def test_tables_2_and_3_are_as_printed(name: str) -> None:
    expected = {}
    for line in BY_METHOD[name].strip().splitlines():
        numbers = re.findall(r"[\d.]+", line)
        method = line[: line.index(numbers[0])].strip()
        for i, steps in enumerate((4, 6, 10)):
            expected[method, steps] = (float(numbers[2 * i]), float(numbers[2 * i + 1]))
    assert of(name) == expected


def test_plans_have_the_figures_of_the_same_searches_and_what_is_not_known_is_left_blank() -> None:
    figures = {
        (row.search, steps): values
        for name in ("table_1", "table_3")
        for row in EVERY[name].rows
        if row.found
        for steps, values in row.published.items()
    }
    for name in ("table_4", "table_5"):
        for row in EVERY[name].rows:
            assert row.published == {steps: figures[row.search, steps] for steps in row.steps}
    for name in ("table_6", "lsun", "transfer", "transfer_lsun"):
        assert not of(name), name


def test_there_is_one_for_each_table_and_figure() -> None:
    assert [*EVERY][:11] == [*(f"table_{n}" for n in range(1, 7)), *(f"figure_{n}" for n in range(1, 6))]
    assert {*EVERY} - {*[*EVERY][:11]} == {"lsun", "transfer", "transfer_lsun"}


# the settings, as released: population / generations / mutations / crossovers, probability, samples

RELEASED = {
    "adm-g": ((50, 10, 25, 15), 0.25, 5000),
    "adm-g-layers": ((50, 15, 25, 10), 0.25, 1000),
    "lsun-cat": ((50, 10, 25, 10), 0.25, 3000),
    "lsun-bedroom": ((50, 10, 25, 10), 0.25, 3000),
    "sd-plms": ((50, 10, 25, 15), 0.1, 2000),
    "sd-dpm": ((50, 10, 25, 10), 0.1, 1000),
}


@pytest.mark.parametrize("search", RELEASED)
def test_settings_are_those_released(search: str) -> None:
    (population, generations, mutations, crossovers), probability, samples = RELEASED[search]
    settings = WHOLE.settings(search, 4 if "lsun" not in search else 5)
    used = vars(Evolution) | settings.strategy_options
    assert settings.strategy == "evolution"
    assert (used["population"], used["generations"], used["mutations"]) == (population, generations, mutations)
    assert (used["crossovers"], used["mutation_probability"], used["parents"]) == (crossovers, probability, 10)
    assert (settings.samples, settings.noise, settings.starts) == (samples, "fresh", ["uniform"])
    assert settings.guidance_scale == {"adm": 1.0, "sd-": 7.5, "lsu": None}[search[:3]]


def test_the_other_searches_differ_in_what_they_are_about() -> None:
    whole = WHOLE.settings("adm-g", 6).model_dump()
    for search, differs in (("adm-g-kid", {"metric"}), ("adm-g-kl", {"metric"}), ("adm-g-random", {"strategy"})):
        other = WHOLE.settings(search, 6).model_dump()
        assert {key for key in whole if whole[key] != other[key]} == differs
    assert Random.candidates == Evolution.population * Evolution.generations
    layers = {steps: WHOLE.settings("adm-g-layers", steps).max_cost for steps in (4, 6, 10)}
    assert layers == {4: "232 layers", 6: "350 layers", 10: "580 layers"}
    assert WHOLE.settings("adm-g-layers", 4, layers=29).max_cost == "116 layers"
    assert {system: WHOLE.final(system) for system in WHOLE.systems} == {
        **dict.fromkeys(("imagenet64", "lsun-cat", "lsun-bedroom"), 50_000),
        **dict.fromkeys(("sd-v1-4", "sd-v1-5"), 10_000),
    }


def test_a_scale_shrinks_samples_and_nothing_else() -> None:
    small = Paper.read(scale=0.01)
    before, after = WHOLE.settings("sd-plms", 4), small.settings("sd-plms", 4)
    assert (after.samples, after.confirm_samples) == (20, 100)
    assert after.difference(before) == "samples: 2000 there, 20 here"
    assert after.model_copy(update={"samples": 2000, "confirm_samples": 10_000}) == before
    assert Paper.read(scale=1e-9).settings("sd-plms", 4).samples == 8


def test_uniform_steps_are_those_of_the_published_samplers(tmp_path: Path) -> None:
    runs, model = Runs(WHOLE, tmp_path), load_model("mnist")
    plms, dpm, ddim = (runs.uniform(search, 4, model) for search in ("sd-plms", "sd-dpm", "adm-g"))
    assert (plms.times, plms.end) == ((751, 501, 251, 1), 0)
    nodes = [1000 * s - 1 for s in np.linspace(1, 0.001, 5)]  # DPM-Solver's evenly spaced times
    np.testing.assert_allclose([*dpm.times, dpm.end], nodes, atol=1e-9)
    assert (ddim.times, ddim.end) == ((750, 500, 250, 0), None)


# stand-ins

EVERY_SMALL = {
    "samples": 8,
    "evolution": {"population": 3, "generations": 2, "parents": 2, "mutations": 1, "crossovers": 1}
    | {"initial_mutations": 1},
    "random": {"candidates": 4, "population": 2},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches without their reports, which take longer than all the rest."""
    monkeypatch.setattr("autodiffusion._views.watch.report", lambda folder: None)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in the place of all systems, as in ``paper/bundled.yaml``, with yet smaller searches."""
    content = yaml.safe_load((ROOT / "paper" / "bundled.yaml").read_text())
    for system in content["systems"].values():
        system["final"] = 16
    file = tmp_path_factory.mktemp("bundled") / "systems.yaml"
    file.write_text(yaml.safe_dump(content | {"every": EVERY_SMALL}))
    return file


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of each family in the place of its own: ADM-G, ADM and two Stable Diffusions, in their files."""
    folder = tmp_path_factory.mktemp("families")
    torch.manual_seed(0)
    guided, plain = Flags(**CONDITIONAL), Flags(**UNCONDITIONAL)
    for name, network in (
        ("adm_g", Plain(guided.network(CLASSES))),
        ("classifier", PlainClassifier(guided.classifier(CLASSES))),
        ("cat", Plain(plain.network())),
        ("bedroom", Plain(plain.network())),
    ):
        torch.save(network.state_dict(), folder / f"{name}.pt")
    for name in ("v1-4", "v1-5"):
        made(folder / "tokens").save_pretrained(folder / name)
    (folder / "captions.txt").write_text("\n".join(f"{text} {n}" for n in "abcdefgh" for text in TEXTS))
    rng = np.random.default_rng(0)
    for side in (8, 16):
        np.savez(folder / f"real{side}.npz", arr_0=rng.integers(0, 256, (40, side, side, 3), dtype=np.uint8))
    adm = {"model": "adm", "final": 10, "reference": "real8.npz", "features": "test_adm_files:features"}
    lsun = adm | {"model_options": UNCONDITIONAL}
    sd = {"final": 10, "reference": "real16.npz", "features": "test_text_to_image:features"}
    sd |= {"captions": "captions.txt", "guidance_scale": 7.5}
    systems = {
        "imagenet64": adm
        | {"title": "tiny ADM-G", "checkpoint": "adm_g.pt", "classifier": "classifier.pt", "classes": CLASSES}
        | {"model_options": CONDITIONAL, "guidance_scale": 1.0},
        "lsun-cat": lsun | {"title": "tiny cat", "checkpoint": "cat.pt"},
        "lsun-bedroom": lsun | {"title": "tiny bedroom", "checkpoint": "bedroom.pt"},
        "sd-v1-4": sd | {"title": "tiny v1-4", "model": str(folder / "v1-4")},
        "sd-v1-5": sd | {"title": "tiny v1-5", "model": str(folder / "v1-5")},
    }
    file = folder / "systems.yaml"
    file.write_text(yaml.safe_dump({"systems": json.loads(json.dumps(systems)), "every": EVERY_SMALL}))
    return file


def cells(page: str, name: str) -> list[str]:
    """The cells of the first row of a page's table with this name."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


FIGURE = re.compile(r"-?[\d.]+ ± [\d.]+ / [\d.]+")


def test_all_of_it_on_the_bundled_model(
    bundled: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--systems", str(bundled), "--steps", "4,5", "--out", "out"]
    assert main(given) == 0
    out = Path("out")
    names = [name for name in EVERY if name not in ("table_5", "figure_2")]  # of 6 and of 10 steps
    assert sorted(path.stem for path in out.glob("*.md")) == sorted(names)
    page = (out / "table_3.md").read_text()
    assert cells(page, "FID / inception score") == ["FID / inception score", "4 steps, published", "4 steps, here"]
    assert cells(page, "Uniform time steps")[1] == "138.66 / 7.06"
    for row in EVERY["table_3"].rows:
        assert FIGURE.fullmatch(cells(page, row.name)[2])
    # what it says is what the command says of the same plan
    found = command("evaluate out/plans/adm-g-4.json --model mnist --samples 16 --metric fid,inception_score --json")
    scores = json.loads(found.out)["scores"]
    fid, score = scores["fid"], scores["inception_score"]
    expected = f"{fid['value']:.2f} ± {(fid['high'] - fid['low']) / 2:.2f} / {score['value']:.2f}"
    assert cells(page, "Evolutionary search")[2] == expected
    assert "- Here: 16 samples of bundled digits (mnist), seed 0; ± is half of the 95 % interval." in page
    assert "- Here: bundled digits (mnist), seed 0.\n" in (out / "figure_5.md").read_text()
    assert "The searches are smaller than the paper's." in page
    # tables share their searches: Table 2's first row is Table 3's
    assert cells((out / "table_2.md").read_text(), "FID")[2] == expected
    # a published plan that does not fit says so where its figure would stand, and the time steps fit
    page = (out / "table_6.md").read_text()
    printed = cells(page, "N_max 232")
    assert printed[1:4] == ["published", "ddim at 926, 690, 424, 153; without layer 55 at 926", "-"]
    assert "no figure: plan 'adm-g/imagenet64/4/layers', found on ADM-G, does not fit mnist: layer 55 does not" in page
    budget = sum(
        len(load_model("mnist").layers) - len(step.skip) for step in Plan.load("out/plans/adm-g-layers-4.json").steps
    )
    assert budget <= 232 * len(load_model("mnist").layers) / 58
    printed = cells((out / "table_4.md").read_text(), "Stable Diffusion + PLMS, COCO")
    assert printed[2:4] == ["plms at 848, 598, 251, 21, to 0", "20.94 / 30.38"]
    assert FIGURE.fullmatch(printed[4])
    assert FIGURE.fullmatch(cells((out / "transfer_lsun.md").read_text(), "cat, found on bedroom")[2])
    # pictures
    for name, count in (("figure_1", 16), ("figure_3", 64), ("figure_4", 16)):
        squares = panels(out / f"{name}.png")
        assert [*squares] == [row.name for row in EVERY[name].rows]
        assert len({square.tobytes() for square in squares.values()}) == 2
        assert squares[EVERY[name].rows[0].name].width >= 16 * count**0.5
    for name in ("figure_5", "table_1", "table_2", "table_3", "transfer"):
        with Image.open(out / f"{name}.png") as image:
            assert len(image.convert("L").getcolors() or []) > 20, name
        assert f"({name}.png)" in (out / f"{name}.md").read_text()
    # again: nothing is searched, nothing measured, the pages are the same
    before = {path.name: path.read_text() for path in out.glob("*.md")}
    capsys.readouterr()
    for name in ("explore", "confirm"):
        monkeypatch.setattr(f"paper.runs.{name}", pytest.fail)
    assert main(given) == 0
    assert {path.name: path.read_text() for path in out.glob("*.md")} == before
    shown = capsys.readouterr().out
    assert all(text in shown for text in before.values())


def test_each_family_in_its_own_place(families: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--systems", str(families), "--files", str(families.parent), "--steps", "4,5", "--out", "out"]
    assert main(given) == 0
    out = Path("out")
    for name, experiment in EVERY.items():
        if experiment.kind == "figures":
            page = (out / f"{name}.md").read_text()
            for row in experiment.rows:
                assert FIGURE.fullmatch(cells(page, row.name)[2]), (name, row.name)
    # a plan of one model is the same on another, and its figure another one
    figures = json.loads((out / "figures.json").read_text())
    digest = Plan.load(out / "plans" / "lsun-cat-5.json").digest
    of_it = {
        row["of"]["system"]["title"]: row["scores"]["fid"]["value"] for row in figures if row["of"]["digest"] == digest
    }
    assert set(of_it) == {"tiny cat", "tiny bedroom"}
    assert len(set(of_it.values())) == 2
    # the layers that a search left out, of 14
    layered = Plan.load(out / "plans" / "adm-g-layers-4.json")
    assert sum(14 - len(step.skip) for step in layered.steps) <= 232 * 14 / 58
    for name in ("figure_1", "figure_3", "figure_4"):
        assert len(panels(out / f"{name}.png")) == 2
    solvers = {path.stem: Plan.load(path).solver for path in (out / "plans").glob("sd-*.json")}
    assert solvers == {"sd-plms-4": "plms", "sd-ddim-4": "ddim", "sd-dpm-4": "dpm_solver++"}
    assert Plan.load(out / "plans" / "sd-plms-4.json").origin["guidance"] == "classifier-free, scale 7.5"


def test_figure_5_counts_the_best_candidates(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, experiment = Runs(Paper.read(bundled), tmp_path), EVERY["figure_5"].limited([6])
    assert experiment is not None
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "_save", lambda drawing, path: drawn.append(drawing))
    assert pictures.occurrences(experiment, runs, tmp_path / "figure_5.png")
    shown = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [row.name for row in experiment.rows]
    for axes, row in zip(shown, experiment.rows, strict=True):
        events = [json.loads(line) for line in (runs.folder(row.search, 6) / "study.jsonl").read_text().splitlines()]
        scored = {
            json.dumps(entry["plan"]): entry["value"]
            for event in events
            if event["event"] == "scores"
            for entry in event["scores"]
        }
        best = [json.loads(plan) for plan, _ in sorted(scored.items(), key=lambda item: item[1])[:15]]
        times = [step["t"] for plan in best for step in plan["steps"]]
        heights = [bar.get_height() for bar in axes.patches]
        assert heights == np.histogram(times, np.linspace(0, 999, 51))[0].tolist()
        assert sum(heights) == 6 * len(best)
    marks = shown[0].lines[0].get_xdata()
    assert sorted(marks) == [123, 207, 390, 622, 830, 948]  # Table 5, row 1


def test_without_searches_the_published_plans_are_measured(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paper.runs.explore", pytest.fail)
    assert (
        main(
            [
                "table_3",
                "table_5",
                "figure_1",
                "figure_5",
                "--no-search",
                "--systems",
                str(bundled),
                "--steps",
                "4,6",
                "--out",
                "out",
            ]
        )
        == 0
    )
    page = Path("out/table_5.md").read_text()
    assert FIGURE.fullmatch(cells(page, "ADM-G + DDIM, ImageNet 64x64")[4])
    assert "|  | found here | - | - | - |" in page
    page = Path("out/table_3.md").read_text()
    assert cells(page, "Random search") == ["Random search", "18.84 / 34.17", "-", "11.17 / 43.02", "-"]
    assert FIGURE.fullmatch(cells(page, "Uniform time steps")[2])
    for name in ("figure_1", "figure_5"):
        assert "Not drawn: its searches have not been made." in Path(f"out/{name}.md").read_text()
        assert not Path(f"out/{name}.png").exists()


# the command

BAD: dict[str, tuple[str, str]] = {
    "unknown": ("table_7", "experiment 'table_7' is unknown (did you mean 'table_"),
    "scale": ("--scale 0", "--scale 0: is not above 0 and at most 1"),
    "steps": ("--steps four", "--steps four: is not a whole number"),
    "no such steps": ("table_1 --steps 5", "none of these experiments has a search of so many steps"),
    "no files": ("table_3", "ADM-G, ImageNet 64x64: there is no 64x64_diffusion.pt, its checkpoint; see the README of"),
    "no captions": ("figure_1", "there is no captions_val2014.json, its captions; see cocodataset.org"),
    "no systems": ("--systems none.yaml", "none.yaml: cannot be read"),
    "other systems": ("--systems other.yaml", "other.yaml: system 'imagenet46' is unknown (did you mean 'imagenet64'"),
    "other keys": ("--systems keys.yaml", "keys.yaml: 'system' is unknown (did you mean 'systems'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("systems: {imagenet46: {model: mnist}}\n")
    Path("keys.yaml").write_text("system: {}\n")
    line, told = BAD[case]
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("paper: ")
    assert told in err
    assert not Path("runs").exists()


def test_other_settings_are_another_folder(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Runs(Paper.read(bundled), Path("out"))
    runs.found("sd-plms", 4)
    runs.found("adm-g-layers", 4)
    content = yaml.safe_load(bundled.read_text())
    content["every"]["samples"] = 9
    Path("more.yaml").write_text(yaml.safe_dump(content))
    for finished in (True, False):  # the second as one that was interrupted
        for given, told in (
            (["--systems", "more.yaml"], "samples: 8 there, 9 here"),
            (["--systems", str(bundled), "--seed", "1"], "seed: 0 there, 1 here"),
        ):
            assert main(["transfer", *given, "--steps", "4", "--out", "out"]) == 2
            err = capsys.readouterr().err
            assert f"out/searches/sd-plms/4: holds a search with other settings ({told})" in err
        if finished:
            Path("out/plans/sd-plms-4.json").unlink()
    # a found plan may be measured with other numbers of samples; a search with layers is found again
    assert main(["table_6", "--systems", str(bundled), "--steps", "4", "--out", "out"]) == 0
    assert main(["table_6", "--systems", "more.yaml", "--steps", "4", "--out", "out", "--no-search"]) == 0
    Path("out/figures.json").write_text("[{")
    assert main(["table_6", "--systems", str(bundled), "--out", "out"]) == 2
    assert "out/figures.json: is not what an earlier run left" in capsys.readouterr().err


def test_ctrl_c_is_told_in_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("paper.__main__.run", interrupted)
    assert main(["table_3"]) == 130
    assert capsys.readouterr().err == "paper: interrupted; the same command goes on\n"


def test_list_says_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table_3", "table_6", "figure_3", "--list"]) == 0
    out = capsys.readouterr().out
    # 500 candidates of 5,000 samples, twice; three plans of 50,000; each of 4, 6 and 10 steps
    assert cells(out, "table_3")[2:] == ["6 of 6", "100.0", "3.0"]
    assert cells(out, "table_6")[2:] == ["3 of 3", "15.0", "1.0"]
    assert cells(out, "figure_3")[2:] == ["0 of 1", "0.0", "0.0"]
