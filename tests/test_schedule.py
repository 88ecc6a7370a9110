"""Noise schedules and named grids against diffusers, closed forms and properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from autodiffusion._errors import InputError
from autodiffusion._plans import grids
from autodiffusion._plans.schedule import NoiseSchedule

BETAS = {
    "linear": NoiseSchedule.linear(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "squaredcos_cap_v2": NoiseSchedule.cosine(),
}
BOUNDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}
every_schedule = pytest.mark.parametrize("schedule", BETAS.values(), ids=list(BETAS))


def scheduler(betas: str = "linear", **options: Any) -> DDIMScheduler:
    start, end = BOUNDS[betas]
    return DDIMScheduler(beta_schedule=betas, beta_start=start, beta_end=end, **options)


# Schedules


@pytest.mark.parametrize("betas", BETAS)
def test_alphas_of_diffusers(betas: str) -> None:
    # theirs are products of float32 betas
    np.testing.assert_allclose(BETAS[betas].alphas_cumprod, scheduler(betas).alphas_cumprod, rtol=2e-4)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [50, 1000])
def test_config_of_diffusers(betas: str, steps: int) -> None:
    theirs = scheduler(betas, num_train_timesteps=steps)
    ours = NoiseSchedule.from_config(dict(theirs.config))
    assert len(ours) == steps
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-4)


def test_trained_betas_come_first() -> None:
    betas = np.linspace(0.01, 0.2, 20)
    theirs = DDIMScheduler(num_train_timesteps=20, trained_betas=betas.tolist())
    ours = NoiseSchedule.from_config(dict(theirs.config))
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5)


@pytest.mark.parametrize("betas", BETAS)
def test_zero_terminal_snr_of_diffusers(betas: str) -> None:
    """Where their DDIM has 0, their Euler has 2**-24: solvers that divide by alpha need what float32 can divide by."""
    theirs = scheduler(betas, rescale_betas_zero_snr=True)
    ours = NoiseSchedule.from_config(dict(theirs.config))
    # of linear betas their float32 is 0.2 % off at T - 2, where it takes equal numbers from each other
    np.testing.assert_allclose(ours.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1], rtol=3e-3)
    assert theirs.alphas_cumprod[-1] == 0
    floor = float(EulerDiscreteScheduler.from_config(theirs.config).alphas_cumprod[-1])
    # below the value before it, which can be less than theirs
    assert ours.alphas_cumprod[-1] == pytest.approx(min(floor, ours.alphas_cumprod[-2] / 4), rel=1e-6)
    if betas == "squaredcos_cap_v2":
        assert ours.alphas_cumprod[-1] == pytest.approx(floor, rel=1e-6)


def test_config_of_unknown_kind() -> None:
    with pytest.raises(InputError, match="beta_schedule 'sigmoid' is unknown"):
        NoiseSchedule.from_config({"beta_schedule": "sigmoid"})


def test_linear_schedule_is_the_continuous_one() -> None:
    # Lu et al. 2022, appendix D.4: log alpha at s = (t + 1) / 1000 with betas from 0.1 to 20
    t = np.array([99.5, 250, 400, 750.25, 999])
    s = (t + 1) / 1000
    expected = -(s**2) / 4 * (20 - 0.1) - s / 2 * 0.1
    np.testing.assert_allclose([BETAS["linear"].log_alpha(v) for v in t], expected, rtol=0.02)


def test_cosine_schedule_is_the_continuous_one() -> None:
    t = np.array([0, 99, 400, 750, 980])
    angle = ((t + 1) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = np.log(np.cos(angle) / np.cos(0.008 / 1.008 * np.pi / 2))
    np.testing.assert_allclose([BETAS["squaredcos_cap_v2"].log_alpha(v) for v in t], expected, rtol=1e-9)


@every_schedule
@given(t=st.floats(0, 999))
def test_identities(schedule: NoiseSchedule, t: float) -> None:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha**2 + sigma**2 == pytest.approx(1, rel=1e-14)
    assert schedule.log_snr(t) == pytest.approx(math.log(alpha / sigma), rel=1e-9, abs=1e-12)
    # sigmoid and softplus of the half-log-SNR (Lu et al. 2022, appendix D.4)
    assert alpha**2 == pytest.approx(1 / (1 + math.exp(-2 * schedule.log_snr(t))), rel=1e-12)
    assert schedule.log_alpha(t) == pytest.approx(-0.5 * math.log1p(math.exp(-2 * schedule.log_snr(t))), rel=1e-9)


@every_schedule
def test_between_the_steps_log_alpha_is_straight(schedule: NoiseSchedule) -> None:
    exact = 0.5 * np.log(schedule.alphas_cumprod)
    assert schedule.log_alpha(40) == exact[40]
    assert schedule.log_alpha(40.25) == pytest.approx(0.75 * exact[40] + 0.25 * exact[41], rel=1e-14)


@every_schedule
def test_clean_data(schedule: NoiseSchedule) -> None:
    values = [f(None) for f in (schedule.log_alpha, schedule.alpha, schedule.sigma, schedule.log_snr)]
    assert values == [0, 1, 0, math.inf]


@every_schedule
@given(t=st.floats(0, 999))
def test_time_and_log_snr_are_inverse(schedule: NoiseSchedule, t: float) -> None:
    assert float(schedule.time_at(schedule.log_snr(t))) == pytest.approx(t, abs=1e-8)


@every_schedule
def test_times_beyond_the_ends(schedule: NoiseSchedule) -> None:
    assert schedule.time_at([-100, math.inf, 100, schedule.log_snr(5)]).tolist() == pytest.approx([999, 0, 0, 5])
    for t in (-0.001, 999.001, math.nan, math.inf):
        with pytest.raises(InputError, match="outside the model's time steps 0 to 999"):
            schedule.alpha(t)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5], "shape"),
        ([[0.9, 0.5]], "shape"),
        ([1.0, 0.5], "lie in"),
        ([0.5, 0.0], "lie in"),
        ([0.9, math.nan], "lie in"),
        ([0.5, 0.9], "strictly decrease"),
        ([0.9, 0.9], "strictly decrease"),
    ],
)
def test_bad_alphas(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        NoiseSchedule(np.array(values))
    assert "\n" not in str(caught.value)


def test_the_callers_array_stays_the_callers() -> None:
    values = np.array([0.9, 0.5, 0.1])
    schedule = NoiseSchedule(values)
    values[1] = 0.6
    assert schedule.alphas_cumprod.tolist() == [0.9, 0.5, 0.1]
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.8


# Grids


def counts(steps: int) -> list[int]:
    """Numbers of grid points to try: the small ones, some between, all of them."""
    candidates = {1, 2, 3, 4, 5, 6, 7, 10, 15, 16, 33, steps // 3, steps // 2, steps - 1, steps}
    return sorted(count for count in candidates if 0 < count <= steps)


@pytest.mark.parametrize("name", [name for name in grids.NAMED if name not in grids.ALIGNED])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [2, 3, 10, 50, 1000])
def test_every_grid_falls(name: str, betas: str, steps: int) -> None:
    schedule = NoiseSchedule.from_config({"beta_schedule": betas, "num_train_timesteps": steps})
    for count in counts(steps):
        times = np.array(grids.grid(name, count, schedule))
        assert len(times) == count
        assert (np.diff(times) <= -1).all()
        assert (times == np.round(times)).all()
        assert 0 <= times[-1] <= times[0] <= steps - 1
        real = np.array(grids.grid(name, count, schedule, continuous=True))
        assert len(real) == count
        assert (np.diff(real) < 0).all()
        assert 0 <= real[-1] <= real[0] <= steps - 1
        # rounding moves a time by half a step; keeping times apart, by no more than there are times
        assert np.abs(real - times).max() <= max(0.5, count)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("uniform", "leading"), ("linspace", "linspace"), ("trailing", "trailing")]
)
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_spacings_of_diffusers(ours: str, theirs: str, steps: int) -> None:
    stock = scheduler(num_train_timesteps=steps, timestep_spacing=theirs)
    for count in counts(steps):
        if ours == "linspace" and count == 1:
            continue  # theirs is then the end, 0, where there is nothing left to do; ours the start
        stock.set_timesteps(count)
        assert grids.grid(ours, count, NoiseSchedule.linear(steps)) == tuple(stock.timesteps.tolist())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("count", [2, 5, 10, 25])
def test_karras_of_diffusers(betas: str, count: int) -> None:
    start, end = BOUNDS[betas]
    stock = DPMSolverMultistepScheduler(
        beta_schedule=betas, beta_start=start, beta_end=end, use_karras_sigmas=True, final_sigmas_type="sigma_min"
    )
    stock.set_timesteps(count)
    ours = grids.grid("karras", count, BETAS[betas], continuous=True)
    # theirs are interpolated between the steps in log sigma, ours in log alpha, and rounded or cut
    np.testing.assert_allclose(ours, stock.timesteps, atol=1.01)
    sigmas = [BETAS[betas].sigma(t) / BETAS[betas].alpha(t) for t in ours]
    np.testing.assert_allclose(sigmas, stock.sigmas[:-1], rtol=1e-3)


@every_schedule
def test_log_snr_grid_is_even(schedule: NoiseSchedule) -> None:
    lambdas = [schedule.log_snr(t) for t in grids.grid("log_snr", 12, schedule, continuous=True)]
    assert np.diff(lambdas) == pytest.approx((schedule.log_snr(0) - schedule.log_snr(999)) / 11)


def test_beta_grid_has_the_arcsine_like_quantiles() -> None:
    # dense at both ends, symmetric around the middle
    times = np.array(grids.grid("beta", 11, BETAS["linear"], continuous=True))
    np.testing.assert_allclose(times + times[::-1], 999)
    gaps = -np.diff(times)[:5]
    assert (np.diff(gaps) > 0).all()


def test_quadratic_grid_of_ddim() -> None:
    # Song et al. 2021's code: squares of an even grid from 0 to sqrt(0.8 T), cut to whole numbers
    expected = [int(v**2) for v in np.linspace(0, math.sqrt(800), 10)][::-1]
    assert grids.grid("quadratic", 10, BETAS["linear"]) == tuple(expected)


@given(data=st.data(), gap=st.integers(1, 7), length=st.integers(1, 12))
def test_spread(data: st.DataObject, gap: int, length: int) -> None:
    count = data.draw(st.integers((length - 1) * gap + 1, (length - 1) * gap + 300))
    positions = data.draw(st.lists(st.integers(-20, count + 20), min_size=length, max_size=length))
    result = grids.spread(positions, count, gap)
    assert len(result) == length
    assert (np.diff(result) <= -gap).all()
    assert (result == np.round(result)).all()
    assert 0 <= result[-1] <= result[0] <= count - 1
    assert (grids.spread(result, count, gap) == result).all()
    if (np.diff(positions) <= -gap).all() and positions[-1] >= 0 and positions[0] < count:
        assert result.tolist() == positions


@given(data=st.data(), gap=st.integers(1, 7), count=st.integers(1, 300))
def test_spread_leaves_what_fits(data: st.DataObject, gap: int, count: int) -> None:
    chosen = data.draw(st.sets(st.integers(0, (count - 1) // gap), min_size=1))
    positions = sorted((gap * p for p in chosen), reverse=True)
    assert grids.spread(positions, count, gap).tolist() == positions


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(InputError, match=f"steps = {steps} is out of range; this model has 1 to 1000") as caught:
        grids.grid("uniform", steps, BETAS["linear"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniforn:4", "grid 'uniforn' is unknown .did you mean 'uniform'"),
        ("uniform", "grid 'uniform' has no number of steps; write uniform:4"),
        ("karras:", "write karras:4"),
        ("karras:four", "write karras:4"),
        ("karras:-4", "write karras:4"),
        ("karras:4.0", "write karras:4"),
        ("", "grid '' is unknown"),
    ],
)
def test_bad_grid_names(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        grids.parse(text)
    assert "\n" not in str(caught.value)


def test_good_grid_names() -> None:
    assert [grids.parse(f"{name}:12") for name in grids.NAMED] == [(name, 12) for name in grids.NAMED]
    with pytest.raises(InputError, match=r"grid 'kerras' is unknown .did you mean 'karras'"):
        grids.grid("kerras", 4, BETAS["linear"])


def test_log_alpha_is_linear_between_steps() -> None:
    schedule = NoiseSchedule.cosine()
    times = [*np.random.default_rng(0).uniform(0, 999, 300), *range(1000)]
    steps = 0.5 * np.log(schedule.alphas_cumprod)
    assert [schedule.log_alpha(float(t)) for t in times] == np.interp(times, np.arange(1000), steps).tolist()
