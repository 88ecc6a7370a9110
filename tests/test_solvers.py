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
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from autodiffusion.errors import InputError
from autodiffusion.names import known
from autodiffusion.schedule import NoiseSchedule
from autodiffusion.solvers import State, build, solve

# what diffusers says about its own code
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "solvers.json").read_text())["cases"]
SCHEDULE = NoiseSchedule.scaled_linear()


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
        return self.schedule.sigma(t) * (x - self.schedule.alpha(t) * self.mean) / self.variance(t)

    def flow(self, x: Tensor, t: float, stop: float | None) -> Tensor:
        """The probability-flow ODE's solution: x keeps its quantile in the marginal distribution."""
        centred = x - self.schedule.alpha(t) * self.mean
        scale = math.sqrt(self.variance(stop) / self.variance(t))
        return self.schedule.alpha(stop) * self.mean + scale * centred


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
        got = solve(build(name, SCHEDULE, {"clip": True}), predict, x, times, end)
        assert torch.allclose(got, solve(build(name, SCHEDULE), clipped, x, times, end))
    assert min(outside) > 0.1


@pytest.mark.parametrize("name", sorted({*known("solvers")} - {"plms"}))  # which ends on several predictions' mean
def test_clipped_samples_end_within_bounds(name: str) -> None:
    x, times = 3 * normal(2, 8), [930, 615, 240, 35]
    with_clip, without = (
        float(solve(build(name, SCHEDULE, {"clip": clip}), lambda x, t: -2 * x, x, times).abs().max())
        for clip in (True, False)
    )
    assert with_clip == 1
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
    for name in ("dpm_solver", "dpm_solver++"):
        for method in ("multistep", "singlestep"):
            got = solve(build(name, SCHEDULE, {"order": 1, "method": method}), wavy, x, times, end)
            assert torch.allclose(got, expected, rtol=1e-11)


def test_plms_is_exact_for_noise_that_a_cubic_gives() -> None:
    # Adams-Bashforth of order 4 integrates a cubic exactly; so do its weights extrapolate its mean over the next step
    from autodiffusion.solvers.plms import ADAMS_BASHFORTH

    for order, weights in ADAMS_BASHFORTH.items():
        for power in range(order):
            mean = sum(weight * (-i) ** power for i, weight in enumerate(weights))
            assert mean == pytest.approx(1 / (power + 1))


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


def whole(name: str, times: tuple[float, ...]) -> tuple[float, ...]:
    """The times as this solver takes them: whole, unless it is continuous."""
    if build(name, SCHEDULE).continuous:
        return times
    return tuple(dict.fromkeys(max(1.0, math.floor(t)) for t in times))


@every_solver
@pytest.mark.parametrize("end", [None, 0])
@pytest.mark.parametrize("times", LISTS)
def test_any_falling_list(name: str, options: dict[str, Any], times: tuple[float, ...], end: float | None) -> None:
    times = whole(name, times)
    solver, x = build(name, SCHEDULE, options), normal(2, 3)
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
    betas=st.sampled_from([NoiseSchedule.linear(), NoiseSchedule.cosine(), SCHEDULE]),
    end=st.sampled_from([None, 0]),
)
def test_any_falling_list_at_all(
    name: str, options: dict[str, Any], eighths: set[int], betas: NoiseSchedule, end: float | None
) -> None:
    times, x = whole(name, tuple(t / 8 for t in sorted(eighths, reverse=True))), normal(3)
    assert torch.isfinite(solve(build(name, betas, options), wavy, x, times, end, noise_like(x))).all()


@every_solver
def test_states_are_shared_without_harm(name: str, options: dict[str, Any]) -> None:
    # plans of equal beginning continue from one state; what one of them does must not show in the other
    solver, x = build(name, SCHEDULE, options), normal(2, 3)
    one, other = solver.moves([900, 700, 500, 300, 100]), solver.moves([900, 700, 500, 250, 50], end=0)
    noise = noise_like(x)
    states = [State(x)]
    for move in one[:2]:
        states.append(solver.step(wavy, states[-1], move, noise))
    assert one[:2] == other[:2]
    snapshot = [state.x.clone() for state in states]
    results = []
    for moves in (one, other, one):
        state = states[2]
        for move in moves[2:]:
            state = solver.step(wavy, state, move, noise)
        results.append(state.x)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], solve(solver, wavy, x, [900, 700, 500, 300, 100], None, noise))
    assert torch.equal(results[1], solve(solver, wavy, x, [900, 700, 500, 250, 50], 0, noise))
    assert all(torch.equal(state.x, copy) for state, copy in zip(states, snapshot, strict=True))
    assert [state.moves for state in states] == [0, 1, 2]


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    times = [900, 700, 500, 300, 100]
    seen = set()

    def predict(x: Tensor, t: float) -> Tensor:
        seen.add(x.dtype)
        return wavy(x, t)

    x = normal(2, 3)
    double = solve(build(name, SCHEDULE, options), wavy, x, times, 0, noise_like(x))
    result = solve(build(name, SCHEDULE, options), predict, x.to(dtype), times, 0, noise_like(x.to(dtype)))
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
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(name, SCHEDULE, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver++"])
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
