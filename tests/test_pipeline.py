"""A plan in a pipeline is the plan of our own loop, and removing it gives back the pipeline that was there."""

from __future__ import annotations

import copy
import functools
import gc
import re
import runpy
import warnings
import weakref
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    PNDMPipeline,
    PNDMScheduler,
    UNet2DModel,
    VQModel,
)
from tiny_pipelines import Replayed, apart, free_plan, state_of
from torch import Tensor

import autodiffusion
from autodiffusion import Applied, InputError, Model, NoiseSchedule, Plan, Step, apply
from autodiffusion._names import known
from autodiffusion._pipelines.plan_scheduler import PlanScheduler
from autodiffusion._pipelines.turns import _turns, _users, same_time
from autodiffusion._plans.grids import grid
from autodiffusion._sampling.sampling import Beginnings, Cost, walk
from autodiffusion.layers._switch import LeftOut
from autodiffusion.solvers import State
from autodiffusion.solvers._base import build

# what diffusers says about its own code
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

ROOT = Path(__file__).parents[1]
TIMES = (900.0, 650.0, 300.0, 120.0)
FAMILIES = ("ddpm", "ddim", "pndm", "ldm", "dit")
LABELS, SCALE = (7, 300), 2.5
"""The classes that the DiT is asked for, and its guidance."""


@functools.cache
def unet(channels: int = 3, out: int = 3, seed: int = 0, **changes: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
    }
    made = UNet2DModel(
        8, channels, out, layers_per_block=1, norm_num_groups=4, attention_head_dim=8, **(blocks | changes)
    )
    return made.eval()


@functools.cache
def dit() -> DiTTransformer2DModel:
    torch.manual_seed(1)
    return DiTTransformer2DModel(2, 8, in_channels=4, out_channels=8, num_layers=3, sample_size=8).eval()


def pipeline(family: str, **changes: Any) -> Any:
    """A tiny pipeline of this family, whose scheduler has these settings beside the usual ones."""
    settings = {"clip_sample": False} | changes
    if family == "ddpm":
        made: Any = DDPMPipeline(copy.deepcopy(unet()), DDPMScheduler(**settings))
    elif family == "ddim":
        made = DDIMPipeline(copy.deepcopy(unet()), DDIMScheduler(**settings))
    elif family == "pndm":
        del settings["clip_sample"]
        made = PNDMPipeline(copy.deepcopy(unet()), PNDMScheduler(skip_prk_steps=True, **settings))
    elif family == "ldm":
        torch.manual_seed(2)
        vqvae = VQModel(block_out_channels=(4,), norm_num_groups=2, num_vq_embeddings=8).eval()
        made = LDMPipeline(vqvae, copy.deepcopy(unet()), DDIMScheduler(beta_schedule="scaled_linear", **settings))
    else:
        torch.manual_seed(3)
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
        made = DiTPipeline(copy.deepcopy(dit()), vae, DDIMScheduler(**settings))
    made.set_progress_bar_config(disable=True)
    return made


def denoiser(pipe: Any) -> Any:
    return pipe.transformer if isinstance(pipe, DiTPipeline) else pipe.unet


def call(pipe: Any, batch: int = 2, seed: int = 0, **options: Any) -> tuple[Tensor, Any]:
    """The last sample of the pipeline's loop, undecoded, and its images."""
    scheduler, seen = pipe.scheduler, []
    step = scheduler.step

    @functools.wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        seen.append(out.prev_sample)
        return out

    generator = torch.Generator().manual_seed(seed)
    if isinstance(pipe, DiTPipeline):
        options = {"class_labels": LABELS[:batch], "guidance_scale": SCALE} | options
    else:
        options = {"batch_size": batch} | options
    scheduler.step = watched
    try:
        torch.manual_seed(99)  # of the noise in pipelines that hand no generator on
        images = pipe(generator=generator, output_type="np", **options).images
    finally:
        del scheduler.step
    return seen[-1][:batch], images


def ours(pipe: Any, plan: Plan, batch: int = 2, seed: int = 0, schedule: NoiseSchedule | None = None) -> Tensor:
    """The same samples from our own loop, on a model written here."""
    network, config = denoiser(pipe), pipe.scheduler.config
    options: dict[str, Any] = {"module": network, "dtype": network.dtype}
    guided = isinstance(pipe, DiTPipeline)
    if guided:
        options |= {"classes": 1000, "null_class": 1000, "guidance_scale": SCALE}
    model = Replayed(
        lambda x, t, label: network(x, t, class_labels=label).sample,
        schedule or NoiseSchedule.from_config(config),
        (network.config.in_channels, 8, 8),
        prediction=config.prediction_type if "prediction_type" in config else "epsilon",
        **options,
    )
    _ = model.parts  # which are found with noise as well
    model.generator = torch.Generator().manual_seed(seed)
    latents = model.noise(range(batch), 0)
    if guided or isinstance(pipe, (LDMPipeline, PNDMPipeline)):
        torch.manual_seed(99)
        model.generator, model.copies = None, 1 + guided
    begun = Beginnings(latents, torch.tensor(LABELS[:batch]) if guided else None)
    [(_, x)] = walk(model, [plan], range(batch), 0, Cost(), begun=begun)
    return x


def plans(name: str) -> Iterator[Plan]:
    """Plans of a solver: whole and plain; with layers left out, free numbers and clipping."""
    yield Plan.of(name, TIMES)
    yield free_plan(name, TIMES, end=20.0, clip=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", known("solvers"))
def test_a_pipeline_does_what_our_loop_does(family: str, solver: str) -> None:
    pipe = pipeline(family)
    found = []
    for plan in plans(solver):
        expected = ours(pipe, plan)
        with apply(plan, pipe):
            sample, _ = call(pipe)
        assert apart(sample, expected) < 1e-4
        found.append(sample)
    assert apart(*found) > 1e-2


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ddim", {"eta": 0.7}),
        ("gls", {"plain": "pfdiff", "memory": 2, "scale": True}),
        ("gls", {"plain": "heun"}),
        ("gls", {"plain": "plms"}),
        ("dpm_solver", {"order": 3, "method": "singlestep"}),
        ("unipc", {"order": 3}),
    ],
)
def test_options_and_double_precision(solver: str, options: dict[str, Any]) -> None:
    pipe = pipeline("ddpm").to(torch.float64)
    plan = Plan.of(solver, TIMES, end=30, solver_options=options)
    expected = ours(pipe, plan)
    with apply(plan, pipe):
        sample, _ = call(pipe)
    assert sample.dtype == torch.float64
    assert apart(sample, expected) < 1e-10


def test_times_that_are_not_whole() -> None:
    pipe, plan = pipeline("ddpm"), Plan.of("dpm_solver++", (900.25, 411.5, 33.125))
    expected = ours(pipe, plan)
    with apply(plan, pipe):
        assert pipe.scheduler.timesteps.tolist() == [900.25, 411.5, 33.125]
        assert apart(call(pipe)[0], expected) < 1e-4


def test_the_network_is_asked_at_the_plans_times() -> None:
    pipe = pipeline("ddpm")
    asked: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: asked.append(float(args[1])))
    for solver, times in {
        "ddim": [900, 650, 300, 120],
        "plms": [900, 650, 650, 300, 120],
        "heun": [900, 650, 650, 300, 300, 120, 120],
        "pfdiff": [900, 475, 210, 60],
    }.items():
        asked.clear()
        with apply(Plan.of(solver, TIMES), pipe):
            assert pipe.scheduler.num_inference_steps == len(times)
            call(pipe)
        assert asked == times


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("family", ["ddpm", "dit"])
def test_other_predictions_are_epsilon_by_another_name(family: str, prediction: str) -> None:
    if family == "dit":  # its guidance is linear, and so is the way from one prediction to the other
        pipe, plan = pipeline("dit", prediction_type=prediction), Plan.of("dpm_solver++", TIMES)
        expected = ours(pipe, plan)
        with apply(plan, pipe):
            assert apart(call(pipe)[0], expected) < 1e-4
        return
    schedule = NoiseSchedule.linear()
    plain, other = pipeline(family), pipeline(family, prediction_type=prediction)

    def said(module: Any, args: Any, output: Any) -> None:
        """What the network of ``plain`` says, told as the other prediction: Salimans and Ho 2022, appendix D."""
        x, t = args
        alpha, sigma, epsilon = schedule.alpha(float(t)), schedule.sigma(float(t)), output.sample
        x0 = (x - sigma * epsilon) / alpha
        output.sample = alpha * epsilon - sigma * x0 if prediction == "v_prediction" else x0

    for pipe in (plain, other):
        pipe.to(torch.float64)
    other.unet.register_forward_hook(said)
    for plan in (Plan.of("gls", TIMES), Plan.of("heun", TIMES)):
        with apply(plan, plain), apply(plan, other):
            assert apart(call(other)[0], call(plain)[0]) < 1e-9


def test_channels_of_a_learned_variance_are_not_used() -> None:
    both, plan = DDPMPipeline(copy.deepcopy(unet(3, 6)), DDPMScheduler()), Plan.of("heun", TIMES)
    both.set_progress_bar_config(disable=True)
    expected = ours(both, plan)
    with apply(plan, both):
        assert apart(call(both)[0], expected) < 1e-4


# the schedulers that pipelines have


@pytest.mark.parametrize("family", ["ddim", "ldm", "dit"])
def test_uniform_ddim_is_the_stock_scheduler(family: str) -> None:
    pipe = pipeline(family)
    stock, images = call(pipe, num_inference_steps=5)
    with apply(Plan.of("ddim", grid("uniform", 5, NoiseSchedule.linear())), pipe):
        sample, others = call(pipe)
    assert apart(sample, stock) < 1e-4
    assert abs(images - others).max() < 1e-4


def test_uniform_clipped_ddim_is_the_stock_scheduler() -> None:
    pipe = pipeline("ddim", clip_sample=True)
    stock, _ = call(pipe, num_inference_steps=5, use_clipped_model_output=True)
    plan = Plan.of("ddim", grid("uniform", 5, NoiseSchedule.linear()), solver_options={"clip": True})
    with apply(plan, pipe):
        assert apart(call(pipe)[0], stock) < 1e-4


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_pp_is_the_stock_scheduler(order: int) -> None:
    pipe = pipeline("dit")
    pipe.scheduler = DPMSolverMultistepScheduler(solver_order=order)
    stock, _ = call(pipe, num_inference_steps=6)
    plan = Plan.of("dpm_solver++", pipe.scheduler.timesteps.tolist(), solver_options={"order": order})
    with apply(plan, pipe):
        assert apart(call(pipe)[0], stock) < 1e-4


# given back


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_gives_the_pipeline_back(family: str) -> None:
    pipe = pipeline(family)
    before, (sample, images) = state_of(pipe, denoiser(pipe)), call(pipe, num_inference_steps=5)
    for plan in plans("gls"):
        applied = apply(plan, pipe)
        assert isinstance(applied, Applied)
        assert isinstance(pipe.scheduler, PlanScheduler)
        assert pipe.scheduler.config["num_train_timesteps"] == 1000
        call(pipe)
        applied.remove()
        applied.remove()  # does nothing
        again, more = call(pipe, num_inference_steps=5)
        assert torch.equal(again, sample)
        assert (more == images).all()
        assert state_of(pipe, denoiser(pipe)) == before
    assert not len(_turns)
    assert not len(_users)


def test_a_network_that_fails_leaves_nothing_behind() -> None:
    pipe = pipeline("ddpm")
    before, whole = state_of(pipe, denoiser(pipe)), call(pipe, num_inference_steps=3)[0]
    *_, plan = plans("heun")
    calls = []

    def fail(module: Any, args: Any) -> None:
        calls.append(any(isinstance(block, LeftOut) for block in pipe.unet.modules()))
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    with apply(plan, pipe):
        expected = call(pipe)[0]
        handle = pipe.unet.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            call(pipe)
        handle.remove()
        assert calls == [True, True, True]
        assert not any(isinstance(block, LeftOut) for block in pipe.unet.modules())
        assert not len(_turns)
        x = torch.zeros(1, 3, 8, 8)
        assert torch.equal(pipe.unet(x, 5).sample, unet()(x, 5).sample)  # between calls it is whole
        assert torch.equal(call(pipe)[0], expected)
    assert state_of(pipe, denoiser(pipe)) == before
    assert torch.equal(call(pipe, num_inference_steps=3)[0], whole)


def test_a_run_that_was_broken_off_is_not_gone_on_with() -> None:
    pipe, x = pipeline("ddpm"), torch.ones(2, 3, 8, 8)
    for plan in plans("gls"):
        with apply(plan, pipe):
            expected = call(pipe)[0]
            pipe.scheduler.set_timesteps(4)
            pipe.scheduler.step(x, 900, x)
            assert torch.equal(call(pipe)[0], expected)


def broken_off() -> Any:
    """A pipeline of which Ctrl-C comes between the network and its scheduler, in the second of four steps."""
    pipe = pipeline("ddpm")
    apply(Plan(solver="ddim", steps=tuple(Step(t=t, skip={0, 2}) for t in TIMES)), pipe)
    step, calls = pipe.scheduler.step, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    pipe.scheduler.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        call(pipe)
    return pipe


def test_a_run_that_was_broken_off_leaves_the_network_whole_for_others() -> None:
    x = torch.ones(1, 3, 8, 8)
    for t in (5, torch.tensor(5), torch.tensor([5.0]), 100.5):
        network = broken_off().unet
        assert torch.equal(network(x, timestep=t).sample, unet()(x, t).sample)
    other, broken = pipeline("ddim"), broken_off()
    expected = call(other, num_inference_steps=3)[0]
    other.unet = broken.unet
    assert torch.equal(call(other, num_inference_steps=3)[0], expected)
    # and the plan is still followed by the pipeline that it was applied to
    plan = Plan(solver="ddim", steps=tuple(Step(t=t, skip={0, 2}) for t in TIMES))
    assert apart(call(broken)[0], ours(pipeline("ddpm"), plan)) < 1e-4


def test_a_run_that_was_broken_off_keeps_nothing_alive() -> None:
    pipe = broken_off()
    network = weakref.ref(pipe.unet)
    assert len(_turns)
    del pipe
    gc.collect()
    assert network() is None
    assert not len(_turns)


def test_a_call_in_the_midst_is_whole_and_told() -> None:
    """It might have been the beginning of another pipeline's call."""
    pipe, x = pipeline("ddpm"), torch.ones(2, 3, 8, 8)
    plan = Plan(solver="ddim", steps=tuple(Step(t=t, skip={0, 2}) for t in TIMES))
    with apply(plan, pipe):
        pipe.scheduler.set_timesteps(4)
        said = pipe.unet(x, TIMES[0]).sample
        assert not torch.equal(said, unet()(x, TIMES[0]).sample)
        x = pipe.scheduler.step(said, TIMES[0], x).prev_sample
        assert torch.equal(pipe.unet(x, 7).sample, unet()(x, 7).sample)
        with pytest.raises(InputError, match="broken off"):
            pipe.scheduler.step(said, TIMES[1], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("divisor", [1, 1000])
def test_times_are_known_again_in_any_precision(dtype: torch.dtype, divisor: int) -> None:
    """As Flux's pipelines hand them on: cast, repeated for the batch, divided."""
    for t in np.linspace(1, 1000, 700):
        given = torch.tensor([t], dtype=torch.float32).expand(2).to(dtype) / divisor
        assert same_time(given, t / divisor)
        assert not same_time(given, 1.05 * t / divisor)
    assert same_time(torch.tensor(7), 7.0)
    assert same_time(7, 7.0)
    assert not same_time(torch.tensor(7), 8.0)
    assert not same_time(torch.tensor([999.0]), 998.9)


def test_an_exception_in_the_with_removes_the_plan() -> None:
    pipe = pipeline("ddpm")
    stock = pipe.scheduler
    with pytest.raises(KeyError), apply(Plan.of("ddim", TIMES), pipe):
        raise KeyError
    assert pipe.scheduler is stock


def test_a_second_plan_takes_the_place_of_the_first() -> None:
    pipe = pipeline("ddpm")
    stock, cls = pipe.scheduler, type(pipe.unet)
    (_, first), (_, second) = plans("ddim"), plans("pfdiff")
    one, expected = apply(first, pipe), ours(pipe, second)
    other = apply(second, pipe)
    assert apart(call(pipe)[0], expected) < 1e-4
    one.remove()
    assert apart(call(pipe)[0], expected) < 1e-4
    with pytest.raises(InputError):
        apply(Plan.of("ddim", [2000]), pipe)
    assert apart(call(pipe)[0], expected) < 1e-4
    other.remove()
    assert pipe.scheduler is stock
    assert type(pipe.unet) is cls


def test_a_scheduler_that_was_set_meanwhile_stays() -> None:
    pipe, mine = pipeline("ddpm"), DDIMScheduler()
    with apply(Plan.of("ddim", TIMES), pipe):
        pipe.scheduler = mine
    assert pipe.scheduler is mine


# how pipelines are used


def test_calls_again_and_with_other_batches() -> None:
    pipe = pipeline("dit")
    *_, plan = plans("gls")
    with apply(plan, pipe):
        for batch, seed in [(2, 0), (1, 5), (2, 0), (2, 1)]:
            assert apart(call(pipe, batch, seed)[0], ours(pipe, plan, batch, seed)) < 1e-4


def test_without_guidance() -> None:
    pipe, plan = pipeline("dit"), Plan.of("plms", TIMES)
    model = Model(
        lambda x, t, label: pipe.transformer(x, t, class_labels=label).sample, NoiseSchedule.linear(), (4, 8, 8)
    )
    x, labels = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(LABELS)
    [(_, expected)] = walk(model, [plan], range(2), 0, Cost(), begun=Beginnings(x, labels))
    with apply(plan, pipe):
        assert apart(call(pipe, guidance_scale=1.0)[0], expected) < 1e-4


class Labelled(DDPMPipeline):
    """Asks for classes, which the pipeline that it is derived from does not."""

    @torch.no_grad()
    def __call__(self, labels: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, class_labels=labels).sample, t, x).prev_sample
        return x


def test_classes_of_a_pipeline_of_ones_own() -> None:
    network, labels, plan = copy.deepcopy(unet(num_class_embeds=4)), torch.tensor([3, 1]), free_plan("unipc", TIMES)
    with torch.no_grad():  # so that labels matter
        network.class_embedding.weight.mul_(10)
    pipe, x = Labelled(network, DDPMScheduler()), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"classes": 4, "module": network}
    model = Model(lambda x, t, label: network(x, t, label).sample, NoiseSchedule.linear(), (3, 8, 8), **options)
    [(_, expected)] = walk(model, [plan], range(2), 0, Cost(), begun=Beginnings(x, labels))
    with apply(plan, pipe):
        assert apart(pipe(labels, x), expected) < 1e-4
        assert apart(pipe(labels.flip(0), x), expected) > 1e-2


@pytest.mark.parametrize("shared", [False, True])
def test_two_pipelines_at_once(shared: bool) -> None:
    one, other = pipeline("ddpm"), pipeline("ddim")
    if shared:
        other.unet = one.unet
    cls = type(one.unet)
    (_, first), (plain, second) = plans("gls"), plans("pfdiff")
    wanted = ours(one, first), ours(other, second), ours(other, plain), call(other, num_inference_steps=3)[0]
    with apply(first, one):
        assert torch.equal(call(other, num_inference_steps=3)[0], wanted[3])  # that follows no plan
        with apply(plain, other):
            assert apart(call(other)[0], wanted[2]) < 1e-4
        applied = apply(second, other)
        assert apart(call(one)[0], wanted[0]) < 1e-4
        assert apart(call(other)[0], wanted[1]) < 1e-4
    assert apart(call(other)[0], wanted[1]) < 1e-4  # the first to come is the first to go
    applied.remove()
    assert type(one.unet) is cls


def test_two_pipelines_in_turns() -> None:
    pipes, chosen = (pipeline("ddpm"), pipeline("ddpm")), [list(plans(name))[1] for name in ("gls", "heun")]
    wanted = [ours(pipe, plan) for pipe, plan in zip(pipes, chosen, strict=True)]
    samples = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) for _ in pipes]
    with apply(chosen[0], pipes[0]), apply(chosen[1], pipes[1]), torch.no_grad():
        for pipe in pipes:
            pipe.scheduler.set_timesteps(4)
        for times in zip_longest(*(pipe.scheduler.timesteps for pipe in pipes)):
            for i, t in enumerate(times):
                if t is not None:
                    said = pipes[i].unet(samples[i], t).sample
                    samples[i] = pipes[i].scheduler.step(said, t, samples[i], return_dict=False)[0]
    assert all(apart(sample, x) < 1e-4 for sample, x in zip(samples, wanted, strict=True))


@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_compiled_networks(way: str) -> None:
    pipe, plan = pipeline("ddpm"), Plan(solver="ddim", steps=(Step(t=900), Step(t=300, skip={0, 2})))
    expected = ours(pipe, plan)
    torch._dynamo.reset()
    if way == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    cls = type(pipe.unet)
    with apply(plan, pipe):
        assert apart(call(pipe)[0], expected) < 1e-4
    assert type(pipe.unet) is cls
    torch._dynamo.reset()


def test_half_precision_keeps_the_solver_in_single() -> None:
    pipe = pipeline("ddpm").to(torch.bfloat16)
    plan = Plan.of("dpm_solver++", TIMES)
    [x] = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16) for _ in range(1)]
    model = Model(lambda x, t, label: pipe.unet(x, t).sample, NoiseSchedule.linear(), (3, 8, 8), dtype=torch.bfloat16)
    [(_, expected)] = walk(model, [plan], range(2), 0, Cost(), begun=Beginnings(x.float(), None))
    with apply(plan, pipe):
        pipe.scheduler.set_timesteps(4)
        with torch.no_grad():
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    assert x.dtype == torch.bfloat16
    assert torch.equal(x, expected.bfloat16())


# what is said


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, False),  # DDIMPipeline's default is 50
        ({"num_inference_steps": 50}, False),
        ({"num_inference_steps": 4}, False),  # the plan's steps
        ({"num_inference_steps": 5}, False),  # its evaluations
        ({"num_inference_steps": 20}, True),
        ({"eta": 1.0}, True),
    ],
)
def test_other_settings_of_the_call_are_told(options: dict[str, Any], warned: bool) -> None:
    pipe = pipeline("ddim")
    with apply(Plan.of("plms", TIMES), pipe), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample, _ = call(pipe, **options)
        told = [str(one.message) for one in caught if one.category is UserWarning]
        assert len(told) == warned
        assert all("\n" not in message and "plan" in message for message in told)
    with apply(Plan.of("plms", TIMES), pipe):
        assert torch.equal(call(pipe)[0], sample)


def test_timesteps_by_name() -> None:
    pipe = pipeline("ddpm")
    with apply(Plan.of("plms", TIMES), pipe):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe.scheduler.set_timesteps(timesteps=[900, 650, 650, 300, 120], device="cpu")
        with pytest.warns(UserWarning, match="other timesteps are not followed: the plan asks the network 5 times"):
            pipe.scheduler.set_timesteps(timesteps=[900, 300])
        assert pipe.scheduler.timesteps.tolist() == [900, 650, 650, 300, 120]


def with_scheduler(scheduler: Any) -> Any:
    pipe = pipeline("ddpm")
    pipe.scheduler = scheduler
    return pipe


def without_network() -> Any:
    pipe = pipeline("ddpm")
    pipe.unet = None
    return pipe


def with_classes(kind: str) -> Any:
    return DDPMPipeline(unet(class_embed_type=kind), DDPMScheduler())


REFUSED: dict[str, tuple[Callable[[], Any], Plan, str]] = {
    "other pipeline": (lambda: object(), Plan.of("ddim", TIMES), "pipeline object is none that plans can be applied"),
    "no network": (without_network, Plan.of("ddim", TIMES), "pipeline DDPMPipeline has no unet"),
    "no scheduler": (lambda: with_scheduler(None), Plan.of("ddim", TIMES), "pipeline DDPMPipeline has no scheduler"),
    "flow matching": (
        lambda: with_scheduler(FlowMatchEulerDiscreteScheduler()),
        Plan.of("ddim", TIMES),
        "is for flow matching",
    ),
    "flow matching in disguise": (
        lambda: with_scheduler(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)),
        Plan.of("ddim", TIMES),
        "is for flow matching",
    ),
    "variance exploding": (
        lambda: with_scheduler(EDMEulerScheduler()),
        Plan.of("ddim", TIMES),
        "is not of a variance-preserving model",
    ),
    "prediction": (
        lambda: pipeline("ddpm", prediction_type="velocity"),
        Plan.of("ddim", TIMES),
        "prediction 'velocity' is unknown",
    ),
    "layer": (lambda: pipeline("ddpm"), Plan(solver="ddim", steps=(Step(t=9, skip={99}),)), "layer 99 does not exist"),
    "time": (lambda: pipeline("ddpm"), Plan.of("ddim", [1000]), "t = 1000 lies outside the time steps of DDPMPipe"),
    "fraction": (lambda: pipeline("ddpm"), Plan.of("ddim", [9.5]), "t = 9.5 is not whole"),
    "solver": (lambda: pipeline("ddpm"), Plan.of("ddimm", [9]), "did you mean 'ddim'"),
    "classes by time": (
        lambda: with_classes("timestep"),
        Plan(solver="ddim", steps=(Step(t=9, skip={1}),)),
        "layers cannot be found with class_embed_type = timestep; apply a plan that leaves out none",
    ),
    "classes embedded": (
        lambda: with_classes("identity"),
        Plan(solver="ddim", steps=(Step(t=9, skip={1}),)),
        "layers cannot be found with class_embed_type = identity",
    ),
    "free number": (
        lambda: pipeline("ddpm"),
        Plan(solver="ddim", steps=(Step(t=9, params={"noise": 1}),)),
        "noise",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, plan, message = REFUSED[case]
    pipe = make()
    before = getattr(pipe, "scheduler", None)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        apply(plan, pipe)
    assert "\n" not in str(raised.value)
    assert getattr(pipe, "scheduler", None) is before


def test_a_path_is_no_plan() -> None:
    with pytest.raises(InputError, match="read it with Plan"):
        apply("plan.json", pipeline("ddpm"))  # type: ignore[arg-type]


def test_the_scheduler_refuses_what_it_cannot_follow() -> None:
    pipe, x = pipeline("ddpm"), torch.ones(1, 3, 8, 8)
    with apply(Plan.of("ddim", TIMES), pipe):
        scheduler = pipe.scheduler
        with pytest.raises(InputError, match="not begun"):
            scheduler.step(x, 900, x)
        scheduler.set_timesteps(4)
        with pytest.raises(InputError, match=r"the pipeline begins at t = 650, the plan at 900"):
            scheduler.step(x, 650, x)
        scheduler.set_timesteps(4)
        after = scheduler.step(x, 900, x).prev_sample
        with pytest.raises(InputError, match="was changed between two steps"):
            scheduler.step(x, 650, after + 0.1)
        scheduler.set_timesteps(4)
        after = scheduler.step(x, 900, x).prev_sample
        for t in (650, 300, 120):
            after = scheduler.step(x, t, after.clone()).prev_sample
        with pytest.raises(InputError, match="at its end"):
            scheduler.step(x, 0, after)


def test_pipelines_that_rebuild_their_scheduler_get_a_stock_one() -> None:
    pipe = pipeline("ddpm", beta_schedule="squaredcos_cap_v2")
    with apply(Plan.of("ddim", TIMES), pipe):
        rebuilt = DDIMPipeline(pipe.unet, pipe.scheduler).scheduler
    assert type(rebuilt) is DDIMScheduler
    assert rebuilt.config.beta_schedule == "squaredcos_cap_v2"


# the noise schedule


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_noise_schedule_is_the_schedulers(kind: str) -> None:
    pipe, plan = pipeline("ddim", beta_schedule=kind), Plan.of("ddim", TIMES)
    expected = ours(pipe, plan, schedule=NoiseSchedule(pipe.scheduler.alphas_cumprod.double().numpy()))
    with apply(plan, pipe):
        assert apart(call(pipe)[0], expected) < 1e-3


def test_a_schedule_that_only_the_scheduler_knows() -> None:
    pipe, plan = pipeline("ddpm", beta_schedule="sigmoid"), Plan.of("ddim", TIMES)
    expected = ours(pipe, plan, schedule=NoiseSchedule(pipe.scheduler.alphas_cumprod.double().numpy()))
    with apply(plan, pipe):
        assert apart(call(pipe)[0], expected) < 1e-4


def test_no_signal_at_the_end() -> None:
    pipe, plan = pipeline("ddim", rescale_betas_zero_snr=True), Plan.of("ddim", TIMES)
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    expected = ours(pipe, plan)
    with apply(plan, pipe):
        assert apart(call(pipe)[0], expected) < 1e-4


# the package and the page


def test_apply_is_public() -> None:
    assert autodiffusion.apply is apply
    assert "apply" in dir(autodiffusion)


def test_a_solver_that_asks_for_its_noise_twice() -> None:
    """Moves are made again; the noise of a move is drawn once."""
    pipe, plan = pipeline("ddpm"), Plan.of("test_pipeline:NoisyHeun", TIMES)
    expected = ours(pipe, plan)
    with apply(plan, pipe):
        assert apart(call(pipe)[0], expected) < 1e-4


def test_a_solver_that_does_not_say_so_is_told() -> None:
    pipe, plan = pipeline("ddpm"), Plan.of("test_pipeline:SilentHeun", TIMES)
    with apply(plan, pipe), pytest.raises(InputError, match=r"SilentHeun .*say asks_sample = False in its class"):
        call(pipe)
    assert not len(_turns)


class SilentHeun(type(build("heun", NoiseSchedule.linear()))):  # type: ignore[misc]
    """Draws before it asks."""

    def step(self, predict: Any, state: State, move: Any, noise: Any) -> State:
        moved = State(state.x + 0.1 * noise(state.moves), state.moves) if state.moves else state
        return super().step(predict, moved, move, noise)


class NoisyHeun(SilentHeun):
    asks_sample = False


@pytest.fixture
def page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the page's examples find in theirs."""
    (tmp_path / "run").mkdir()
    *_, plan = plans("gls")
    plan.save(tmp_path / "run" / "plan.json")
    pipeline("ddpm").save_pretrained(tmp_path / "my-pipeline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_example(page_run: Path) -> None:
    page = (ROOT / "docs" / "apply.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (page_run / "page.py").write_text("\n".join(blocks))
    scope = runpy.run_path(str(page_run / "page.py"))
    assert "apply(Plan.load(" in page
    assert len(scope["images"]) == 4
    assert type(scope["pipe"].scheduler) is DDPMScheduler
