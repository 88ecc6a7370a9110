"""What looks on while a search runs: it changes nothing, says everything once, and does not hold the search up."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autodiffusion import InputError, Plan, Settings
from autodiffusion._names import resolve
from autodiffusion._search.candidates import standings
from autodiffusion._search.loop import Result, explore, search
from autodiffusion._study.standing import Standing, Tally
from autodiffusion._study.study import CONFIG, LEDGER, PLAN, Study, read_events
from autodiffusion._views import watch
from autodiffusion._views.progress import Progress, Quiet
from autodiffusion._views.tensorboard import FOLDER, LINES

SHORT = {"explorations": 1, "children": 4, "elite": 2, "family": False, "step": 0.05, "smallest_step": 0.04}
GIVEN: dict[str, Any] = {"model": "small:model", "features": "small:features", "steps": 3, "samples": 40}
GIVEN |= {"confirm_samples": 60, "strategy": "ladder", "strategy_options": SHORT}
Search = Callable[..., Result]
Scalars = dict[str, list[tuple[int, float]]]


@pytest.fixture
def run(plain: None, real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Searches the small model, with a report in mid-search that costs nothing, as often as it may."""
    monkeypatch.setattr(watch, "report", lambda folder: None)
    monkeypatch.setattr(watch, "REFRESH", 0.0)
    monkeypatch.setattr(watch, "SHARE", 1e9)

    def searched(folder: str = "run", progress: Quiet | None = None, **given: Any) -> Result:
        return search(Settings.of(**GIVEN | {"reference": str(real_images)} | given), tmp_path / folder, progress)

    return searched


def written(folder: Path) -> tuple[Scalars, int]:
    """The scalars by tag, as TensorBoard reads them, and how many pictures there are."""
    scalars: Scalars = {}
    pictures = 0
    # one after the other as they were begun: TensorBoard takes files of the same second in any order
    for file in sorted((folder / FOLDER).iterdir(), key=lambda file: int(file.suffix[1:])):
        read = EventAccumulator(str(file), {"scalars": 0, "images": 0}).Reload()
        for tag in read.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend((entry.step, entry.value) for entry in read.Scalars(tag))
        pictures += sum(len(read.Images(tag)) for tag in read.Tags()["images"])
    return scalars, pictures


class Interrupted(Quiet):
    """Stops a search, as from the keyboard, when so many candidates are scored."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def stand(self, standing: Standing) -> None:
        if standing.candidates >= self.candidates:
            raise KeyboardInterrupt


# nothing depends on it


def test_a_search_that_is_looked_at_finds_the_same(
    run: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "REFRESH", 1e9)
    quiet = run("quiet")
    monkeypatch.setattr(watch, "REFRESH", 0.0)
    drawn: list[Path] = []
    monkeypatch.setattr(watch, "report", drawn.append)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    with Progress() as progress:
        assert run("shown", progress, tensorboard=True) == quiet
    assert "\x1b[" in capsys.readouterr().err  # there was a live view
    assert set(drawn) == {tmp_path / "shown"}
    assert len(drawn) > 5
    for name in (LEDGER, PLAN):
        assert (tmp_path / "shown" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes()
    assert not (tmp_path / "quiet" / FOLDER).exists()


def test_what_cannot_be_drawn_is_left_out_with_one_warning(
    run: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def fail(folder: Path) -> None:
        tries.append(folder)
        raise RuntimeError("no room")

    result = run("before")
    monkeypatch.setattr(watch, "report", fail)
    with pytest.warns(UserWarning, match="report: RuntimeError.'no room'.; the search goes on without it") as caught:
        assert run("after") == result
    assert len(caught) == len(tries) == 1
    monkeypatch.setattr(watch, "report", lambda folder: None)
    monkeypatch.setattr(watch, "sample", lambda *_: fail(tmp_path))
    with pytest.warns(
        UserWarning, match="TensorBoard's samples: RuntimeError.'no room'.; the search goes on"
    ) as caught:
        assert run("pictures", tensorboard=True) == result
    assert len(caught) == 1
    scalars, pictures = written(tmp_path / "pictures")
    assert scalars["search/evaluations"][-1][1] == result.search_cost.evaluations  # scalars go on
    assert pictures == 0


# how it stands


def test_a_tally_is_what_the_ledger_adds_up_to(run: Search, tmp_path: Path) -> None:
    result = run(metric="inception_score")  # which is better when it is higher
    events, settings = read_events(tmp_path / "run" / LEDGER), Study.open(tmp_path / "run").settings
    tally = Tally(settings)
    for count in range(len(events) + 1):
        standing = tally.standing(events[:count])
        valued = [event for event in events[:count] if not event.get("extrapolated")]  # first looks are no values
        ranked = standings(valued, resolve("metrics", "inception_score"))
        if ranked:
            plan, (samples, loss) = next(iter(ranked.items()))
            assert (standing.plan, standing.samples, standing.value) == (plan, samples, -loss)
        else:
            assert standing.plan is None
            assert standing.best == standing.steps == ""
    scored = [e for e in events if e["event"] == "scores"]
    assert standing.candidates == len({Plan.model_validate(s["plan"]) for e in scored for s in e["scores"]})
    assert standing.rounds == len(scored)
    assert (standing.evaluations, standing.saved) == (result.search_cost.evaluations, result.search_cost.saved)
    assert tally.standing(events) == standing  # no event counts twice


def test_a_plan_that_costs_too_much_is_never_the_best(run: Search, tmp_path: Path) -> None:
    run()
    settings, events = Study.open(tmp_path / "run").settings, read_events(tmp_path / "run" / LEDGER)
    best = Tally(settings).standing(events)
    for event in events:
        for entry in event.get("scores", ()):
            entry["allowed"] = Plan.model_validate(entry["plan"]) != best.plan
    assert Tally(settings).standing(events).plan not in (None, best.plan)


# the report in mid-search


def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = [0.0], []
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])

    def draw() -> None:
        drawn.append(now[0])
        now[0] += cost

    cost, pace = 2.0, watch.Pace()
    while now[0] < 10_000:
        pace(draw)
        now[0] += 1.0
    assert drawn[0] == watch.REFRESH
    assert cost * len(drawn) <= 0.02 * 10_000 + cost
    assert len(drawn) > 90
    cost, pace = 0.0, watch.Pace()  # what costs nothing is done every REFRESH seconds all the same
    drawn.clear()
    while now[0] < 20_000:
        pace(draw)
        now[0] += 1.0
    assert len(drawn) == pytest.approx(10_000 / watch.REFRESH, rel=0.02)


def test_the_report_can_be_opened_in_mid_search(
    real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "REFRESH", 0.0)
    settings = Settings.of(**GIVEN | {"reference": str(real_images)})
    with pytest.raises(KeyboardInterrupt):
        search(settings, tmp_path / "run", Interrupted(20))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not finished" in page
    assert not (tmp_path / "run" / PLAN).exists()


# TensorBoard


def test_tensorboard_shows_what_the_ledger_says(run: Search, tmp_path: Path) -> None:
    result = run(tensorboard=True)
    scalars, pictures = written(tmp_path / "run")
    frame = Study.open(tmp_path / "run").dataframe()
    for samples, scored in frame[frame["own"]].groupby("samples"):
        first = scored.drop_duplicates("plan")  # asked for again, it is no news
        tag = f"fid_of_{samples}_samples"
        assert [value for _, value in scalars[f"candidates/{tag}"]] == pytest.approx(list(first["fid"]), rel=1e-6)
        falls = first["fid"][first["fid"] == first["fid"].cummin()]
        assert [value for _, value in scalars[f"best/{tag}"]] == pytest.approx(list(falls), rel=1e-6)
    spent = frame.groupby("round")["spent"].last()
    assert [step for step, _ in scalars["search/round"]] == list(spent)
    assert scalars["search/evaluations"][-1] == (result.search_cost.evaluations,) * 2
    assert scalars["search/saved_by_sharing"][-1][1] == result.search_cost.saved
    for row in result.rows:
        [(_, value)] = scalars[f"confirmed_fid/{row['name']}"]
        assert value == pytest.approx(row["scores"]["fid"]["value"], rel=1e-6)
    assert pictures > 1


@pytest.mark.parametrize("damage", [0, 1, 900])
def test_nothing_is_written_twice(run: Search, tmp_path: Path, damage: int) -> None:
    """Interrupted, killed while it wrote, and called again when all is done."""
    result = run("whole", tensorboard=True)
    whole, _ = written(tmp_path / "whole")
    for candidates in (15, 40):
        with pytest.raises(KeyboardInterrupt):
            run("cut", Interrupted(candidates), tensorboard=True)
        if damage:
            file = max((tmp_path / "cut" / FOLDER).iterdir(), key=lambda file: int(file.suffix[1:]))
            file.write_bytes(file.read_bytes()[:-damage])
    assert run("cut", tensorboard=True) == result
    assert written(tmp_path / "cut")[0] == whole
    run("cut", tensorboard=True)
    assert written(tmp_path / "cut")[0] == whole
    assert len(whole[LINES]) == len(read_events(tmp_path / "whole" / LEDGER)) - 1  # all but the first


def test_tensorboard_can_be_asked_for_later(run: Search, tmp_path: Path) -> None:
    run("whole", tensorboard=True)
    run("late")
    shutil.copytree(tmp_path / "late", tmp_path / "cut")
    lines = (tmp_path / "cut" / LEDGER).read_bytes().splitlines(keepends=True)
    (tmp_path / "cut" / LEDGER).write_bytes(b"".join(lines[: len(lines) // 2]))
    for name in ("late", "cut"):
        run(name, tensorboard=True)
        assert written(tmp_path / name)[0] == written(tmp_path / "whole")[0]


def test_exploring_is_looked_at_too(run: Search, real_images: Path, tmp_path: Path) -> None:
    settings = Settings.of(**GIVEN | {"reference": str(real_images), "tensorboard": True, "budget": 9000})
    explore(settings, tmp_path / "run", 0.3)
    first, _ = written(tmp_path / "run")
    search(settings, tmp_path / "run")
    scalars, _ = written(tmp_path / "run")
    assert all(scalars[tag][: len(values)] == values for tag, values in first.items())
    assert 0 < first["search/evaluations"][-1][1] <= 2700 < scalars["search/evaluations"][-1][1] <= 9000


def test_tensorboard_is_asked_for_by_name_before_anything_is_written(
    run: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        InputError, match=r"^tensorboard: .*; install it with: pip install 'autodiffusion\[tensorboard\]'$"
    ):
        run(tensorboard=True)
    assert not (tmp_path / "run").exists()
    run()


def test_the_command_has_it_as_an_option(run: Search, real_images: Path, tmp_path: Path, command: Any) -> None:
    given = "search small:model --features small:features --steps 3 --samples 40 --confirm-samples 60 --budget 1000"
    line = f"{given} --reference {real_images} --out run"
    assert command(f"{line} --tensorboard").status == 0
    assert written(tmp_path / "run")[0]["search/evaluations"]
    assert "tensorboard: true" in (tmp_path / "run" / CONFIG).read_text()
    assert command(line).status == 0  # which is the same search
