"""Pipelines that follow a plan in other hands: changed, made of one another, copied, saved, let go."""

from __future__ import annotations

import copy
import functools
import gc
import io
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepInverseScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DModel,
)
from tiny_pipelines import STOCK, Tiny, after, apart, free_plan, run, stable, state_of
from torch import Tensor

from autodiffusion import InputError, Plan, Step, apply
from autodiffusion._pipelines.turns import _users
from autodiffusion.models.diffusers._folder import schedule_of

TIMES = (900.0, 650.0, 300.0, 120.0)
LAYERED = Plan(solver="ddim", steps=tuple(Step(t=t, skip={0, 2}) for t in TIMES))
PLAIN = Plan.of("dpm_solver++", TIMES)


@pytest.fixture
def made() -> Tiny:
    return stable()


# the sample belongs to the solver


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++"])
@pytest.mark.parametrize("inference", [False, True])
def test_a_callback_that_changes_the_sample_in_place_is_refused(
    solver: str, dtype: torch.dtype, inference: bool, made: Tiny
) -> None:
    made.pipe.to(dtype)
    made.options = {key: one.to(dtype) if isinstance(one, Tensor) else one for key, one in made.options.items()}

    def halve(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["latents"][:, :, :4] *= 0.5
        return {}

    def nothing(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["latents"] *= 1
        return tensors

    with apply(Plan.of(solver, TIMES), made.pipe), torch.inference_mode(inference):
        expected = made.call()
        with pytest.raises(InputError, match=r"the sample was changed between two steps.*apply the plan to it too"):
            made.call(callback_on_step_end=halve)
        assert torch.equal(made.call(callback_on_step_end=nothing), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm_solver++"])
def test_a_solver_keeps_a_state_of_its_own(solver: str, dtype: torch.dtype, made: Tiny) -> None:
    """Whatever happens to the tensors that it was handed and that it handed out."""

    def follow(spoil: bool) -> Tensor:
        scheduler = made.pipe.scheduler
        scheduler.set_timesteps(4)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        for t in scheduler.timesteps:
            said = (x.float() * 0.3 + float(t) / 1000).to(dtype)
            seen, x = x, scheduler.step(said, t, x).prev_sample
            if spoil:
                seen.fill_(7)
                seen, x = x, x.clone()
                seen.fill_(7)
        return x

    with apply(Plan.of(solver, TIMES), made.pipe):
        assert torch.equal(follow(True), follow(False))


# a pipeline of another's components


@pytest.mark.parametrize("layered", [False, True])
def test_an_end_that_another_pipeline_had_is_told(layered: bool) -> None:
    base, plan = stable("StableDiffusionXLPipeline"), LAYERED if layered else PLAIN
    refiner = stable("StableDiffusionXLImg2ImgPipeline")
    with apply(plan, base.pipe):
        latents = base.call(denoising_end=0.8)
        refiner.pipe = StableDiffusionXLImg2ImgPipeline(**base.pipe.components)
        refiner.pipe.set_progress_bar_config(disable=True)
        refined = {"image": latents, "num_inference_steps": 4}
        with pytest.raises(InputError, match=r"where denoising_end of StableDiffusionXLPipeline has ended .*apply the"):
            refiner.call(denoising_start=0.8, **refined)
        with pytest.raises(InputError, match=r"at its end.*if this pipeline was made of another's components"):
            refiner.call(denoising_start=0.6, **refined)
        model = base.model(3.0)
        _ = model.parts
        expected = run(model, after(plan, 3), latents)
        with apply(plan, refiner.pipe):
            assert apart(refiner.call(denoising_start=0.8, **refined), expected) < 1e-4


# another network


def test_another_network_than_the_plans_is_told(made: Tiny) -> None:
    own, other = made.pipe.unet, stable().pipe.unet
    with apply(LAYERED, made.pipe):
        expected = made.call()
        made.pipe.unet = other
        with pytest.raises(InputError, match="has another unet than when the plan was applied; apply it again"):
            made.call()
        with apply(LAYERED, made.pipe):
            assert torch.equal(made.call(), expected)
        made.pipe.unet = own
    made.pipe.unet = torch.compile(own, backend="eager")
    with apply(LAYERED, made.pipe):
        made.pipe.unet = own  # whose calls pass by the wrapper, which leaves out the layers
        with pytest.raises(InputError, match="has another unet"):
            made.call()
    with apply(LAYERED, made.pipe):
        made.pipe.unet = torch.compile(own, backend="eager")
        made.pipe.scheduler.set_timesteps(4)  # that asks the same network
        made.pipe.unet = own
    with apply(PLAIN, made.pipe):
        whole = made.call()
        made.pipe.unet = other  # with the same weights
        assert torch.equal(made.call(), whole)


# schedulers of which no plan can take the place


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMInverseScheduler(), "DDIMInverseScheduler:? runs from data to noise.*give DDIMScheduler"),
        (DPMSolverMultistepInverseScheduler(), "runs from data to noise.*give DPMSolverMultistepScheduler"),
        (EulerDiscreteScheduler(timestep_type="continuous"), "has timestep_type = continuous, .*give one that"),
    ],
)
def test_schedulers_that_no_plan_can_replace(scheduler: Any, message: str, made: Tiny) -> None:
    made.pipe.scheduler = scheduler
    with pytest.raises(InputError, match=message) as raised:
        apply(PLAIN, made.pipe)
    assert "\n" not in str(raised.value)
    assert made.pipe.scheduler is scheduler
    config = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    with pytest.raises(InputError, match=message):
        schedule_of("folder", config)


# applied and removed, in any order


def test_a_plan_ends_though_the_scheduler_was_set_meanwhile(made: Tiny) -> None:
    before, mine = state_of(made.pipe, made.network), DDIMScheduler(clip_sample=False, **STOCK)
    stock = made.pipe.scheduler
    apply(LAYERED, made.pipe)
    made.pipe.scheduler = mine
    other = free_plan("unipc", TIMES)
    expected = made.ours(other)
    applied = apply(other, made.pipe)
    assert apart(made.call(), expected) < 1e-4
    applied.remove()
    assert made.pipe.scheduler is mine
    assert not len(_users)
    made.pipe.scheduler = stock
    assert state_of(made.pipe, made.network) == before


@pytest.fixture
def _uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_uncollected")
@pytest.mark.parametrize("plan", [PLAIN, LAYERED])
def test_what_was_removed_goes_at_once(plan: Plan) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    pipe = DDPMPipeline(UNet2DModel(8, layers_per_block=1, norm_num_groups=4, **blocks), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    applied, network = apply(plan, pipe), weakref.ref(pipe.unet)
    scheduler = pipe.scheduler
    pipe()
    scheduler.remove()
    scheduler.remove()
    applied.remove()
    del applied, pipe, scheduler
    assert network() is None


def test_a_copied_pipeline_follows_the_plan_by_itself(made: Tiny) -> None:
    cls, whole = type(made.pipe.unet), made.call(num_inference_steps=3)
    with apply(LAYERED, made.pipe):
        expected = made.call()
        again = copy.deepcopy(made)
        assert again.pipe.unet is not made.pipe.unet
        assert torch.equal(again.call(), expected)
        again.pipe.scheduler.remove()
        assert type(again.pipe.unet) is cls
        assert torch.equal(again.call(num_inference_steps=3), whole)
        assert torch.equal(made.call(), expected)
        with apply(LAYERED, again.pipe):
            assert torch.equal(again.call(), expected)
        one = copy.deepcopy(made.pipe.scheduler)
        assert one.pipe is made.pipe
    assert type(made.pipe.unet) is type(again.pipe.unet) is cls
    assert torch.equal(made.call(num_inference_steps=3), whole)


def test_copies_are_switched_once_and_go_their_own_ways(made: Tiny) -> None:
    cls = type(made.pipe.unet)
    apply(LAYERED, made.pipe)
    again = copy.deepcopy(made)
    assert type(again.pipe.unet) is type(made.pipe.unet) is not cls
    apply(LAYERED, again.pipe).remove()
    made.pipe.scheduler.remove()
    assert type(again.pipe.unet) is type(made.pipe.unet) is cls
    assert not len(_users)


def written(thing: Any) -> list[str]:
    """What a file of it names, which its reader has to have."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return [name.rpartition(".")[2] if name.startswith("diffusers.") else name for name in names]


def read(thing: Any) -> Any:
    """As a file of it would be read."""
    make, arguments, *state = thing.__reduce_ex__(2)
    made = make(*arguments)
    for one in filter(None, state):
        vars(made).update(one)
    return made


@pytest.mark.parametrize("plan", [PLAIN, LAYERED])
def test_what_is_pickled_is_the_pipeline_without_the_plan(plan: Plan, made: Tiny) -> None:
    whole, cls, stock = made.call(num_inference_steps=3), type(made.pipe.unet), made.pipe.scheduler
    with apply(plan, made.pipe):
        expected = made.call()
        assert "UNet2DConditionModel" in written(made.pipe.unet)
        names = written(made.pipe)
        assert {"StableDiffusionPipeline", "UNet2DConditionModel", "DDIMScheduler"} <= set(names)
        assert not [name for name in names if "autodiffusion" in name]
        network, scheduler = read(made.pipe.unet), read(made.pipe.scheduler)
        assert torch.equal(made.call(), expected)
    assert (type(network), type(scheduler)) == (cls, type(stock))
    assert scheduler.config == stock.config
    made.pipe.unet, made.pipe.scheduler = network, scheduler
    assert torch.equal(made.call(num_inference_steps=3), whole)
    with apply(plan, made.pipe):
        assert torch.equal(made.call(), expected)


# saved, and made again


@pytest.mark.parametrize("plan", [PLAIN, LAYERED])
def test_what_is_saved_is_the_pipeline_without_the_plan(plan: Plan, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    pipe = DDPMPipeline(UNet2DModel(8, layers_per_block=1, norm_num_groups=4, **blocks), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    call = functools.partial(DDPMPipeline.__call__, num_inference_steps=3, output_type="np")
    expected, entry = call(pipe, generator=torch.Generator().manual_seed(0)).images, pipe.config["scheduler"]
    with apply(plan, pipe):
        assert pipe.config["scheduler"] == entry
        with pytest.warns(UserWarning, match=r"the plan is not saved with the pipeline; save it with Plan\.save"):
            pipe.save_pretrained(tmp_path)
    read = DDPMPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert type(read.scheduler) is DDPMScheduler
    assert type(read.unet) is UNet2DModel
    assert abs(call(read, generator=torch.Generator().manual_seed(0)).images - expected).max() < 1e-4


def test_schedulers_are_made_of_the_stock_ones_class(made: Tiny) -> None:
    stock = made.pipe.scheduler
    with apply(PLAIN, made.pipe):
        scheduler = made.pipe.scheduler
        with pytest.raises(InputError, match=r"type\(pipe\.scheduler\.stock\)\.from_config") as raised:
            type(scheduler).from_config(scheduler.config)
        assert "\n" not in str(raised.value)
        assert type(scheduler.stock).from_config(scheduler.config).config == stock.config
        assert scheduler.compatibles == stock.compatibles


# what is said


def test_an_end_before_the_plan_begins_is_told() -> None:
    made = stable("StableDiffusionXLPipeline")
    with apply(PLAIN, made.pipe), pytest.raises(InputError, match=r"end = 0\.05 leaves none .*first of .* t = 900"):
        made.call(denoising_end=0.05)


def test_a_start_behind_the_plan_is_told() -> None:
    made = stable("StableDiffusionXLImg2ImgPipeline")
    with (
        apply(PLAIN, made.pipe),
        pytest.raises(InputError, match=r"denoising_start leaves none .*last step is at t = 12"),
    ):
        made.call(denoising_start=0.95, num_inference_steps=4)


def test_a_first_step_that_a_default_strength_leaves_out_is_told() -> None:
    """That of StableDiffusionXLInpaintPipeline."""
    made = stable("StableDiffusionXLInpaintPipeline")
    said = (
        r"begins at the plan's second step; for the whole plan give strength=1 \(this pipeline's default is 0\.9999\)"
    )
    with apply(PLAIN, made.pipe):
        with pytest.warns(UserWarning, match=said):
            made.call(num_inference_steps=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            made.call(num_inference_steps=4, strength=1.0)
            made.call(num_inference_steps=4, strength=0.5)
