"""The figures of reports: their data are the ledger's, what is drawn are the data, and any run has figures."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_report import copied, finished, keep, ledger, of, parsed

from autodiffusion import Plan
from autodiffusion._errors import InputError
from autodiffusion._names import modules
from autodiffusion._report import report, save_figures
from autodiffusion._report.figures import Chart, charts
from autodiffusion._report.figures.convergence import draw, table
from autodiffusion._report.figures.front import pareto
from autodiffusion._report.figures.time_steps import grids
from autodiffusion._report.run import Run
from autodiffusion._report.style import DARK, LIGHT, styled
from autodiffusion._search.job import Job
from autodiffusion._search.loop import search
from autodiffusion._study.standing import candidates
from autodiffusion._study.study import read_events

FILES = modules("_report.figures")

__all__ = ["copied", "finished"]  # fixtures of the reports' tests


def chart(folder: Path, name: str) -> Chart:
    return next(chart for chart in charts(Run.of(folder)) if chart.name == name)


def axes_of(made: Chart) -> list[Any]:
    with styled():
        return list(made.draw(made.table).axes)


def lines(axes: Any) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    return [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in axes.get_lines()]


def scores(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for event in ledger(folder):
        if event["event"] == "scores":
            for score in event["scores"]:
                yield event, score


# convergence


def convergence(events: list[dict[str, Any]], rising: bool = False) -> Figure:
    rows = [row for event in events if event["event"] == "confirm" for row in event["rows"]]
    return draw(table(list(candidates(events)), rows, "kid", 24), "kid", rising)


def test_the_convergence_shows_every_score_and_the_best(finished: Path) -> None:
    events = read_events(finished / "study.jsonl")
    made = convergence(events)
    dots, best = made.axes[0].get_lines()
    values = [s["value"] for event in events if event["event"] == "scores" for s in event["scores"]]
    np.testing.assert_array_equal(dots.get_ydata(), values)
    np.testing.assert_array_equal(best.get_ydata(), np.minimum.accumulate(values))
    places = np.asarray(dots.get_xdata(), dtype=float)
    assert (np.diff(places) > 0).all()
    assert places[-1] == sum(event["evaluations"] for event in events if event["event"] == "scores")
    # what is on fresh noise has axes of its own
    fresh = [axis.get_ydata()[0] for axis in made.axes[1].get_lines() if len(np.atleast_1d(axis.get_ydata())) == 1]
    assert fresh == [row["scores"]["kid"]["value"] for row in events[-1]["rows"]]
    # of what grows with quality, the best is the largest
    rising = convergence(events[:-1], rising=True)
    np.testing.assert_array_equal(rising.axes[0].get_lines()[1].get_ydata(), np.maximum.accumulate(values))


def test_the_convergence_leaves_out_scores_of_fewer_samples(finished: Path) -> None:
    events = read_events(finished / "study.jsonl")
    first = next(event for event in events if event["event"] == "scores")
    lucky = first | {"samples": 8, "scores": [score | {"value": -1.0} for score in first["scores"]]}
    plain, with_lucky = convergence(events), convergence([lucky, *events])
    for before, after in zip(plain.axes[0].get_lines(), with_lucky.axes[0].get_lines(), strict=True):
        np.testing.assert_array_equal(after.get_ydata(), before.get_ydata())
        # what they cost counts
        np.testing.assert_allclose(np.subtract(after.get_xdata(), before.get_xdata()), first["evaluations"])


# time steps


def test_time_steps_lie_on_the_curve_and_in_lanes(finished: Path) -> None:
    start, *_, confirmed = ledger(finished)
    made = chart(finished, "time_steps")
    upper, lanes = axes_of(made)
    curve, found, *_ = lines(upper)
    np.testing.assert_array_equal(curve, (start["times"], start["log_snr"]))
    np.testing.assert_allclose(found[1], np.interp(found[0], *curve), atol=1e-9)
    named = {row["name"]: [step["t"] for step in row["plan"]["steps"]] for row in confirmed["rows"]}
    labels = [label.get_text() for label in lanes.get_yticklabels()]
    assert labels[: len(named)] == list(named)
    assert "teacher (30 steps)" in labels
    drawn = [line for line in lines(lanes) if len(set(line[1])) == 1 and len(line[0]) > 2]
    for lane, (label, (times, levels)) in enumerate(zip(labels, drawn, strict=True)):
        assert (levels == lane).all()
        if label in named:
            np.testing.assert_array_equal(times, named[label])
    np.testing.assert_array_equal(found[0], named["found"])


@pytest.mark.parametrize("steps", [3, 7])
def test_the_named_grids_are_found_among_the_first_candidates(tmp_path: Path, real_images: Path, steps: int) -> None:
    """Worked out on the schedule as the ledger has it they are those of the schedule itself."""
    names = ["uniform", "linspace", "trailing", "quadratic", "log_snr", "karras", "beta", "ays_sd"]
    settings = of(real_images, steps=steps, starts=names, strategy_options={"population": 9, "generations": 1})
    search(settings, tmp_path / "run")
    run = Run.of(tmp_path / "run")
    known = [tuple(step["t"] for step in row["plan"]["steps"]) for row in run.rows]
    expected = {name: plan.times for name, plan in Job.of(settings).starts.items() if plan.times not in known}
    found = {name: tuple(step["t"] for step in plan["steps"]) for name, plan in grids(run).items()}
    assert len(expected) > 3
    assert found == expected


# occurrence (the paper's figure 5)


def test_the_occurrence_counts_the_best_fifteen(finished: Path) -> None:
    last: dict[str, tuple[float, list[float]]] = {}
    for _, score in scores(finished):
        last[json.dumps(score["plan"])] = (score["value"], [step["t"] for step in score["plan"]["steps"]])
    best = sorted(last.values())[:15]
    assert len(last) > 15
    made = chart(finished, "occurrence")
    assert sorted(made.table.column("t")) == sorted(t for _, times in best for t in times)
    assert made.table.where("rank", 1).column("t") == best[0][1]
    [axes] = axes_of(made)
    counted = np.histogram(made.table.column("t"), np.linspace(0, 99, 51))[0]
    assert [patch.get_height() for patch in axes.patches] == list(counted)
    [(marks, _)] = lines(axes)
    assert list(marks) == best[0][1]


def test_more_samples_rank_before_better_values(copied: Path) -> None:
    def raced(event: dict[str, Any]) -> bool:
        if event.get("generation") == 1:
            event["samples"] = 8
            for score in event["scores"]:
                score["value"] = -5.0
        if event.get("generation") == 2:
            event["anchor"] = 64 * "0"
        return True

    keep(copied, raced)
    ranks = chart(copied, "occurrence").table
    assert ranks.column("samples") == sorted(ranks.column("samples"), reverse=True)
    full = [score["value"] for event, score in scores(copied) if event["generation"] == 0]
    assert ranks.where("samples", 24).column("value")[::3] == sorted(full)
    # what is only a difference from another plan is not ranked
    assert set(ranks.where("samples", 8).column("value")) == {-5.0}
    assert len(set(ranks.column("rank"))) == len(
        {json.dumps(s["plan"]) for e, s in scores(copied) if e["generation"] < 2}
    )


# cost


def test_the_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(4)
    for rising in (False, True):
        points = [(float(x), float(y)) for x, y in rng.integers(0, 9, (40, 2))]
        sign = -1 if rising else 1
        front = [points[i] for i in pareto(points, rising)]
        beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and sign * q[1] <= sign * p[1]}
        assert sorted(front) == sorted(set(points) - beaten)


def test_each_rounds_spending_is_the_ledgers(finished: Path) -> None:
    made = chart(finished, "spending")
    events = [event for event in ledger(finished) if event["event"] == "scores"]
    assert made.table.column("evaluations") == [event["evaluations"] for event in events]
    assert made.table.column("saved") == [event["saved"] for event in events]
    [axes] = axes_of(made)
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == made.table.column("evaluations") + made.table.column("saved")


# layers


LAYERED = {"population": 6, "generations": 5, "parents": 3, "mutations": 3, "crossovers": 2, "stage": 2}
"""Generations enough that layers are left out: the first of each stage moves times alone."""


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory, real_images: Path) -> Path:
    folder = tmp_path_factory.mktemp("layers") / "run"
    given = {
        "model": "small:layered_model",
        "features": "small:features",
        "layers": True,
        "max_cost": "60%",
        "min_steps": 3,
        "strategy_options": LAYERED,
    }
    search(of(real_images, steps=4, **given), folder)
    return folder


def test_the_map_of_layers_is_the_plans(layered: Path) -> None:
    start, *_, confirmed = ledger(layered)
    [plan] = [row["plan"] for row in confirmed["rows"] if row["name"] == "found"]
    made = chart(layered, "layers")
    out = {(step["t"], layer) for step in plan["steps"] for layer in step["skip"]}
    assert out
    places = list(zip(made.table.column("t"), made.table.column("number"), strict=True))
    assert places == [(step["t"], layer["number"]) for step in plan["steps"] for layer in start["layers"]]
    said = {place for place, part in zip(places, made.table.column("part"), strict=True) if part == "left out"}
    assert said == out
    above, field = axes_of(made)
    assert [patch.get_height() for patch in above.patches] == [layer["macs"] for layer in start["layers"]]
    drawn = np.asarray(field.collections[0].get_array()).reshape(len(plan["steps"]), len(start["layers"]))
    assert [(int(i), int(j)) for i, j in np.argwhere(~drawn.astype(bool))] == sorted(
        (i, layer) for i, step in enumerate(plan["steps"]) for layer in step["skip"]
    )


def test_the_front_of_layers_is_in_what_a_sample_costs(layered: Path) -> None:
    made = chart(layered, "front")
    assert made.table.columns[2] == "macs"
    search_rows = made.table.where("noise", "search")
    expected = [(score["cost"]["macs"], score["value"]) for _, score in scores(layered)]
    assert [row[2:4] for row in search_rows.rows] == expected
    fresh = made.table.where("noise", "fresh noise")
    assert fresh.column("macs") == [row["cost"]["macs"] for row in ledger(layered)[-1]["rows"]]
    page = parsed(layered)
    assert sum(alt.startswith("Map of steps by layers") for alt in page.alts) == 1


def test_measured_times_become_the_speed_up(copied: Path) -> None:
    ms = {"found": [7, 7.5, 8], "uniform": [15, 16, 17], "teacher (30 steps)": [70, 75, 80]}
    kept = copied / "sampling_times.json"
    kept.write_text(json.dumps({"device": "abacus", "batch_size": 12, "ms": ms}))
    page = parsed(copied)
    said = "A sample takes 7.5 ms on abacus in batches of 12: 10 times as fast as the teacher (30 steps)."
    assert said in page.text("p")  # uniform steps are as many: they do the same work, whatever the machine did
    cells = {row[0]: row[4] for row in page.rows}
    assert cells["teacher (30 steps)"] == "75 [70, 80]"
    kept.write_text(json.dumps({"device": "abacus", "batch_size": 12, "ms": ms | {"teacher (30 steps)": [7, 7, 7]}}))
    assert "A sample takes 7.5 ms on abacus in batches of 12." in parsed(copied).text("p")
    for damaged in ("", "{}", '{"ms": 3}', '{"device": "cpu", "batch_size": 1, "ms": {"found": [1]}}'):
        kept.write_text(damaged)
        assert "ms a sample" not in parsed(copied).rows[0]
    kept.unlink()
    assert "A sample takes" not in parsed(copied).text("p")


# every file of the room


def test_every_file_is_a_figure_of_some_search(finished: Path, layered: Path) -> None:
    entries = {name: file.figure for name, file in FILES.items()}
    assert len({entry.place for entry in entries.values()}) == len(entries)
    runs = [Run.of(finished), Run.of(layered)]
    for name, entry in entries.items():
        made = [chart for run in runs if (chart := entry.chart(run))]
        assert made, f"{name}: neither search has data for it"
        for chart in made:
            assert chart.name == name
            assert all((chart.title, chart.alt, chart.note, chart.table.rows))
            assert {len(row) for row in chart.table.rows} == {len(chart.table.columns)}
    for run in runs:
        assert [chart.name for chart in charts(run)] == sorted(
            (name for name, entry in entries.items() if entry.chart(run)), key=lambda name: entries[name].place
        )


@pytest.mark.parametrize("name", FILES)
def test_a_figure_is_left_out_of_a_search_that_has_not_begun(name: str, copied: Path) -> None:
    keep(copied, lambda event: False)
    assert FILES[name].figure.chart(Run.of(copied)) is None


# any run


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 1},
        {"steps": 50},
        {"metric": "kl"},
        {"strategy_options": {"population": 1, "generations": 1, "parents": 1}, "starts": ["uniform"]},
        {"metric": "recall"},
        {"model": "small:broken_model"},
    ],
    ids=["1 step", "50 steps", "kl", "one candidate", "rising", "failures"],
)
def test_any_run_has_its_figures(tmp_path: Path, real_images: Path, given: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    search(of(real_images, **given), folder)
    names = {made.name for made in charts(Run.of(folder))}
    assert names >= {"convergence", "time_steps", "occurrence", "spending"}
    assert not names & {"layers", "front"}  # nothing to choose in them
    page = parsed(folder)
    assert len([alt for alt in page.alts if not alt.startswith("Samples")]) == len(names)
    [found] = [row for row in ledger(folder)[-1]["rows"] if row["name"] == "found"]
    metric = given.get("metric", "fid")
    assert f"has {metric} {found['scores'][metric]['value']:.4g}" in page.text("p")


@pytest.mark.parametrize("name", ["$\\frac{$ 日本 & <b>", "long" * 60], ids=["dollar", "long"])
def test_names_leave_room_for_what_is_drawn(copied: Path, name: str) -> None:
    """A dollar sign is one, and a long name does not push the axes out of the figure (matplotlib warns of that)."""

    def rename(event: dict[str, Any]) -> bool:
        if event["event"] == "confirm":
            event["rows"][0]["name"] = name
        return True

    keep(copied, rename)
    report(copied)
    assert save_figures(list(charts(Run.of(copied))), copied / "figures")


# files


def test_files_hold_what_is_drawn(finished: Path, tmp_path: Path) -> None:
    run = Run.of(finished)
    made = list(charts(run))
    files = save_figures(made, tmp_path / "new" / "figures", run)
    names = [chart.name for chart in made]
    assert {path.name for path in files} == {f"{n}.{kind}" for n in names for kind in ("png", "pdf", "csv")} | {
        "samples.png",
        "samples.pdf",
    }
    assert all(path.stat().st_size > 0 for path in files)
    assert sorted(path.name for path in (tmp_path / "new" / "figures").iterdir()) == sorted(p.name for p in files)
    for chart in made:
        with open(tmp_path / "new" / "figures" / f"{chart.name}.csv", newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == chart.table.columns
        assert len(rows) == len(chart.table.rows)
        for row, values in zip(rows, chart.table.rows, strict=True):
            for cell, value in zip(row, values, strict=True):
                if isinstance(value, float):
                    assert float(cell) == value  # with all digits
                else:
                    assert cell == ("" if value is None else str(value))
        with Image.open(tmp_path / "new" / "figures" / f"{chart.name}.png") as image:
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert (tmp_path / "new" / "figures" / f"{chart.name}.pdf").read_bytes().startswith(b"%PDF")


def test_folders_that_cannot_be_are_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder"):
        save_figures(list(charts(Run.of(finished))), tmp_path / "file")


# colours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("behind", ["paper", "tint"])
def test_colours_stand_out(palette: dict[str, str], behind: str) -> None:
    """WCAG 2.2's contrast ratio of text, for the figures' colours as well."""
    paper = luminance(palette[behind])
    for name, colour in palette.items():
        if name not in ("paper", "tint", "rule"):
            light, dark = sorted((luminance(colour), paper), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_the_dark_variant_is_the_light_one_recoloured(finished: Path) -> None:
    from autodiffusion._report.page import drawn

    assert len(set(LIGHT.values())) == len(LIGHT)
    for _, light, dark in drawn(charts(Run.of(finished))):
        import base64

        before, after = (base64.b64decode(url.partition(",")[2]).decode() for url in (light, dark))
        known = set(LIGHT.values())
        colours = set(re.findall(r"#[0-9a-f]{6}", before))
        assert colours <= known
        assert set(re.findall(r"#[0-9a-f]{6}", after)) <= set(DARK.values())


def test_plans_are_named_by_their_digest(finished: Path) -> None:
    [found] = [row for row in ledger(finished)[-1]["rows"] if row["name"] == "found"]
    assert Plan.model_validate(found["plan"]).digest in report(finished).read_text()
