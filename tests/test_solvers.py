"""Solvers against recorded numbers, closed forms, diffusers, and the contract that all of them keep."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import DETERMINISTIC
from safetensors.torch import load_file
from scipy.integrate import quad
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion._names import known
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion.solvers import State
from autodiffusion.solvers._base import build, solve
from autodiffusion.solvers._linear import ADAMS_BASHFORTH

# what diffusers says about its own code
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "solvers.json").read_text())["cases"]
SCHEDULE = NoiseSchedule.scaled_linear()
FLOW = NoiseSchedule.flow()


def wavy(x: Tensor, t: float) -> Tensor:
    """The analytic noise model of the recorded cases."""
    return torch.tanh(0.9 * x + 0.4 * math.cos(t / 250))


class Gaussian:
    """Data from N(mean, std**2): the noise in x and the map from time to time are known exactly."""

    def __init__(self, schedule: NoiseSchedule, mean: float = 0.7, std: float = 0.4) -> None:
        self.schedule, self.mean, self.std = schedule, mean, std

    def variance(self, t: float | None) -> float:
        return (self.schedule.alpha(t) * self.std) ** 2 + self.schedule.sigma(t) ** 2

    def predict(self, x: Tensor, t: float) -> Tensor:
        centred = (x - self.schedule.alpha(t) * self.mean) / self.variance(t)
        epsilon = self.schedule.sigma(t) * centred
        if not self.schedule.pull:
            return epsilon
        return epsilon - self.mean - self.schedule.alpha(t) * self.std**2 * centred  # the velocity

    def flow(self, x: Tensor, t: float, stop: float | None) -> Tensor:
        """The probability-flow ODE's solution: x keeps its quantile in the marginal distribution."""
        centred = x - self.schedule.alpha(t) * self.mean
        scale = math.sqrt(self.variance(stop) / self.variance(t))
        return self.schedule.alpha(stop) * self.mean + scale * centred


both_schedules = pytest.mark.parametrize("noise", [SCHEDULE, FLOW], ids=["vp", "flow"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).abs().max() / reference.abs().max())


# Recorded numbers


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    tensors, facts = load_file(GOLDEN / "solvers.safetensors"), CASES[case]
    betas = case.partition(".")[0]
    schedule = NoiseSchedule(tensors[f"{betas}.alphas_cumprod"].numpy())
    asked: list[float] = []

    def predict(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return wavy(x, t)

    if "timesteps" in facts:
        x = solve(build("plms", schedule), predict, tensors[f"{betas}.xT"], facts["timesteps"], end=0)
        assert len(asked) == facts["network_evaluations"]
        assert torch.allclose(x, tensors[case], rtol=0, atol=1e-9)
    else:
        *times, end = (max(0.0, 1000 * (s - 1 / 1000)) for s in facts["nodes"])
        options = {key: facts[key] for key in ("order", "method", "lower_order_final")}
        solver = build("dpm_solver++" if facts["predict_x0"] else "dpm_solver", schedule, options)
        x = solve(solver, predict, tensors[f"{betas}.xT"], times, end)
        assert relative(x, tensors[case]) < 1e-6


# Closed forms


@pytest.mark.parametrize("stop", [None, 0, 300.5])
def test_one_ddim_step_on_gaussian_data(stop: float | None) -> None:
    model, x, t = Gaussian(SCHEDULE), normal(5), 800.0
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    alpha_stop, sigma_stop = SCHEDULE.alpha(stop), SCHEDULE.sigma(stop)
    shrink = (alpha * alpha_stop * model.std**2 + sigma * sigma_stop) / model.variance(t)
    expected = alpha_stop * model.mean + shrink * (x - alpha * model.mean)
    assert torch.allclose(solve(build("ddim", SCHEDULE), model.predict, x, [t], stop), expected, rtol=1e-12)


def test_ddim_converges_to_the_flow() -> None:
    model, x = Gaussian(SCHEDULE), normal(5)
    errors = []
    for steps in (50, 100, 200):
        times = SCHEDULE.time_at(np.linspace(SCHEDULE.log_snr(990), SCHEDULE.log_snr(0), steps + 1))[:-1].tolist()
        x_end = solve(build("ddim", SCHEDULE), model.predict, x, times, 0)
        errors.append(relative(x_end, model.flow(x, times[0], 0)))
    assert errors[2] < 1e-2
    assert all(1.8 < before / after < 2.2 for before, after in pairwise(errors))


def test_ddim_noise_has_the_variance_of_the_posterior() -> None:
    t, stop = 700, 400
    ratio = SCHEDULE.alpha(t) / SCHEDULE.alpha(stop)
    # q(x_stop | x_t, x_0): the precision of x_stop given x_0 and that of x_t given x_stop add up
    added = SCHEDULE.sigma(t) ** 2 - (ratio * SCHEDULE.sigma(stop)) ** 2
    posterior = 1 / (1 / SCHEDULE.sigma(stop) ** 2 + ratio**2 / added)
    solver = build("ddim", SCHEDULE, {"eta": 1.0})
    x = normal(4)
    with_noise, without = (solve(solver, wavy, x, [t], stop, lambda _, u=u: torch.full((4,), u)) for u in (1.0, 0.0))
    assert torch.allclose(with_noise - without, torch.full((4,), math.sqrt(posterior), dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_marginals_of_a_point(eta: float) -> None:
    # all data at 0.3: at every time x is normal around alpha 0.3 with standard deviation sigma, whatever eta is
    point, times, end = 0.3, [900, 650, 300, 120], 60
    noise = {i: normal(40_000, seed=i + 1) for i in range(4)}

    def predict(x: Tensor, t: float) -> Tensor:
        return (x - SCHEDULE.alpha(t) * point) / SCHEDULE.sigma(t)

    x = SCHEDULE.alpha(900) * point + SCHEDULE.sigma(900) * normal(40_000)
    x = solve(build("ddim", SCHEDULE, {"eta": eta}), predict, x, times, end, noise.__getitem__)
    assert abs(float(x.mean()) - SCHEDULE.alpha(end) * point) < 5 * SCHEDULE.sigma(end) / 200
    assert float(x.std()) == pytest.approx(SCHEDULE.sigma(end), rel=0.02)


def test_stochastic_steps_need_noise() -> None:
    with pytest.raises(InputError, match="needs noise"):
        solve(build("ddim", SCHEDULE, {"eta": 0.5}), wavy, normal(2), [500, 100], 0)


@pytest.mark.parametrize("name", known("solvers"))
def test_clip_is_done_to_each_prediction(name: str) -> None:
    times, x = [930, 615, 240, 35], 3 * normal(2, 8)
    outside = []

    def predict(x: Tensor, t: float) -> Tensor:
        return -2 * torch.tanh(x)

    def clipped(x: Tensor, t: float) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        x0 = (x - sigma * predict(x, t)) / alpha
        outside.append(float((x0.abs() > 1).double().mean()))
        return (x - alpha * x0.clamp(-1, 1)) / sigma

    for end in (None, 0):
        got = solve(build(name, SCHEDULE, {"clip": True}), predict, x, times, end, noise_like(x))
        assert torch.allclose(got, solve(build(name, SCHEDULE), clipped, x, times, end, noise_like(x)))
    assert min(outside) > 0.1


# plms and ipndm end on several predictions' mean, lcm mixes a little of the sample in
@pytest.mark.parametrize("name", sorted({*known("solvers")} - {"plms", "ipndm", "lcm"}))
def test_clipped_samples_end_within_bounds(name: str) -> None:
    x, times = 3 * normal(2, 8), [930, 615, 240, 35]
    with_clip, without = (
        float(solve(solver, lambda x, t: -2 * x, x, times, None, noise_like(x)).abs().max())
        for solver in (build(name, SCHEDULE, {"clip": clip}) for clip in (True, False))
    )
    assert with_clip == pytest.approx(1, abs=1e-12)
    assert without > 100


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver++"])
@pytest.mark.parametrize(
    ("method", "order", "reached"),
    # multistep of order 3 starts with a step of order 1 and halves the curvature: its order of convergence is 2
    [("multistep", 1, 1), ("multistep", 2, 2), ("multistep", 3, 2), ("singlestep", 2, 2), ("singlestep", 3, 3)],
)
def test_order_of_convergence(name: str, method: str, order: int, reached: int) -> None:
    model, x = Gaussian(SCHEDULE), normal(5)
    solver = build(name, SCHEDULE, {"order": order, "method": method, "lower_order_final": False})
    errors = []
    for steps in (60, 120, 240):
        lambdas = np.linspace(SCHEDULE.log_snr(990), SCHEDULE.log_snr(0), steps + 1)
        times = SCHEDULE.time_at(lambdas)[:-1].tolist()
        errors.append(float((solve(solver, model.predict, x, times, 0) - model.flow(x, times[0], 0)).abs().max()))
    rates = [math.log2(before / after) for before, after in pairwise(errors)]
    assert rates == pytest.approx([reached] * 2, abs=0.25)


@both_schedules
@pytest.mark.parametrize(
    ("name", "options", "reached"),
    [
        ("euler", {}, 1),
        ("heun", {}, 2),
        *(("ipndm", {"uneven": True, "order": order}, order) for order in (1, 2, 3, 4)),
        *(("deis", {"order": order, "lower_order_final": False}, order) for order in (1, 2, 3)),
        *(
            ("unipc", {"order": order, "corrector": corrector, **other, "lower_order_final": False}, order + corrector)
            for order in (1, 2, 3)
            for corrector in (True, False)
            for other in ({"variant": "bh1"}, {"variant": "bh2"}, {"predict_x0": False})
        ),
    ],
)
def test_order_of_convergence_after_a_slow_start(
    noise: NoiseSchedule, name: str, options: dict[str, Any], reached: int
) -> None:
    # the first moves are of low order; where they are short enough, the order of the later ones shows
    model, x, solver = Gaussian(noise), normal(5), build(name, noise, options)
    errors = []
    for steps in (80, 160, 320):
        shares = np.linspace(0, 1, steps + 1) ** 3
        lambdas = noise.log_snr(900) + shares * (noise.log_snr(100) - noise.log_snr(900))
        *times, end = noise.time_at(lambdas).tolist()
        state, along = State(x), []
        for move in solver.moves(times, end):
            state = solver.step(model.predict, state, move, noise_like(x))
            along.append(float((state.x - model.flow(x, times[0], move.stop)).abs().max()))
        errors.append(max(along))  # at the end alone, errors of both signs may cancel
    rates = [math.log2(before / after) for before, after in pairwise(errors)]
    assert rates == pytest.approx([reached] * 2, abs=0.3)


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver++"])
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_higher_orders_are_better(name: str, method: str) -> None:
    model, x = Gaussian(SCHEDULE), normal(5)
    times = SCHEDULE.time_at(np.linspace(SCHEDULE.log_snr(990), SCHEDULE.log_snr(0), 31))[:-1].tolist()
    errors = [
        relative(
            solve(build(name, SCHEDULE, {"order": order, "method": method}), model.predict, x, times, 0),
            model.flow(x, times[0], 0),
        )
        for order in (1, 2, 3)
    ]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


@pytest.mark.parametrize("end", [None, 0])
def test_order_1_is_ddim(end: float | None) -> None:
    times, x = [930, 615.5, 240, 35.25], normal(2, 3)
    expected = solve(build("ddim", SCHEDULE), wavy, x, times, end)
    for name, options in (
        *(
            (name, {"method": method})
            for name in ("dpm_solver", "dpm_solver++")
            for method in ("multistep", "singlestep")
        ),
        ("deis", {}),
        ("ipndm", {}),
        ("ipndm", {"uneven": True}),
        ("unipc", {"corrector": False}),
        ("unipc", {"corrector": False, "predict_x0": False}),
    ):
        got = solve(build(name, SCHEDULE, {**options, "order": 1}), wavy, x, times, end)
        assert torch.allclose(got, expected, rtol=1e-11)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("end", [None, 0])
def test_euler_is_ddim(clip: bool, end: float | None) -> None:
    times, x = [930, 615, 240, 35], normal(2, 3)
    for euler, options, eta in (
        ("euler", {}, 0.0),
        ("euler_ancestral", {}, 1.0),
        ("euler_ancestral", {"eta": 0.4}, 0.4),
    ):
        got = solve(build(euler, SCHEDULE, {"clip": clip, **options}), wavy, x, times, end, noise_like(x))
        ddim = build("ddim", SCHEDULE, {"clip": clip, "eta": eta})
        assert torch.allclose(got, solve(ddim, wavy, x, times, end, noise_like(x)), rtol=1e-12)


def test_adams_bashforth_is_exact_for_noise_that_a_cubic_gives() -> None:
    # of order 4 it integrates a cubic exactly; so do its weights extrapolate its mean over the next step
    for order, weights in ADAMS_BASHFORTH.items():
        for power in range(order):
            mean = sum(weight * (-i) ** power for i, weight in enumerate(weights))
            assert mean == pytest.approx(1 / (power + 1))


def slope(t: float, power: int, variable: Callable[[float | None], float]) -> Tensor:
    """A prediction that is a power of ``variable`` at ``t``, whatever x is."""
    return torch.full((1,), variable(t) ** power, dtype=torch.float64)


def ratio(t: float | None) -> float:
    return SCHEDULE.sigma(t) / SCHEDULE.alpha(t)


POLYNOMIAL_TIMES = [940, 871, 702, 655, 430, 200, 120, 31]


@pytest.mark.parametrize("power", [0, 1, 2, 3])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_uneven_ipndm_integrates_powers_of_sigma_over_alpha(order: int, power: int) -> None:
    solver, state, errors = build("ipndm", SCHEDULE, {"order": order, "uneven": True}), State(normal(1)), []
    for move in solver.moves(POLYNOMIAL_TIMES):
        before, state = state, solver.step(lambda x, t: slope(t, power, ratio), state, move, noise_like(state.x))
        change = state.x / SCHEDULE.alpha(move.stop) - before.x / SCHEDULE.alpha(move.t)
        exact = (ratio(move.stop) ** (power + 1) - ratio(move.t) ** (power + 1)) / (power + 1)
        errors.append(abs(float(change) / exact - 1))
    assert (max(errors[order - 1 :]) < 1e-9) == (power < order)


def test_lcm_of_a_huge_scaling_is_the_data() -> None:
    x = normal(2, 3)
    got = solve(build("lcm", SCHEDULE, {"timestep_scaling": 1e200}), wavy, x, [500.0])
    assert torch.equal(got, (x - SCHEDULE.sigma(500) * wavy(x, 500)) / SCHEDULE.alpha(500))


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_integrates_powers_of_the_log_snr(order: int, power: int) -> None:
    solver, state, errors = build("deis", SCHEDULE, {"order": order, "lower_order_final": False}), State(normal(1)), []
    for move in solver.moves(POLYNOMIAL_TIMES, 0):
        before, state = (
            state,
            solver.step(lambda x, t: slope(t, power, SCHEDULE.log_snr), state, move, noise_like(state.x)),
        )
        change = state.x / SCHEDULE.alpha(move.stop) - before.x / SCHEDULE.alpha(move.t)
        exact = -quad(lambda lam: math.exp(-lam) * lam**power, SCHEDULE.log_snr(move.t), SCHEDULE.log_snr(move.stop))[0]
        errors.append(abs(float(change) / exact - 1))
    assert (max(errors[order - 1 :]) < 1e-9) == (power < order)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("power", [0, 1, 2, 3])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_corrects_by_powers_of_the_log_snr(order: int, power: int, variant: str) -> None:
    # what it corrected is where a move begins: there its integral has one point more than the predictor's
    options = {"order": order, "variant": variant, "lower_order_final": False}
    solver, state, corrected = build("unipc", SCHEDULE, options), State(normal(1)), []
    predictor = build("unipc", SCHEDULE, options | {"corrector": False})

    def predict(x: Tensor, t: float) -> Tensor:
        return (x - SCHEDULE.alpha(t) * slope(t, power, SCHEDULE.log_snr)) / SCHEDULE.sigma(t)

    for move in solver.moves(POLYNOMIAL_TIMES, 0):
        before, state = state, solver.step(predict, state, move, noise_like(state.x))
        gained = state.x - predictor.step(predict, before, move, noise_like(before.x)).x
        corrected.append((move.t, float(before.x + gained * SCHEDULE.sigma(move.t) / SCHEDULE.sigma(move.stop))))
    errors = []
    for (t, x), (stop, x_stop) in pairwise(corrected):
        change = x_stop / SCHEDULE.sigma(stop) - x / SCHEDULE.sigma(t)
        exact = quad(lambda lam: math.exp(lam) * lam**power, SCHEDULE.log_snr(t), SCHEDULE.log_snr(stop))[0]
        errors.append(abs(change - exact))
    assert (max(errors[order - 1 :]) < 1e-9) == (power <= order)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {}),
        ("ipndm", {}),
        ("ipndm", {"uneven": True}),
        ("deis", {"order": 3}),
        *(("unipc", {"order": 3, "predict_x0": data, "variant": v}) for data in (True, False) for v in ("bh1", "bh2")),
    ],
)
def test_clean_data_is_the_limit_of_little_noise(name: str, options: dict[str, Any]) -> None:
    betas = NoiseSchedule.from_betas([1e-12, *np.linspace(1e-4, 0.02, 999)])
    times, x = [940, 702, 655, 200, 31], normal(2, 3)
    nearly, clean = (solve(build(name, betas, options), wavy, x, times, end) for end in (0, None))
    assert relative(nearly, clean) < 2e-6


def test_lcm_predicts_the_data_and_starts_again() -> None:
    # as t grows its scalings leave the clean data alone; at 0 they leave the sample alone
    x, noise = normal(3), noise_like(normal(3))
    solver = build("lcm", SCHEDULE, {"timestep_scaling": 1e9})
    step = solve(solver, Gaussian(SCHEDULE, std=0).predict, x, [700], 300, noise)
    assert torch.allclose(step, 0.7 * SCHEDULE.alpha(300) + SCHEDULE.sigma(300) * noise(0), rtol=1e-12)
    assert torch.equal(solve(solver, wavy, x, [0]), x)


# diffusers


def in_double(scheduler: Any) -> NoiseSchedule:
    """Makes a scheduler compute in float64, and gives its noise schedule."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return NoiseSchedule(scheduler.alphas_cumprod.numpy())


def run(scheduler: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(wavy(x, float(t)), t, x).prev_sample
    return x


@pytest.mark.parametrize("cls", [DDIMScheduler, PNDMScheduler])
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("steps", [2, 5, 10])
def test_uniform_lists_of_diffusers(cls: type, clean: bool, steps: int) -> None:
    options = {"clip_sample": False} if cls is DDIMScheduler else {"skip_prk_steps": True}
    scheduler = cls(beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=clean, **options)
    schedule = in_double(scheduler)
    scheduler.set_timesteps(steps)
    times = sorted({float(t) for t in scheduler.timesteps}, reverse=True)
    solver = build("ddim" if cls is DDIMScheduler else "plms", schedule)
    got = solve(solver, wavy, normal(2, 3), times, None if clean else 0)
    assert relative(got, run(scheduler, normal(2, 3))) < 1e-10


def test_ancestral_steps_of_diffusers() -> None:
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    schedule, x = in_double(scheduler), normal(2, 3)
    scheduler.set_timesteps(5)
    noise = [normal(2, 3, seed=i) for i in range(1, 6)]
    got = solve(
        build("ddim", schedule, {"eta": 0.6}), wavy, x, scheduler.timesteps.tolist(), 0, lambda move: noise[move]
    )
    for t, drawn in zip(scheduler.timesteps, noise, strict=True):
        x = scheduler.step(wavy(x, float(t)), t, x, eta=0.6, variance_noise=drawn).prev_sample
    assert relative(got, x) < 1e-10


@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "final"), [("dpm_solver", "sigma_min"), ("dpm_solver++", "sigma_min"), ("dpm_solver++", "zero")]
)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 16])
def test_uneven_lists_of_diffusers(method: str, order: int, name: str, final: str, count: int) -> None:
    cls = DPMSolverMultistepScheduler if method == "multistep" else DPMSolverSinglestepScheduler
    scheduler = cls(
        beta_schedule="scaled_linear",
        solver_order=order,
        algorithm_type=name.replace("_", ""),
        final_sigmas_type=final,
        lower_order_final=True,
    )
    rng = np.random.default_rng(count)
    times = np.sort(rng.choice(np.arange(1, 1000), count, replace=False))[::-1].tolist()
    schedule = in_double(scheduler)
    scheduler.set_timesteps(timesteps=times)
    sigmas = [schedule.sigma(t) / schedule.alpha(t) for t in (*times, None if final == "zero" else 0)]
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    end = None if final == "zero" else 0
    got = solve(build(name, schedule, {"order": order, "method": method}), wavy, normal(2, 3), times, end)
    # its multistep scheduler keeps the sample in float32 between its steps
    assert relative(got, run(scheduler, normal(2, 3))) < (2e-5 if method == "multistep" else 1e-8)


def uneven(scheduler: Any, count: int, end: float | None) -> tuple[list[int], NoiseSchedule]:
    """Makes a scheduler walk random times in float64, by its sigmas; gives them and its noise schedule."""
    rng = np.random.default_rng(count)
    times = np.sort(rng.choice(np.arange(1, 1000), count, replace=False))[::-1].tolist()
    schedule = in_double(scheduler)
    scheduler.set_timesteps(count)
    scheduler.timesteps, scheduler.num_inference_steps = torch.tensor(times), count
    sigmas = [schedule.sigma(t) / schedule.alpha(t) for t in (*times, end)]
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    return times, schedule


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16])
def test_deis_of_diffusers(order: int, lower: bool, count: int) -> None:
    options = {"lower_order_final": lower}
    scheduler = DEISMultistepScheduler(beta_schedule="scaled_linear", solver_order=order, **options)
    times, schedule = uneven(scheduler, count, 0)
    x = normal(2, 3)
    got = solve(build("deis", schedule, {"order": order, **options}), wavy, x, times, 0)
    assert relative(got, run(scheduler, x)) < 1e-11


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [True, False])
# up to clean data it gives NaN for the noise and for bh1
@pytest.mark.parametrize(
    ("variant", "predict_x0", "end"),
    [("bh2", True, None), ("bh2", True, 0), ("bh1", True, 0), ("bh2", False, 0), ("bh1", False, 0)],
)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16])
def test_unipc_of_diffusers(
    order: int, variant: str, corrector: bool, predict_x0: bool, end: float | None, count: int
) -> None:
    scheduler = UniPCMultistepScheduler(
        beta_schedule="scaled_linear",
        solver_order=order,
        solver_type=variant,
        predict_x0=predict_x0,
        disable_corrector=[] if corrector else list(range(count)),
    )
    times, schedule = uneven(scheduler, count, end)
    options = {"order": order, "variant": variant, "corrector": corrector, "predict_x0": predict_x0}
    x = normal(2, 3)
    got = solve(build("unipc", schedule, options), wavy, x, times, end)
    assert relative(got, run(scheduler, x)) < 1e-11


def test_unipc_of_diffusers_with_full_order_at_the_end() -> None:
    scheduler = UniPCMultistepScheduler(beta_schedule="scaled_linear", solver_order=3, lower_order_final=False)
    times, schedule = uneven(scheduler, 6, 0)
    got = solve(build("unipc", schedule, {"order": 3, "lower_order_final": False}), wavy, normal(2, 3), times, 0)
    assert relative(got, run(scheduler, normal(2, 3))) < 1e-11


@pytest.mark.parametrize("end", [None, 0])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_ipndm_of_diffusers(count: int, end: float | None) -> None:
    # its own schedule is a quarter circle; what it computes with one is in alphas and betas, and the noise there is
    # made of v
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(count)
    times = np.sort(np.random.default_rng(count).choice(np.arange(1, 1000), count, replace=False))[::-1].tolist()
    scheduler.timesteps = torch.tensor(times)
    scheduler.alphas = torch.tensor([SCHEDULE.alpha(t) for t in (*times, end)], dtype=torch.float64)
    scheduler.betas = torch.tensor([SCHEDULE.sigma(t) for t in (*times, end)], dtype=torch.float64)
    x = normal(2, 3)
    got = solve(build("ipndm", SCHEDULE), wavy, x, times, end)
    for t in times:
        velocity = (wavy(x, t) - SCHEDULE.sigma(t) * x) / SCHEDULE.alpha(t)
        x = scheduler.step(velocity, t, x).prev_sample
    assert relative(got, x) < 1e-9


def in_sigma(scheduler: Any, x: Tensor, **options: Any) -> Tensor:
    """Samples with a scheduler that holds x / alpha; ``x`` is the sample at its first time."""
    x = x * math.sqrt(1 + float(scheduler.sigmas[0]) ** 2)
    for t in scheduler.timesteps:
        x = scheduler.step(wavy(scheduler.scale_model_input(x, t), float(t)), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("cls", [EulerDiscreteScheduler, HeunDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_euler_and_heun_of_diffusers(cls: type, count: int) -> None:
    scheduler = cls(beta_schedule="scaled_linear")
    times, schedule = uneven(scheduler, count, None)
    x, options = normal(2, 3), {}
    scheduler.timesteps = scheduler.timesteps.double()
    if cls is HeunDiscreteScheduler:
        name = "heun"
        first, *others = scheduler.timesteps
        scheduler.timesteps = torch.stack([first, *(t for t in others for _ in range(2))])
        first, *others, clean = scheduler.sigmas
        scheduler.sigmas = torch.stack([first, *(sigma for sigma in others for _ in range(2)), clean])
    else:
        name = "euler" if cls is EulerDiscreteScheduler else "euler_ancestral"
        options = {"generator": torch.Generator().manual_seed(5)}
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in times]
    got = solve(build(name, schedule), wavy, x, times, None, lambda move: drawn[move])
    # the two Euler schedulers compute in float32
    assert relative(got, in_sigma(scheduler, x, **options)) < (1e-10 if name == "heun" else 2e-5)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_lcm_of_diffusers(count: int, clip: bool) -> None:
    scheduler = LCMScheduler(clip_sample=clip)
    schedule, x = in_double(scheduler), normal(2, 3)
    times = [999, 519, 258, 17][:count]
    scheduler.set_timesteps(timesteps=times)
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in times]
    got = solve(build("lcm", schedule, {"clip": clip}), wavy, x, times, None, lambda move: drawn[move])
    generator = torch.Generator().manual_seed(5)
    for t in times:
        x = scheduler.step(wavy(x, t), t, x, generator=generator).prev_sample
    assert relative(got, x) < 1e-10


# The contract of every solver

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in known("solvers")),
    *((name, {"clip": True}) for name in known("solvers")),
    ("ddim", {"eta": 1.0}),
    *(
        (name, {"order": order, "method": method, "lower_order_final": lower})
        for name in ("dpm_solver", "dpm_solver++")
        for order in (1, 2, 3)
        for method in ("multistep", "singlestep")
        for lower in (True, False)
    ),
    *(("ipndm", {"order": order, "uneven": uneven}) for order in (1, 2, 3) for uneven in (True, False)),
    ("ipndm", {"uneven": True}),
    *(("deis", {"order": order, "lower_order_final": lower}) for order in (1, 2, 3) for lower in (True, False)),
    *(
        ("unipc", {"order": order, "variant": variant, "corrector": corrector})
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
        for corrector in (True, False)
    ),
    *(("unipc", {"order": order, "predict_x0": False, "lower_order_final": False}) for order in (1, 2, 3)),
    ("euler_ancestral", {"eta": 0.5}),
    ("lcm", {"timestep_scaling": 0.01}),
]
LINEAR = [
    (name, options)
    for name, options in VARIANTS
    if name in DETERMINISTIC and not options.get("eta") and not options.get("clip")
]
every_solver = pytest.mark.parametrize(("name", "options"), VARIANTS)
LISTS: list[tuple[float, ...]] = [
    (999,),
    (640,),
    (999, 1),
    (999, 0.5),
    (998, 997, 3, 2, 1),
    (926, 718, 500, 286, 15),
    (900, 801.5, 400, 399.25, 100, 7),
    tuple(range(990, 0, -55)),
]


def noise_like(x: Tensor) -> Callable[[int], Tensor]:
    return lambda move: normal(*x.shape, seed=100 + move, dtype=x.dtype)


def taken(name: str, noise: NoiseSchedule, times: tuple[float, ...]) -> tuple[float, ...]:
    """The times as this solver takes them: whole, unless it is continuous; of flow matching from its own beginning."""
    if noise.continuous:
        return tuple(t + (t == 999) for t in times)
    if build(name, noise).continuous:
        return times
    return tuple(dict.fromkeys(max(1.0, math.floor(t)) for t in times))


@every_solver
@both_schedules
@pytest.mark.parametrize("end", [None, 0])
@pytest.mark.parametrize("times", LISTS)
def test_any_falling_list(
    name: str, options: dict[str, Any], times: tuple[float, ...], end: float | None, noise: NoiseSchedule
) -> None:
    times = taken(name, noise, times)
    solver, x = build(name, noise, options), normal(2, 3)
    before, asked = x.clone(), []

    def predict(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return wavy(x, t)

    moves = solver.moves(times, end)
    result = solve(solver, predict, x, times, end, noise_like(x))
    assert torch.isfinite(result).all()
    assert torch.equal(x, before)
    assert asked == [t for move in moves for t in move.ask]
    assert [move.t for move in moves] == list(times)
    assert [move.stop for move in moves] == [*times[1:], end]
    assert moves[0].ask[0] == times[0]
    assert len(set(moves)) == len(moves)
    assert set(moves) == set(solver.moves(list(times), end))


@every_solver
@settings(max_examples=15, deadline=None)
@given(
    eighths=st.sets(st.integers(1, 999 * 8), min_size=1, max_size=9),
    betas=st.sampled_from([NoiseSchedule.linear(), NoiseSchedule.cosine(), SCHEDULE, FLOW]),
    end=st.sampled_from([None, 0]),
)
def test_any_falling_list_at_all(
    name: str, options: dict[str, Any], eighths: set[int], betas: NoiseSchedule, end: float | None
) -> None:
    times, x = taken(name, betas, tuple(t / 8 for t in sorted(eighths, reverse=True))), normal(3)
    assert torch.isfinite(solve(build(name, betas, options), wavy, x, times, end, noise_like(x))).all()


@every_solver
@both_schedules
def test_states_are_shared_without_harm(name: str, options: dict[str, Any], noise: NoiseSchedule) -> None:
    # plans of equal beginning continue from one state; what one of them does must not show in the other
    solver, x = build(name, noise, options), normal(2, 3)
    one, other = solver.moves([900, 700, 500, 300, 100]), solver.moves([900, 700, 500, 250, 50], end=0)
    drawn = noise_like(x)
    states = [State(x)]
    for move in one[:2]:
        states.append(solver.step(wavy, states[-1], move, drawn))
    assert one[:2] == other[:2]
    snapshot = [state.x.clone() for state in states]
    results = []
    for moves in (one, other, one):
        state = states[2]
        for move in moves[2:]:
            state = solver.step(wavy, state, move, drawn)
        results.append(state.x)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], solve(solver, wavy, x, [900, 700, 500, 300, 100], None, drawn))
    assert torch.equal(results[1], solve(solver, wavy, x, [900, 700, 500, 250, 50], 0, drawn))
    assert all(torch.equal(state.x, copy) for state, copy in zip(states, snapshot, strict=True))
    assert [state.moves for state in states] == [0, 1, 2]


@every_solver
@both_schedules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name: str, options: dict[str, Any], dtype: torch.dtype, noise: NoiseSchedule) -> None:
    # where the noise ends, clipped data leave no digits for its slope
    times, end = [900, 700, 500, 300, 100], noise.first
    seen = set()

    def predict(x: Tensor, t: float) -> Tensor:
        seen.add(x.dtype)
        return wavy(x, t)

    x = normal(2, 3)
    double = solve(build(name, noise, options), wavy, x, times, end, noise_like(x))
    result = solve(build(name, noise, options), predict, x.to(dtype), times, end, noise_like(x.to(dtype)))
    assert result.dtype == dtype
    assert seen == {dtype}
    assert relative(result.double(), double) < (1e-4 if dtype == torch.float32 else 1e-15)


@every_solver
def test_samples_do_not_see_each_other(name: str, options: dict[str, Any]) -> None:
    x, times = normal(4, 3), [900, 700, 500, 300, 100]
    noise = noise_like(x)
    together = solve(build(name, SCHEDULE, options), wavy, x, times, None, noise)
    for i in range(4):
        alone = solve(
            build(name, SCHEDULE, options), wavy, x[i : i + 1], times, None, lambda m, i=i: noise(m)[i : i + 1]
        )
        assert torch.allclose(alone, together[i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), LINEAR)
@both_schedules
@pytest.mark.parametrize("end", [None, 0])
def test_data_at_one_point_is_reached_at_once(
    name: str, options: dict[str, Any], end: float | None, noise: NoiseSchedule
) -> None:
    # there the noise and the clean data are the same all along the way, and straight steps are exact
    model, x, times = Gaussian(noise, std=0), normal(4), [960, 700, 655, 300, 120, 40]
    got = solve(build(name, noise, options), model.predict, x, times, end)
    assert torch.allclose(got, model.flow(x, 960, end), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), LINEAR)
@both_schedules
@pytest.mark.parametrize("end", [None, 0])
def test_a_solver_can_be_run_on_symbols(
    name: str, options: dict[str, Any], end: float | None, noise: NoiseSchedule
) -> None:
    # the first noise and each prediction as a unit vector: the result holds their weights
    solver, times, x, said = build(name, noise, options), [960, 700, 655, 300, 120, 40], normal(2, 3), []

    def predict(x: Tensor, t: float) -> Tensor:
        said.append(wavy(x, t))
        return said[-1]

    expected = solve(solver, predict, x, times, end)
    first, *others = torch.eye(1 + len(said), dtype=torch.float64)
    answers = iter(others)
    weights = solve(solver, lambda x, t: next(answers), first, times, end)
    assert weights.shape == (1 + len(said),)
    got = sum(float(weight) * tensor for weight, tensor in zip(weights, (x, *said), strict=True))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


# What each move is


def orders(name: str, times: int, end: float | None = 0, **options: Any) -> list[int]:
    falling = [float(t) for t in np.linspace(990, 10, times)]
    return [move.order for move in build(name, SCHEDULE, options).moves(falling, end)]


def test_orders_of_multistep_moves() -> None:
    assert orders("dpm_solver++", 1, order=3) == [1]
    assert orders("dpm_solver++", 5, order=2) == [1, 2, 2, 2, 1]
    assert orders("dpm_solver++", 5, order=3) == [1, 2, 3, 2, 1]
    assert orders("dpm_solver++", 5, order=3, lower_order_final=False) == [1, 2, 3, 3, 3]
    assert orders("dpm_solver++", 5, order=3, lower_order_final=False, end=None) == [1, 2, 3, 3, 1]
    assert orders("dpm_solver++", 14, order=3)[-3:] == [3, 2, 1]
    assert orders("dpm_solver++", 15, order=3)[-3:] == [3, 3, 3]
    assert orders("dpm_solver++", 15, order=3, end=None)[-3:] == [3, 3, 1]


def test_orders_of_singlestep_moves() -> None:
    third = {"method": "singlestep", "order": 3}
    assert orders("dpm_solver", 6, **third) == [1, 2, 3, 1, 2, 1]
    assert orders("dpm_solver", 7, **third) == [1, 2, 3, 1, 2, 3, 1]
    assert orders("dpm_solver", 8, **third) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert orders("dpm_solver", 8, **third, end=None) == [1, 2, 3, 1, 2, 3, 1, 1]
    assert orders("dpm_solver", 6, **third, lower_order_final=False) == [1, 2, 3, 1, 2, 3]
    assert orders("dpm_solver", 6, **third, lower_order_final=False, end=None) == [1, 2, 3, 1, 2, 1]
    assert orders("dpm_solver", 4, method="singlestep") == [1, 2, 1, 1]
    assert orders("dpm_solver", 5, method="singlestep") == [1, 2, 1, 2, 1]


def test_plms_asks_twice_at_first() -> None:
    solver = build("plms", SCHEDULE)
    assert [move.ask for move in solver.moves([900, 600, 300, 100, 50, 10])] == [
        (900, 600),
        *((t,) for t in (600, 300, 100, 50, 10)),
    ]
    assert [move.order for move in solver.moves([900, 600, 300, 100, 50, 10])] == [1, 2, 3, 4, 4, 4]
    assert solver.moves([900])[0].ask == (900, 900)


def test_orders_of_the_other_multistep_moves() -> None:
    assert orders("ipndm", 6) == orders("ipndm", 6, end=None) == [1, 2, 3, 4, 4, 4]
    assert orders("ipndm", 4, order=2) == [1, 2, 2, 2]
    assert orders("deis", 14, order=3)[-3:] == [3, 2, 1]
    assert orders("deis", 15, order=3)[-3:] == [3, 3, 3]
    assert orders("deis", 15, order=3, end=None)[-3:] == [3, 3, 1]
    assert orders("unipc", 1, order=3) == [1]
    assert orders("unipc", 5, order=3) == [1, 2, 3, 2, 1]
    assert orders("unipc", 20, order=3)[-3:] == [3, 2, 1]
    assert orders("unipc", 5, order=3, lower_order_final=False) == [1, 2, 3, 3, 3]
    assert orders("unipc", 5, order=3, lower_order_final=False, end=None) == [1, 2, 3, 3, 1]


def test_heun_asks_at_both_ends_except_clean_data() -> None:
    moves = build("heun", SCHEDULE).moves([900, 600, 300])
    assert [move.ask for move in moves] == [(900, 600), (600, 300), (300,)]
    assert build("heun", SCHEDULE).moves([900], 0)[0].ask == (900, 0)


# Bad input


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"eta": 1.5}, "eta = 1.5 lies outside"),
        ("ddim", {"eta": -0.1}, "eta = -0.1 lies outside"),
        ("ddim", {"eta": math.nan}, "eta = nan"),
        ("ddim", {"eta": "much"}, "eta = 'much'"),
        ("ddim", {"clip": 1}, "clip = 1"),
        ("ddim", {"order": 2}, "option 'order' is unknown"),
        ("ddim", {"schedule": SCHEDULE}, "option 'schedule' is unknown"),
        ("plms", {"eat": 1.0}, "option 'eat' is unknown"),
        ("dpm_solver", {"order": 4}, "solver dpm_solver: order = 4"),
        ("dpm_solver++", {"order": 0}, "solver dpm_solver[+][+]: order = 0"),
        ("dpm_solver++", {"order": True}, "order = True"),
        ("dpm_solver++", {"order": 2.0}, "order = 2.0"),
        ("dpm_solver", {"method": "multi"}, "method 'multi' is unknown .did you mean 'multistep'"),
        ("dpm_solver++", {"method": 3}, "method = 3"),
        ("dpm_solver", {"lower_order_final": "yes"}, "lower_order_final = 'yes'"),
        ("dpm_solver", {"lower_orderfinal": True}, "did you mean 'lower_order_final'"),
        ("ddmi", {}, "did you mean 'ddim'"),
        ("ipndm", {"order": 5}, "solver ipndm: order = 5 is not 1, 2, 3 or 4"),
        ("ipndm", {"uneven": 1}, "uneven = 1"),
        ("deis", {"order": 4}, "solver deis: order = 4 is not 1, 2 or 3"),
        ("unipc", {"order": 0}, "solver unipc: order = 0 is not 1, 2 or 3"),
        ("unipc", {"variant": "bh3"}, "solver unipc: variant 'bh3' is unknown .did you mean 'bh"),
        ("unipc", {"corrector": "no"}, "corrector = 'no'"),
        ("unipc", {"predict_x0": 0}, "predict_x0 = 0"),
        ("euler", {"eta": 0.5}, "option 'eta' is unknown"),
        ("heun", {"order": 2}, "option 'order' is unknown"),
        ("euler_ancestral", {"eta": 1.5}, "solver euler_ancestral: eta = 1.5 lies outside 0 to 1"),
        ("euler_ancestral", {"eta": math.nan}, "eta = nan"),
        ("lcm", {"timestep_scaling": 0.0}, "solver lcm: timestep_scaling = 0.0 is not above 0"),
        ("lcm", {"timestep_scaling": math.inf}, "timestep_scaling = inf"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(name, SCHEDULE, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver++", "deis", "unipc"])
@pytest.mark.parametrize("times", [(2e-20, 1e-20), (500.0, 600.0)])
def test_times_that_do_not_fall(name: str, times: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="log-SNR does not rise") as caught:
        build(name, SCHEDULE, {"order": 3}).moves(times)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", known("solvers"))
def test_every_option_has_a_plain_default(name: str) -> None:
    # options travel in JSON, and build judges a value by its default's type
    for option, parameter in inspect.signature(type(build(name, SCHEDULE))).parameters.items():
        if option != "schedule":
            assert isinstance(parameter.default, bool | int | float | str)
