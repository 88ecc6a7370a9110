"""Flow matching: its noise schedule, grids and solvers against diffusers and closed forms, and its models."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st
from rooms import DETERMINISTIC
from torch import Tensor, nn
from typer.testing import CliRunner

import autodiffusion
from autodiffusion import Model, NoiseSchedule, Plan, Settings
from autodiffusion._cli import app
from autodiffusion._errors import InputError
from autodiffusion._plans.flow import FlowSchedule, is_flow
from autodiffusion._plans.grids import ALIGNED, NAMED, fitting, grid
from autodiffusion._report.figures import occurrence
from autodiffusion._report.figures.time_steps import grids
from autodiffusion._report.run import Run
from autodiffusion._sampling.sampling import sample
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.export import sigmas, text
from autodiffusion.solvers._base import build, solve

FLOW = NoiseSchedule.flow()
SD3: dict[str, Any] = {"shift": 3.0}
FLUX: dict[str, Any] = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
SCHNELL: dict[str, Any] = {"shift": 1.0}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def apart(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).abs().max() / reference.abs().max())


def bent(x: Tensor, t: float) -> Tensor:
    """A velocity."""
    return torch.sin(1.3 * x + t / 300) - 0.4 * x


# The schedule


@given(t=st.floats(0.01, 999.99))
def test_signal_and_noise_are_shares(t: float) -> None:
    s = t / 1000
    assert FLOW.sigma(t) == pytest.approx(s, rel=1e-12)
    assert FLOW.alpha(t) == pytest.approx(1 - s, rel=1e-10)
    assert FLOW.log_alpha(t) == pytest.approx(math.log(1 - s), rel=1e-10, abs=1e-15)
    assert FLOW.log_snr(t) == pytest.approx(math.log((1 - s) / s), rel=1e-9, abs=1e-12)
    assert float(FLOW.time_at(FLOW.log_snr(t))) == pytest.approx(t, rel=1e-9)
    assert float(FLOW.time_at_log_level(FLOW.log_level(t))) == pytest.approx(t, rel=1e-12)
    assert (FLOW.scale(t), FLOW.scale(None)) == (1, 1)


def test_the_ends() -> None:
    assert [f(None) for f in (FLOW.alpha, FLOW.sigma, FLOW.log_snr, FLOW.log_alpha)] == [1, 0, math.inf, 0]
    assert (FLOW.first, FLOW.last, FLOW.noisiest, len(FLOW)) == (1, 1000, 999, 1000)
    assert all(math.isfinite(FLOW.log_snr(t)) for t in (0, 1, 1000))
    assert FLOW.log_snr(1000) < FLOW.log_snr(999.99) < FLOW.log_snr(0.01) < FLOW.log_snr(0)
    assert math.exp(FLOW.log_level(1000)) == 1
    assert math.exp(FLOW.log_level(None)) == 0
    for t in (-0.001, 1000.001, math.nan):
        with pytest.raises(InputError, match=r"outside the model's time steps 1 to 1000"):
            FLOW.alpha(t)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_bad_shifts(shift: float) -> None:
    with pytest.raises(InputError, match="is not above 0; 1 is none") as caught:
        NoiseSchedule.flow(shift=shift)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_too_few_steps(steps: int) -> None:
    with pytest.raises(InputError, match="T of at least 2"):
        NoiseSchedule.flow(steps)


def test_the_shift_moves_grids_and_not_the_noise() -> None:
    for t in (3.5, 500, 1000):
        assert NoiseSchedule.flow(shift=3.0).sigma(t) == FLOW.sigma(t)


# Grids


def stock(config: dict[str, Any], count: int, **options: Any) -> np.ndarray[Any, Any]:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(count, **options)
    assert scheduler.sigmas[-1] == 0
    return scheduler.timesteps.double().numpy()


def times(name: str, count: int, schedule: NoiseSchedule) -> np.ndarray[Any, Any]:
    return np.array(grid(name, count, schedule))


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.7, 7.0])
@pytest.mark.parametrize("count", [1, 2, 4, 28])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linspace", {}),
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
        ("beta_sigmas", {"use_beta_sigmas": True}),
    ],
)
def test_grids_of_diffusers_flow_schedulers(name: str, options: dict[str, Any], count: int, shift: float) -> None:
    if count == 1 and options:
        return  # of one step theirs has no range to spread
    config = {"shift": shift, **options}
    schedule = FlowSchedule.from_scheduler(dict(FlowMatchEulerDiscreteScheduler(**config).config))
    # a shift below 1 leads below the first training step, where no step of ours may stand
    expected = np.maximum(stock(config, count), 1)
    np.testing.assert_allclose(times(name, count, schedule), expected, rtol=0, atol=1000 * 1e-6)


@pytest.mark.parametrize("count", [1, 4, 28, 50])
@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("name", ["uniform", "trailing"])
def test_grids_of_flux_at_a_resolution(name: str, kind: str, tokens: int, count: int) -> None:
    config = FLUX | {"time_shift_type": kind}
    # as its pipeline begins; the dev model has these shifts, the schnell one has none
    expected = stock(config, count, sigmas=np.linspace(1.0, 1 / count, count), mu=calculate_shift(tokens))
    schedule = FlowSchedule.from_scheduler(config, tokens)
    np.testing.assert_allclose(times(name, count, schedule), expected, rtol=0, atol=1000 * 1e-6)
    even = FlowSchedule.from_scheduler(SCHNELL, tokens)
    expected = stock(SCHNELL, count, sigmas=np.linspace(1.0, 1 / count, count))
    np.testing.assert_allclose(times(name, count, even), expected, rtol=0, atol=1000 * 1e-6)


@pytest.mark.parametrize("tokens", [256, 4096])
def test_dynamic_shifting_without_given_sigmas(tokens: int) -> None:
    expected = stock(FLUX, 28, mu=calculate_shift(tokens))  # as Stable Diffusion 3's pipeline asks
    got = times("linspace", 28, FlowSchedule.from_scheduler(FLUX, tokens))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1000 * 1e-6)


def test_heun_has_the_same_grid() -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    asked = scheduler.timesteps[[0, *range(1, 11, 2)]]
    np.testing.assert_allclose(times("linspace", 6, NoiseSchedule.flow(shift=3.0)), asked, rtol=0, atol=1000 * 1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("count", [1, 2, 10, 100, 1000])
def test_every_named_grid_falls(name: str, count: int, shift: float) -> None:
    got = times(name, count, NoiseSchedule.flow(shift=shift))
    assert len(got) == count
    assert (np.diff(got) < 0).all()
    assert 1 <= got[-1] <= got[0] <= 1000
    if name not in (*ALIGNED, "log_snr", "lu"):  # pure noise stands at T alone
        assert got[0] == 1000


def test_the_log_snr_grid_is_even_and_begins_with_a_signal() -> None:
    for shift in (1.0, 3.0):
        schedule = NoiseSchedule.flow(shift=shift)
        lambdas = [schedule.log_snr(t) for t in grid("log_snr", 9, schedule)]
        np.testing.assert_allclose(np.diff(lambdas), np.diff(lambdas)[0])
        assert lambdas[0] == pytest.approx(FLOW.log_snr(999) - math.log(shift))


def test_align_your_steps_keeps_its_noise_over_signal() -> None:
    got = [math.exp(-FLOW.log_snr(t)) for t in grid("ays_sd", 10, FLOW)]
    assert got[:2] == pytest.approx([14.615, 6.475])
    assert set(fitting(lambda name: grid(name, 4, FLOW))) == set(NAMED)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dynamic_shifting": True, "time_shift_type": "quadratic"}, "time_shift_type 'quadratic' is unknown"),
        ({"invert_sigmas": True}, "invert_sigmas is set"),
        ({"shift": -3.0}, "shift = -3 is not above 0"),
    ],
)
def test_schedulers_that_cannot_be_read(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        FlowSchedule.from_scheduler(config)
    assert "\n" not in str(caught.value)


def test_which_schedulers_are_of_flow_matching() -> None:
    assert is_flow({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert is_flow({}, "FlowMatchHeunDiscreteScheduler")
    assert is_flow({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True})
    assert is_flow({"prediction_type": "flow_prediction"})
    assert not is_flow({"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}, "DDIMScheduler")
    of_solver = FlowSchedule.from_scheduler({"use_flow_sigmas": True, "flow_shift": 5.0})
    assert isinstance(of_solver, FlowSchedule)
    assert of_solver.shift == 5


# Solvers


def walked(scheduler: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(bent(x, float(t)), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_ddim_is_euler_in_sigma(name: str, count: int) -> None:
    falling = [*sorted(np.random.default_rng(count).uniform(2, 999, count - 1), reverse=True)]
    nodes = np.array([1000, *falling, 0]) / 1000
    x = expected = normal(2, 5)
    for s, stop in pairwise(nodes):
        expected = expected + (stop - s) * bent(expected, 1000 * s)
    got = solve(build(name, FLOW), bent, x, [1000.0, *falling])
    assert apart(got, expected) < 3e-6  # what the floor of the signal at T leaves out
    single = solve(build(name, FLOW), bent, x.float(), [1000.0, *falling])
    assert apart(single.double(), expected) < 1e-5


@pytest.mark.parametrize("count", [1, 2, 5, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_and_heun_of_diffusers(count: int, shift: float) -> None:
    x, schedule = normal(2, 5), NoiseSchedule.flow(shift=shift)
    for scheduler, name in (
        (FlowMatchEulerDiscreteScheduler(shift=shift), "ddim"),
        (FlowMatchHeunDiscreteScheduler(shift=shift), "heun"),
    ):
        scheduler.set_timesteps(count)
        got = solve(build(name, schedule), bent, x, grid("linspace", count, schedule))
        assert apart(got, walked(scheduler, x)) < 2e-5  # theirs computes in float32


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 6, 16])
def test_exponential_solvers_of_diffusers(order: int, count: int) -> None:
    x = normal(2, 5)
    cases = [
        (DPMSolverMultistepScheduler, "dpm_solver++", {}, 1e-4),
        (UniPCMultistepScheduler, "unipc", {}, 1e-4),
    ]
    for cls, name, options, most in cases:
        scheduler = cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=order)
        scheduler.set_timesteps(count)
        asked = [1000 * float(s) for s in scheduler.sigmas[:-1]]
        steps = iter(asked)  # DPM-Solver's own times are cut to whole ones
        expected = x.float()
        for t in scheduler.timesteps:
            expected = scheduler.step(bent(expected, next(steps)), t, expected).prev_sample
        got = solve(build(name, FLOW, {"order": order, **options}), bent, x, asked)
        assert apart(got, expected.double()) < most


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solvers_begin_where_there_is_no_signal(name: str, dtype: torch.dtype) -> None:
    # Gaussian data: the flow is known; what is lost at its beginning would not come back
    mean, std = 0.7, 0.4

    def velocity(x: Tensor, t: float) -> Tensor:
        s = t / 1000
        centred = (x - (1 - s) * mean) / (((1 - s) * std) ** 2 + s**2)
        return s * centred - mean - (1 - s) * std**2 * centred

    x = normal(50, dtype=dtype)
    falling = grid("uniform", 100, NoiseSchedule.flow(shift=2.0))
    end = solve(build(name, FLOW), velocity, x, falling)
    assert end.dtype == dtype
    assert apart(end.double(), mean + std * x.double()) < 0.03


def test_ancestral_steps_keep_the_marginals() -> None:
    # all data at 0.3: at every time x is normal around (1 - s) 0.3 with standard deviation s
    drawn = {i: normal(40_000, seed=i + 1) for i in range(4)}
    x = solve(
        build("ddim", FLOW, {"eta": 1.0}),
        lambda x, t: (x - 0.3) / (t / 1000),
        normal(40_000),
        [1000, 700, 400, 250],
        90,
        drawn.__getitem__,
    )
    assert abs(float(x.mean()) - 0.91 * 0.3) < 5 * 0.09 / 200
    assert float(x.std()) == pytest.approx(0.09, rel=0.02)


def test_pfdiff_asks_at_real_times() -> None:
    moves = build("pfdiff", FLOW).path([1000, 600.5, 2], params=[{}, {}, {"ask": 1}])
    assert [move.ask for move in moves] == [(1000,), (301.25,), (1,)]


# Models


class Velocity(nn.Module):
    """Of a Gaussian, by pixel: mean of one image, standard deviation 0.3."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.linspace(-0.8, 0.8, 3 * 8 * 8).reshape(3, 8, 8))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        s = (t / 1000).view(-1, 1, 1, 1).to(x.dtype)
        centred = (x - (1 - s) * self.mean) / (((1 - s) * 0.3) ** 2 + s**2)
        return s * centred - self.mean - (1 - s) * 0.09 * centred


class Pooled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().unflatten(-1, (2, 4)).mean((-1, -3)).flatten(1) / 255


def gaussian(**options: Any) -> Model:
    options = {"prediction": "flow_prediction"} | options
    return Model(Velocity(), NoiseSchedule.flow(shift=3.0), (3, 8, 8), name="gaussian", **options)


def unshifted() -> Model:
    return Model(Velocity(), FLOW, (3, 8, 8), prediction="flow_prediction", name="unshifted")


def test_a_model_samples_its_data() -> None:
    model = gaussian()
    model.clip = False
    images = sample(model, Plan.of("heun", grid("uniform", 12, model.schedule)), 200).float() / 127.5 - 1
    assert (images.mean(0) - model.network.mean).abs().max() < 0.08  # type: ignore[union-attr]


def test_predictions_of_the_data_are_the_same_model() -> None:
    velocity = Velocity()

    def data(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return x - (t / 1000).view(-1, 1, 1, 1) * velocity(x, t)

    other = Model(data, NoiseSchedule.flow(shift=3.0), (3, 8, 8), prediction="sample")
    x = normal(2, 3, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        for t in (1000, 640.25, 30):
            torch.testing.assert_close(other.predict(x, t, None), gaussian().predict(x, t, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "prediction", "known"),
    [
        (NoiseSchedule.flow(), "epsilon", "flow_prediction or sample"),
        (NoiseSchedule.flow(), "v_prediction", "flow_prediction or sample"),
        (NoiseSchedule.linear(), "flow_prediction", "epsilon or v_prediction or sample"),
    ],
)
def test_predictions_that_do_not_go_with_the_schedule(schedule: NoiseSchedule, prediction: Any, known: str) -> None:
    with pytest.raises(InputError, match=f"'{prediction}' does not go with this noise schedule; give {known}"):
        Model(Velocity(), schedule, (3, 8, 8), prediction=prediction)


def test_guidance_is_linear() -> None:
    model = gaussian(null_class=2, classes=2, guidance_scale=3.0)
    model.network = lambda x, t, label: Velocity()(x, t) + 0.1 * label.view(-1, 1, 1, 1)  # type: ignore[union-attr]
    x, label = normal(2, 3, 8, 8, dtype=torch.float32), torch.tensor([0, 1])
    given, without = (model.network(x, torch.full((2,), 900.0), at) for at in (label, torch.full((2,), 2)))
    torch.testing.assert_close(model.predict(x, 900.0, label), without + 3 * (given - without))


def test_times_of_a_plan() -> None:
    model = gaussian()
    sample(model, Plan.of("plms", [1000, 857.14, 3]), 2)
    for t in (1000.5, 0.5):
        with pytest.raises(InputError, match=rf"t = {t} lies outside the time steps of gaussian, 1 to 1000"):
            sample(model, Plan.of("ddim", [t]), 2)


def test_the_search_space() -> None:
    space = SearchSpace.of(FLOW, 4, "ddim")
    assert (len(space.times), space.times[0], space.times[-1]) == (1001, 1, 1000)
    assert space.named("uniform", FLOW).times == pytest.approx((1000, 750, 500, 250), abs=0.5)


@pytest.mark.parametrize("solver", ["ddim", "gls", "dpm_solver++"])
def test_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    options: dict[str, Any] = {
        "model": "test_flow:gaussian",
        "features": "test_flow:Pooled",
        "reference": "teacher:20:200",
        "steps": 3,
        "solver": solver,
        "samples": 64,
        "confirm_samples": 64,
        "budget": 20_000,
        "metric": "fid",
    }
    result = autodiffusion.search(Settings.of(**options), tmp_path / "run")
    assert len(result.plan.times) == 3
    assert all(1 <= t <= 1000 for t in result.plan.times)
    rows = {row["name"]: row for row in result.rows}
    assert rows["found"]["scores"]["fid"]["value"] <= rows["uniform"]["scores"]["fid"]["value"] * 1.05
    sample(gaussian(), result.plan, 2)


def test_the_report_has_the_whole_range_of_times(tmp_path: Path) -> None:
    """Up to T, where all begins; and named grids are found again by the curve of the ledger, where none is shifted."""
    names = ["linspace", "karras", "beta"]
    options = {"population": 4, "generations": 1}
    few = {"steps": 3, "samples": 8, "confirm_samples": 8, "starts": names, "strategy_options": options}
    model = {"model": "test_flow:unshifted", "features": "test_flow:Pooled", "reference": "teacher:5:50"}
    autodiffusion.search(Settings.of(**model, **few, strategy="evolution"), tmp_path / "run")
    run = Run.of(tmp_path / "run")
    assert (run.start["times"][0], run.start["times"][-1]) == (1, 1000)
    made = occurrence.chart(run)
    assert made is not None
    assert 1000 in made.table.column("t")
    [axes] = made.draw(made.table).axes
    assert sum(patch.get_height() for patch in axes.patches) == len(made.table.rows)  # type: ignore[attr-defined]
    found = grids(run)
    assert {"linspace", "beta"} & set(found)
    for name, plan in found.items():
        np.testing.assert_allclose([step["t"] for step in plan["steps"]], grid(name, 3, FLOW), atol=1e-6)


def test_the_command_line(tmp_path: Path) -> None:
    sys.modules["test_flow"] = sys.modules[__name__]
    common = ["--features", "test_flow:Pooled", "--reference", "teacher:20:100"]
    run = ["search", "test_flow:gaussian", "--steps", "2", "--samples", "64", "--confirm-samples", "64"]
    found = CliRunner().invoke(app, [*run, *common, "--budget", "6000", "--out", str(tmp_path / "run")])
    assert found.exit_code == 0, found.output
    evaluated = ["evaluate", str(tmp_path / "run" / "plan.json"), "--model", "test_flow:gaussian", "--samples", "64"]
    assert CliRunner().invoke(app, [*evaluated, *common]).exit_code == 0
    printed = CliRunner().invoke(app, ["plans", "uniform:4", "--sigmas", "--schedule", "flow"])
    assert printed.output.strip() == "1.0, 0.75, 0.5, 0.25, 0.0"


def test_sigmas_for_other_programs() -> None:
    schedule = NoiseSchedule.flow(shift=3.0)
    plan = Plan.of("ddim", grid("trailing", 4, schedule))
    assert text(sigmas(plan, schedule)) == "1.0, 0.9, 0.75, 0.5, 0.0"
