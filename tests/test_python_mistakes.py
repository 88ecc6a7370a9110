"""Plausible calls from Python: paths are taken, what cannot be used is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch

from autodiffusion import InputError, Model, NoiseSchedule, Plan, Settings, load_model, load_plan, sample, search

PLAN = Plan.of("ddim", [60.0, 20.0])
NARROW = Model(lambda x, t, label: x[:, :1], NoiseSchedule.cosine(100), (3, 8, 8))
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "batch of none": (lambda: sample(small.model(), PLAN, 4, batch_size=0), "batch_size = 0"),
    "seed below 0": (lambda: sample(small.model(), PLAN, 4, seed=-1), "seed = -1"),
    "too few channels": (lambda: sample(NARROW, PLAN, 4), r"returns \[4, 1, 8, 8\] for x \[4, 3, 8, 8\]"),
    "a torch dtype": (lambda: load_model("mnist", dtype=torch.float16), "did you mean 'float16'"),  # type: ignore[arg-type]
    "times of words": (lambda: Plan.of("ddim", ["a"]), "plan: times: .*'a'; give numbers"),  # type: ignore[list-item]
    "too few sets": (lambda: PLAN.leaving([frozenset({1})]), "1 sets of layers for 2 steps"),
    "plan in no folder": (lambda: PLAN.save("no/such/x.json"), "cannot be written"),
    "plan over a folder": (lambda: PLAN.save("."), "cannot be written"),
    "no settings": (lambda: search({"model": "mnist"}, "run"), r"make settings with Settings.of"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("call", "told"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_used_is_one_line(
    call: Callable[[], object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_paths_are_taken_where_names_are(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json", small.model()) == PLAN
    settings = Settings.of(model=Path("a"), steps=4, reference=Path("b"), starts=[Path("c.json")])
    assert (settings.model, settings.reference, settings.starts) == ("a", "b", ["c.json"])
    with pytest.raises(InputError, match="no-such-folder"):
        load_model(tmp_path / "no-such-folder")


def test_a_plan_of_an_unknown_option_does_not_blame_the_model(tmp_path: Path) -> None:
    Plan.of("ddim", [60.0], solver_options={"etaa": 1.0}).save(tmp_path / "etaa.json")
    with pytest.raises(InputError, match="did you mean 'eta'") as caught:
        load_plan(tmp_path / "etaa.json", small.model())
    assert "does not fit" not in str(caught.value)
