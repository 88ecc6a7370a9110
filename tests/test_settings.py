"""Settings: presets, YAML and back, and one line for everything that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autodiffusion._errors import InputError
from autodiffusion._plans.grids import NAMED
from autodiffusion._study.settings import PRESETS, RUNNING, Settings, read_yaml

NEEDED: dict[str, Any] = {"model": "mnist", "steps": 4}


def of(**given_settings: Any) -> Settings:
    return Settings.of(**{**NEEDED, **given_settings})


def refused(**given_settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        of(**given_settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# presets


def test_default_preset() -> None:
    settings, preset = of(), PRESETS["default"]
    assert (settings.preset, settings.solver, settings.metric) == ("default", "ddim", "fid")
    assert (settings.noise, settings.strategy, settings.samples) == ("common", "ladder", 500)
    assert (settings.seed, settings.budget, settings.teacher, settings.gap) == (0, None, 0, 1)
    assert set(settings.starts) <= set(NAMED)
    assert settings.strategy_options == {}
    filled = {key: value for key, value in preset.items() if key != "evolution"}
    assert {key: getattr(settings, key) for key in filled} == filled
    assert filled.keys() == PRESETS["paper"].keys() - {"evolution"}


def test_paper_preset_is_the_released_configuration() -> None:
    settings = of(preset="paper")
    assert (settings.noise, settings.samples, settings.confirm_samples) == ("fresh", 5000, 50_000)
    assert settings.strategy == "evolution"
    assert settings.starts == ["uniform"]
    assert settings.finalists == 1  # the best of the search is the result
    assert settings.strategy_options == {}  # the strategy's own defaults, which are the paper's


def test_what_is_given_comes_before_the_preset() -> None:
    settings = of(preset="paper", samples=30, starts=[], strategy_options={"population": 8})
    assert (settings.samples, settings.starts, settings.strategy_options) == (30, [], {"population": 8})
    before = dict(PRESETS["default"]["evolution"])
    assert of(strategy="evolution").strategy_options == before
    settings = of(strategy="evolution", strategy_options={"population": 8})
    assert settings.strategy_options == {**before, "population": 8}
    assert PRESETS["default"]["evolution"] == before != settings.strategy_options


def test_options_of_evolution_are_for_evolution() -> None:
    for preset in PRESETS:
        assert of(preset=preset, strategy="ladder").strategy_options == {}
        assert of(preset=preset, strategy="random").strategy_options == {}
    assert of(strategy="random", strategy_options={"candidates": 9}).strategy_options == {"candidates": 9}


def test_none_is_not_given() -> None:
    assert of(samples=None, preset=None, seed=None, strategy_options=None) == of()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        setattr(of(), "samples", 3)  # noqa: B010


# YAML

names = st.sampled_from(["ddim", "a.b:c", "10", "true", "größer", "a: b", "'", "1e3", "null"])
plain = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | names
counts = st.integers(1, 10**6)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "preset": st.sampled_from(list(PRESETS)),
            "model": names,
            "solver": names,
            "solver_options": st.dictionaries(names, plain, max_size=3),
            "free_end": st.booleans(),
            "metric": names,
            "reference": names,
            "samples": st.integers(2, 10**6),
            "noise": st.sampled_from(["common", "fresh"]),
            "seed": st.integers(0, 2**63 - 1),
            "strategy": st.sampled_from(["evolution", "ladder", "random"]),
            "strategy_options": st.dictionaries(names, plain, max_size=3),
            "starts": st.lists(st.sampled_from(list(NAMED)), max_size=3),
            "budget": counts,
            "guidance_scale": st.floats(allow_nan=False, allow_infinity=False),
            "threads": st.integers(0, 64),
        },
    )
)
def test_what_is_dumped_is_read(given_settings: dict[str, Any]) -> None:
    settings = of(**given_settings)
    again = Settings.of(**yaml.safe_load(settings.dump()))
    assert again == settings
    assert again.difference(settings) is None
    assert again.dump() == settings.dump()
    assert {name: getattr(settings, name) for name in given_settings if name != "strategy_options"} == {
        name: value for name, value in given_settings.items() if name != "strategy_options"
    }


def test_dump_is_for_people() -> None:
    lines = of(solver_options={"eta": 0.5}).dump().splitlines()
    assert lines[:3] == ["model: mnist", "steps: 4", "preset: default"]  # in the order of the fields
    assert "  eta: 0.5" in lines


def test_read_yaml(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("model: größer\nsteps: 4\nsolver_options: {eta: 0.5}\n", encoding="utf-8")
    assert read_yaml(file) == {"model": "größer", "steps": 4, "solver_options": {"eta": 0.5}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model: [mnist", "is not YAML ("),
        (b"model: !!python/object/apply:os.getcwd []", "is not YAML ("),
        (b"- model", "is not a mapping of option names to values"),
        (b"", "is not a mapping of option names to values"),
        (b"1: 2", "is not a mapping of option names to values"),
        (b"\xff\xfe\x00", "cannot be read (not a text file)"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "search.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: {reason}")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "x.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError) as caught:
            read_yaml(path)
        assert str(caught.value) == f"{path}: cannot be read ({reason})"


# faults


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sampels", "samples"),
        ("solver_option", "solver_options"),
        ("stpes", "steps"),
        ("confirm-samples", "confirm_samples"),
    ],
)
def test_unknown_keys(key: str, meant: str) -> None:
    message = refused(**{key: 3})
    assert message.startswith(f"settings: {key}: unknown key (did you mean '{meant}'?)")


@pytest.mark.parametrize("key", ["where", "cls", "self"])
def test_keys_that_are_names_of_our_own(key: str) -> None:
    assert refused(**{key: 3}).startswith(f"settings: {key}: unknown key")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "papr"}, "settings: preset 'papr' is unknown (did you mean 'paper'? known: default, paper)"),
        ({"preset": ["paper"]}, "settings: preset '['paper']' is unknown"),
        ({"starts": ["uniform", "kras"]}, "settings: starts: grid 'kras' is unknown (did you mean 'karras'?"),
        ({"starts": "uniform"}, "settings: starts: 'uniform' should be a valid list"),
        ({"starts": [3]}, "settings: starts[0]: 3 should be a valid string"),
        ({"noise": "comon"}, "settings: noise: 'comon' should be 'common' or 'fresh'"),
        ({"dtype": "float64"}, "settings: dtype: 'float64' should be 'float32', 'float16' or 'bfloat16'"),
        ({"samples": 1}, "settings: samples: 1 should be at least 2"),
        ({"samples": 2.5}, "settings: samples: 2.5 should be a valid integer"),
        ({"samples": "many"}, "settings: samples: 'many' should be a valid integer"),
        ({"confirm_samples": 0}, "settings: confirm_samples: 0 should be at least 2"),
        ({"budget": 0}, "settings: budget: 0 should be at least 1"),
        ({"finalists": 0}, "settings: finalists: 0 should be at least 1"),
        ({"gap": 0}, "settings: gap: 0 should be at least 1"),
        ({"batch_size": 0}, "settings: batch_size: 0 should be at least 1"),
        ({"teacher": -1}, "settings: teacher: -1 should be at least 0"),
        ({"threads": -1}, "settings: threads: -1 should be at least 0"),
        ({"seed": -1}, "settings: seed: -1 should be at least 0"),
        ({"seed": 2**63}, "settings: seed: 9223372036854775808 should be less than"),
        ({"solver": 3}, "settings: solver: 3 should be a valid string"),
        ({"solver_options": 3}, "settings: solver_options: 3 should be a valid dictionary"),
        (
            {"solver_options": {"eta": [1]}},
            "settings: solver_options.eta: [1] is not true or false, a number or a text",
        ),
        ({"solver_options": {"eta": float("nan")}}, "settings: solver_options.eta: nan is not a finite number"),
        ({"strategy_options": 3}, "settings: strategy_options: 3 should be a valid dictionary"),
        ({"strategy_options": {1: 2}}, "settings: strategy_options[1].[key]: 1 should be a valid string"),
        ({"strategy_options": {"parents": None}}, "settings: strategy_options.parents: None is not true or false"),
    ],
)
def test_values_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    assert refused(**values).startswith(message)


def test_what_is_missing_and_where() -> None:
    with pytest.raises(InputError, match=r"^run/config.yaml: steps: is missing; give it$"):
        Settings.of("run/config.yaml", model="mnist")
    with pytest.raises(InputError, match=r"^run/config.yaml: preset 'x' is unknown"):
        Settings.of("run/config.yaml", model="mnist", steps=4, preset="x")


# differences


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"samples": 500}, "samples: 250 there, 500 here"),
        ({"seed": 3}, "seed: 0 there, 3 here"),
        ({"free_end": False}, "free_end: None there, False here"),
        ({"metric": "kid", "seed": 3}, "metric: fid there, kid here"),  # the first of them
        ({"solver_options": {"eta": 1.0}}, "solver_options: {} there, {'eta': 1.0} here"),
    ],
)
def test_other_searches_differ(change: dict[str, Any], difference: str) -> None:
    changed = of(**{"samples": 250, **change})
    assert changed.difference(of(samples=250)) == difference
    assert changed.difference(changed) is None


def test_how_it_runs_is_no_difference() -> None:
    running = {"batch_size": 7, "device": "cuda", "threads": 3, "cache_mb": 5}
    running |= {"workers": 2, "ray_address": "auto", "timeout": 60.0}
    assert set(running) == set(RUNNING)
    assert of(**running).difference(of()) is None
    assert of(**running) != of()


def test_a_misspelt_key_is_named_before_the_one_it_leaves_out() -> None:
    with pytest.raises(InputError, match=r"stepps: unknown key .did you mean 'steps'"):
        Settings.of("run.yaml", model="mnist", stepps=4)
