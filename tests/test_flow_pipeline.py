"""Plans applied to pipelines of Stable Diffusion 3 and Flux, against our own loop and diffusers' schedulers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from tiny_flow import FLUX, Flowing, fluxes, stable3
from tiny_pipelines import after, state_of

from autodiffusion import NoiseSchedule, Plan, Step, apply
from autodiffusion._errors import InputError
from autodiffusion._names import known
from autodiffusion._plans.flow import FlowSchedule
from autodiffusion._plans.grids import grid

TIMES = [1000, 857.25, 450.5, 90]
KINDS = {
    kind: make
    for make, kinds in (
        (stable3, ("", "Img2Img", "Inpaint", "ControlNet")),
        (fluxes, ("", "Img2Img", "Inpaint", "ControlNet", "Fill", "Kontext")),
    )
    for part in kinds
    for kind in [f"{'StableDiffusion3' if make is stable3 else 'Flux'}{part}Pipeline"]
}


def tiny(kind: str, **options: Any) -> Flowing:
    return KINDS[kind](kind, **options)


def plans(solver: str) -> tuple[Plan, Plan]:
    """A plain one, and one that leaves out layers and, where there are some, has free numbers."""
    numbers = {"pfdiff": {"ask": 0.1}, "gls": {"noise": 0.3}, "ddim": {"eta": 0.4}}.get(solver, {})
    steps = [Step(t=t) for t in TIMES]
    steps[1] = Step(t=TIMES[1], skip={0, 2}, params=numbers)
    steps[2] = Step(t=TIMES[2], skip={1})
    return Plan.of(solver, TIMES), Plan(solver=solver, steps=tuple(steps))


def apart(x: torch.Tensor, reference: torch.Tensor) -> float:
    assert x.shape == reference.shape
    return float((x - reference).abs().max() / reference.abs().max())


def strength(one: Flowing) -> dict[str, Any]:
    return {"strength": 1.0} if one.begins else {}


@pytest.mark.parametrize("solver", sorted(known("solvers")))
@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_every_solver_as_in_our_own_loop(kind: str, solver: str) -> None:
    one = tiny(kind)
    for plan in plans(solver):
        expected = one.ours(plan)
        with apply(plan, one.pipe):
            assert apart(one.call(num_inference_steps=4), expected) < 1e-4


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++", "heun"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pipeline_as_in_our_own_loop(kind: str, solver: str) -> None:
    one = tiny(kind)
    for plan in plans(solver):
        expected = one.ours(plan)
        with apply(plan, one.pipe):
            assert apart(one.call(num_inference_steps=4, **strength(one)), expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_removal_leaves_nothing(kind: str) -> None:
    one = tiny(kind)
    first = one.call(num_inference_steps=3, **strength(one))  # which leaves hooks of diffusers' own
    before = state_of(one.pipe, one.pipe.transformer)
    _, plan = plans("gls")
    applied = apply(plan, one.pipe)
    followed = one.call(num_inference_steps=4, **strength(one))
    applied.remove()
    assert state_of(one.pipe, one.pipe.transformer) == before
    assert torch.equal(one.call(num_inference_steps=3, **strength(one)), first)
    assert apart(followed, first) > 1e-2


# The stock schedulers


@pytest.mark.parametrize("count", [1, 3, 6])
def test_even_steps_are_the_stock_ones(count: int) -> None:
    heun = FlowMatchHeunDiscreteScheduler(shift=3.0)
    for one, name, solver, schedule in (
        (stable3(), "linspace", "ddim", NoiseSchedule.flow(shift=3.0)),
        (stable3(scheduler=heun), "linspace", "heun", NoiseSchedule.flow(shift=3.0)),
        (fluxes(), "uniform", "ddim", FlowSchedule.from_scheduler(FLUX, 16)),
        (fluxes(scheduler=FlowMatchEulerDiscreteScheduler()), "uniform", "euler", NoiseSchedule.flow()),
    ):
        stock = one.call(num_inference_steps=count)
        plan = Plan.of(solver, grid(name, count, schedule))
        with apply(plan, one.pipe), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert apart(one.call(num_inference_steps=count), stock) < 1e-4


def test_the_shift_is_not_applied_again() -> None:
    one, (plan, _) = fluxes(), plans("ddim")
    expected = one.ours(plan)
    assert calculate_shift(16) != calculate_shift(64)
    for config in ({"shift": 9.0}, FLUX | {"max_shift": 3.0}):
        one.pipe.scheduler = FlowMatchEulerDiscreteScheduler(**config)
        with apply(plan, one.pipe):
            assert apart(one.call(num_inference_steps=4), expected) < 1e-4


def test_other_solvers_of_flow_matching() -> None:
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    one, (plan, _) = fluxes(scheduler=DPMSolverMultistepScheduler(**options)), plans("dpm_solver++")
    expected = one.ours(plan)
    with apply(plan, one.pipe):
        assert apart(one.call(), expected) < 1e-4


# How pipelines are used


@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_batches_and_calls_again(kind: str) -> None:
    one = tiny(kind, batch=2)
    _, plan = plans("dpm_solver++")
    with apply(plan, one.pipe):
        for seed, images in ((0, 1), (3, 2), (0, 1)):
            got = one.call(seed, images, num_inference_steps=4)
            assert apart(got, one.ours(plan, seed, images)) < 1e-4


def test_guidance() -> None:
    _, plan = plans("dpm_solver++")
    for one in (stable3(scale=1.0), fluxes(scale=2.5), fluxes(guidance=False)):
        expected = one.ours(plan)
        with apply(plan, one.pipe):
            assert apart(one.call(num_inference_steps=4), expected) < 1e-4


def test_two_pipelines_do_not_disturb_each_other() -> None:
    (_, first), (_, second) = plans("heun"), plans("gls")
    one, other = stable3(), stable3("StableDiffusion3Img2ImgPipeline")
    other.pipe.transformer = one.pipe.transformer
    stock = other.pipe.scheduler
    expected = one.ours(first), other.ours(second)
    with apply(first, one.pipe):
        applied = apply(second, other.pipe)
        assert apart(other.call(num_inference_steps=4, strength=1.0), expected[1]) < 1e-4
        assert apart(one.call(num_inference_steps=4), expected[0]) < 1e-4
        applied.remove()
        assert apart(one.call(num_inference_steps=4), expected[0]) < 1e-4
    assert other.pipe.scheduler is stock


@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_half_precision(kind: str) -> None:
    one, (plan, _) = tiny(kind), plans("dpm_solver++")
    with apply(plan, one.pipe):
        exact = one.call(num_inference_steps=4)
        one.pipe.to(torch.bfloat16)
        options = {key: value.bfloat16() for key, value in one.options.items() if key.endswith("embeds")}
        x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        if one.flux:
            x = one.pipe._pack_latents(x, 1, 16, 8, 8)
        rough = one.call(num_inference_steps=4, latents=x.bfloat16(), **options)
    assert rough.dtype == torch.bfloat16
    assert apart(rough.float(), exact) < 0.1


# From an image


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++", "gls", "heun"])
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if any(part in kind for part in ("Img2Img", "Inpaint", "Fill"))]
)
@pytest.mark.filterwarnings("ignore:the plan's free numbers")
def test_from_an_image(kind: str, solver: str) -> None:
    one = tiny(kind)
    if solver == "heun" and one.flux:
        return  # below
    for plan in plans(solver):
        for share, first in ((0.75, 1), (0.5, 2), (0.25, 3)):
            expected = one.ours(after(plan, first))
            with apply(plan, one.pipe):
                assert apart(one.call(num_inference_steps=4, strength=share), expected) < 1e-4


def test_flux_counts_evaluations() -> None:
    one, (plan, _) = fluxes("FluxImg2ImgPipeline"), plans("heun")
    with apply(plan, one.pipe):
        # of the 7 evaluations the last 5 are those of the last 3 steps; any number of steps is good, the plan's counts
        for count in (4, 7, 50):
            got = one.call(num_inference_steps=count, strength=5 / 7)
            assert apart(got, one.ours(after(plan, 1))) < 1e-4
        with pytest.raises(InputError, match=r"solver heun cannot begin at t = 450.5"):
            one.call(num_inference_steps=4, strength=4 / 7)


# What is said


def test_the_numbers_of_steps_that_pass() -> None:
    one, (plan, _) = fluxes(), plans("ddim")
    with apply(plan, one.pipe):
        for options in ({}, {"num_inference_steps": 4}, {"sigmas": [t / 1000 for t in TIMES]}):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                one.call(**options)
        with pytest.warns(UserWarning, match="num_inference_steps = 9 is not followed"):
            one.call(num_inference_steps=9)
        with pytest.warns(UserWarning, match="other sigmas are not followed"):
            one.call(sigmas=[1.0, 0.4])


@pytest.mark.parametrize(
    ("scheduler", "plan", "message"),
    [
        (DDIMScheduler(), Plan.of("ddim", [900]), "scheduler DDIMScheduler: is not for flow matching"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), Plan.of("ddim", [900]), "invert_sigmas is set"),
        (FlowMatchEulerDiscreteScheduler(), Plan.of("ddim", [1001]), "t = 1001 lies outside the time steps of FluxPip"),
        (
            FlowMatchEulerDiscreteScheduler(),
            Plan.of("ddim", [0]),
            "t = 0 lies outside the time steps of FluxPipeline, 1",
        ),
        (
            FlowMatchEulerDiscreteScheduler(),
            Plan(solver="ddim", steps=(Step(t=9, skip={4}),)),
            "layer 4 does not exist",
        ),
        (
            DPMSolverMultistepScheduler(use_flow_sigmas=True),
            Plan.of("ddim", [900]),
            "prediction 'epsilon' does not go with this noise schedule",
        ),
    ],
)
def test_refusals(scheduler: Any, plan: Plan, message: str) -> None:
    one = fluxes(scheduler=scheduler)
    with pytest.raises(InputError, match=message) as raised:
        apply(plan, one.pipe)
    assert "\n" not in str(raised.value)
    assert one.pipe.scheduler is scheduler
