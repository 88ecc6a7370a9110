"""Sigmas for other programs: what they read of them, the way back, and what they leave out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from autodiffusion import NoiseSchedule, Plan
from autodiffusion._cli import main
from autodiffusion._plans.plan import Step
from autodiffusion._plans.published import published
from autodiffusion.export import left_out, sigmas, text

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))


def as_comfyui_reads(line: str) -> list[float]:
    """The numbers that ComfyUI's ManualSigmas finds in a text: signs and decimals, no exponents."""
    return [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", line)]


@pytest.mark.parametrize(
    ("name", "levels"),  # as ComfyUI's AlignYourStepsScheduler has them at the printed times, and 0 at the end
    [
        ("ays/sd/10", "14.6146412293 6.4745760956 3.8636745985 2.6946151520 1.8841921177 1.3943805092 0.9642583904 "
         "0.6523686016 0.3977456272 0.1515232662 0"),
        ("ays/sdxl/10", "14.6146412293 6.3184485287 3.7681790315 2.1811480769 1.3405244945 0.8620721141 0.5550693289 "
         "0.3798540708 0.2332364134 0.1114188177 0"),
    ],
)  # fmt: skip
def test_sigmas_are_those_of_comfyui(name: str, levels: str) -> None:
    found = as_comfyui_reads(text(sigmas(published()[name], SCHEDULES["scaled_linear"])))
    assert found == pytest.approx([float(level) for level in levels.split()], rel=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_sigmas_are_those_of_diffusers() -> None:
    stock = EulerDiscreteScheduler(beta_schedule="linear")
    stock.set_timesteps(timesteps=[926, 690, 424, 153])
    found = sigmas(published()["adm-g/imagenet64/4"], SCHEDULES["linear"])
    assert found == pytest.approx(stock.sigmas.tolist(), rel=1e-4)  # theirs are products of float32 betas


@every_schedule
@settings(max_examples=30)
@given(times=st.sets(st.floats(0, 999), min_size=1, max_size=20), clean=st.booleans())
def test_there_and_back(schedule: NoiseSchedule, times: set[float], clean: bool) -> None:
    nodes = sorted({round(t, 2) for t in times}, reverse=True)
    plan = Plan.of("ddim", nodes) if clean or len(nodes) == 1 else Plan.of("ddim", nodes[:-1], end=nodes[-1])
    found = as_comfyui_reads(text(sigmas(plan, schedule)))
    assert len(found) == len(plan.steps) + 1
    assert (found[-1] == 0) == (plan.end is None)
    back = schedule.time_at(-np.log([value for value in found if value]))
    np.testing.assert_allclose(back, nodes, atol=1e-3)


@given(value=st.floats(1e-30, 1e30))
def test_no_exponents(value: float) -> None:
    assert re.fullmatch(r"\d+\.\d+, 0\.0", text([value, 0.0]))
    assert as_comfyui_reads(text([value, 0.0])) == [pytest.approx(value, rel=1e-6), 0.0]


def test_what_sigmas_leave_out() -> None:
    assert left_out(Plan.of("ddim", [5, 2], solver_options={"clip": False, "eta": 0.0})) is None
    assert left_out(Plan.of("euler", [5, 2])) is None
    assert left_out(Plan.of("ddim", [5], solver_options={"clip": True})) == "solver ddim (clip=True)"
    assert left_out(Plan.of("dpm_solver++", [5], solver_options={"order": 2})) == "solver dpm_solver++ (order=2)"
    steps = (Step(t=5, params={"noise": 1.2}, skip=frozenset({3})), Step(t=2, params={"noise": 1.1}))
    told = "solver gls, the free numbers of 2 steps, the layers left out at 1 step"
    assert left_out(Plan(solver="gls", steps=steps)) == told


# On the command line

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``autodiffusion`` with these arguments in an empty folder: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def command(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autodiffusion", *line.split()])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return command


def test_a_grid_is_printed_as_it_is(run: Run) -> None:
    levels = "14.61464, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0\n"
    assert run("plans ays_sd:10 --sigmas --schedule scaled_linear") == (0, levels, "")


def test_a_plan_is_told_what_is_left_out(run: Run) -> None:
    status, out, err = run("plans adm-g/imagenet64/4/layers --sigmas --schedule cosine")
    assert (status, len(as_comfyui_reads(out)), out.count("\n")) == (0, 5, 1)
    told = "not solver ddim (clip=True), the layers left out at 1 step"
    assert err == f"autodiffusion: sigmas carry the plan's times alone, {told}\n"


def test_the_schedule_of_a_model(run: Run) -> None:
    Plan.of("ddim", [900, 500], solver_options={"clip": False}).save("own.json")
    assert run("plans own.json --sigmas --model mnist") == run("plans own.json --sigmas --schedule cosine")


def test_json_and_another_number_of_steps(run: Run) -> None:
    Plan.of("ddim", [900, 500], solver_options={"clip": False}).save("own.json")
    assert run("plans own.json --sigmas --model adm/imagenet64") == (
        2,
        "",
        "autodiffusion: --model adm/imagenet64: an adm model needs files that this verb does not take; give the name "
        "of its noise schedule instead, --schedule cosine for ImageNet 64 and linear for LSUN\n",
    )
    status, out, err = run("plans own.json --resample 3 --out three.json --sigmas --schedule linear --json")
    assert (status, err) == (0, "")
    found, plan = json.loads(out), Plan.load("three.json")
    assert Plan.model_validate(found["plan"]) == plan
    assert found["sigmas"] == sigmas(plan, SCHEDULES["linear"])
    assert len(found["sigmas"]) == 4
