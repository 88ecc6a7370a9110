"""Named grids that other programs have: diffusers' spacings, and Align Your Steps on any noise schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules

from autodiffusion._errors import InputError
from autodiffusion._plans.grids import ALIGNED, NAMED, grid, parse
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._search.inputs import plan_of
from autodiffusion._search.job import Job
from autodiffusion._study.settings import Settings
from autodiffusion.models._load import load

CONFIGS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
NOISE = {name: NoiseSchedule.from_config(config) for name, config in CONFIGS.items()}
FITS = {"ays_svd": ("linear", "cosine")}
"""Where a grid fits that does not fit every schedule: scaled_linear ends before the list's second level."""
PLACES = [(name, noise) for name in NAMED for noise in FITS.get(name, NOISE)]


def ratios(name: str, steps: int, noise: str) -> list[float]:
    """Noise over signal at a grid's times, by the definition of the schedule."""
    schedule = NOISE[noise]
    return [schedule.sigma(t) / schedule.alpha(t) for t in grid(name, steps, schedule, continuous=True)]


# diffusers' spacings


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("noise", CONFIGS)
@pytest.mark.parametrize(
    ("theirs", "name", "option"),
    [
        (DPMSolverMultistepScheduler, "karras", "use_karras_sigmas"),
        (DPMSolverMultistepScheduler, "exponential", "use_exponential_sigmas"),
        (DPMSolverMultistepScheduler, "lu", "use_lu_lambdas"),
        (DPMSolverMultistepScheduler, "beta_sigmas", "use_beta_sigmas"),
        (EulerDiscreteScheduler, "karras", "use_karras_sigmas"),
        (EulerDiscreteScheduler, "exponential", "use_exponential_sigmas"),
        (EulerDiscreteScheduler, "beta_sigmas", "use_beta_sigmas"),
    ],
)
@pytest.mark.parametrize("count", [2, 10, 25])
def test_spacings_are_those_of_diffusers(theirs: Any, name: str, option: str, noise: str, count: int) -> None:
    stock = theirs(**CONFIGS[noise], **{option: True}, timestep_spacing="linspace")
    stock.set_timesteps(count)
    # to the precision of their alphas_cumprod, which are products of float32 betas
    np.testing.assert_allclose(ratios(name, count, noise), stock.sigmas[:-1], rtol=1e-3)
    assert stock.sigmas[-1] == 0
    # theirs are interpolated between the steps in log sigma, ours in log alpha, and in part cut to whole numbers
    ours = np.array(grid(name, count, NOISE[noise], continuous=True))
    assert np.abs(ours - np.array(stock.timesteps, dtype=np.float64)).max() < 1.01


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("karras", "use_karras_sigmas"),
        ("exponential", "use_exponential_sigmas"),
        ("log_snr", "use_exponential_sigmas"),
        ("beta_sigmas", "use_beta_sigmas"),
    ],
)
@pytest.mark.parametrize(("noise", "close"), [("cosine", 3e-3), ("scaled_linear", 0.11)])
def test_spacings_without_signal_at_the_end_are_those_of_diffusers(
    name: str, option: str, noise: str, close: float
) -> None:
    """Euler's begin at a sigma of 4096. On scaled_linear ours is 4508, twice that of the step before.

    Their alphas_cumprod of 0.99996 is a float32, and so the least sigma to 0.2 %.
    """
    config = CONFIGS[noise] | {"rescale_betas_zero_snr": True}
    stock = EulerDiscreteScheduler(**config, **{option: True}, timestep_spacing="linspace")
    stock.set_timesteps(6)
    schedule = NoiseSchedule.from_config(config)
    times = grid(name, 6, schedule, continuous=True)
    ours = [schedule.sigma(t) / schedule.alpha(t) for t in times]
    np.testing.assert_allclose(ours, stock.sigmas[:-1], rtol=close)
    assert round(ours[0]) == {"cosine": 4096, "scaled_linear": 4508}[noise]  # as docs/published.md has it
    if name != "beta_sigmas":  # whose quantiles are nearly all of noise that no picture shows through
        assert sum(t < 0.98 * schedule.last for t in times) >= 3


def test_beta_is_of_times_and_diffusers_of_noise() -> None:
    times = {name: np.array(grid(name, 11, NOISE["linear"], continuous=True)) for name in ("beta", "beta_sigmas")}
    levels = np.array(ratios("beta_sigmas", 11, "linear"))
    np.testing.assert_allclose(times["beta"] + times["beta"][::-1], 999)  # symmetric in time
    np.testing.assert_allclose(levels + levels[::-1], levels[0] + levels[-1])  # symmetric in noise
    assert times["beta_sigmas"][5] > 850 > times["beta"][5]


@pytest.mark.parametrize(("name", "noise"), PLACES)
@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_every_named_grid_falls(name: str, noise: str, count: int) -> None:
    whole = np.array(grid(name, count, NOISE[noise]))
    assert (whole == np.round(whole)).all()
    for times in (whole, np.array(grid(name, count, NOISE[noise], continuous=True))):
        assert len(times) == count
        assert (np.diff(times) < 0).all()
        assert 0 <= times[-1] <= times[0] <= 999


# Align Your Steps


def test_lists_are_those_of_diffusers() -> None:
    theirs = {"ays_sd": "StableDiffusion", "ays_sdxl": "StableDiffusionXL", "ays_svd": "StableDiffusionVideo"}
    for name, key in theirs.items():
        assert [*ALIGNED[name][:-1], 0] == AysSchedules[f"{key}Sigmas"]


@pytest.mark.parametrize(("name", "key"), [("ays_sd", "StableDiffusion"), ("ays_sdxl", "StableDiffusionXL")])
def test_ten_steps_are_the_printed_ones(name: str, key: str) -> None:
    schedule = NOISE["scaled_linear"]
    np.testing.assert_allclose(ratios(name, 10, "scaled_linear"), AysSchedules[f"{key}Sigmas"][:-1], rtol=1e-4)
    # they were rounded from the same levels before those had three digits: one time of the twenty is 125, not 124
    assert np.abs(np.array(grid(name, 10, schedule)) - AysSchedules[f"{key}Timesteps"]).sum() <= 1


@pytest.mark.parametrize(("name", "noise"), [place for place in PLACES if place[0] in ALIGNED])
def test_other_numbers_of_steps_are_even_in_the_logarithm(name: str, noise: str) -> None:
    ten = ratios(name, 10, noise)
    np.testing.assert_allclose(ratios(name, 5, noise), ten[::2], rtol=1e-9)
    twenty = ratios(name, 20, noise)
    np.testing.assert_allclose(twenty[::2], ten, rtol=1e-9)
    np.testing.assert_allclose(twenty[1:-1:2], np.sqrt(np.multiply(ten[1:], ten[:-1])), rtol=1e-9)
    # the last level is where the tenth step ends, so it counts between the steps
    least = NOISE[noise].sigma(0) / NOISE[noise].alpha(0)
    assert twenty[-1] == pytest.approx(np.sqrt(ten[-1] * max(ALIGNED[name][-1], least)), rel=1e-9)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", ["ays_sd", "ays_sdxl"])
def test_noise_is_kept_on_another_schedule(name: str, noise: str) -> None:
    np.testing.assert_allclose(ratios(name, 10, noise), ALIGNED[name][:-1], rtol=1e-4)
    assert grid(name, 10, NOISE["cosine"])[0] == 955


def test_what_lies_beyond_the_schedule_is_its_end() -> None:
    schedule = NOISE["linear"]  # to 157; the list begins with 700
    assert grid("ays_svd", 10, schedule, continuous=True)[0] == 999
    np.testing.assert_allclose(ratios("ays_svd", 10, "linear")[1:], ALIGNED["ays_svd"][1:-1], rtol=1e-9)
    np.testing.assert_allclose(ratios("ays_svd", 10, "cosine"), ALIGNED["ays_svd"][:-1], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("ays_svd", NOISE["scaled_linear"]),  # ends at 14.6, the list's second level is 54.5
        ("ays_sd", NoiseSchedule.linear(10)),  # ends at 0.3
        ("ays_sd", NoiseSchedule.from_betas([0.03, 0.5, 0.999])),  # begins at 0.176, the last level but one is 0.152
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(name: str, schedule: NoiseSchedule) -> None:
    with pytest.raises(InputError, match=r"does not fit a noise schedule of .* take another grid") as caught:
        grid(name, 2, schedule)
    assert "\n" not in str(caught.value)


# Where they are taken


@pytest.mark.parametrize("name", ["ays_sd", "ays_svd", "lu", "exponential", "beta_sigmas"])
def test_evaluate_and_sample_take_them(name: str) -> None:
    model = load("mnist")
    assert parse(f"{name}:4") == (name, 4)
    whole, real = plan_of(f"{name}:4", model), plan_of(f"{name}:4", model, "dpm_solver++")
    assert whole.times == grid(name, 4, model.schedule)
    assert real.times == grid(name, 4, model.schedule, continuous=True)
    assert all(t.is_integer() for t in whole.times)
    assert not any(t.is_integer() for t in real.times[1:-1])
    assert (whole.solver, whole.end, real.end) == ("ddim", None, None)


def test_default_searches_begin_with_every_grid_that_fits() -> None:
    settings = Settings.of(
        model="small:model", steps=3, samples=24, confirm_samples=24, reference="teacher:9", features="small:features"
    )
    narrow = replace(load("small:model"), schedule=NoiseSchedule.linear(100))
    begun = {name: set(Job.of(settings, model).starts) for name, model in (("cosine", None), ("linear", narrow))}
    assert begun["cosine"] == set(NAMED)
    assert begun["linear"] == set(NAMED) - {"ays_sd", "ays_sdxl", "ays_svd"}  # too little noise in 100 linear steps
    asked = settings.model_copy(update={"starts": ["uniform", "ays_sd"]})
    with pytest.raises(InputError, match="does not fit"):
        Job.of(asked, narrow)


def test_an_unknown_name_hears_of_all() -> None:
    with pytest.raises(InputError, match=r"grid 'ays_sdx' is unknown .did you mean 'ays_sdxl'"):
        grid("ays_sdx", 10, NOISE["linear"])
