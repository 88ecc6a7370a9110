"""Plans in text-to-image pipelines: from text, from images, repainting, ControlNet; against our loop and the stock."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import huggingface_hub.constants
import pytest
import torch
from conftest import Command
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from tiny_flow import whole as flow_from_text
from tiny_pipelines import (
    STOCK,
    Tiny,
    after,
    apart,
    copied,
    drawn,
    free_plan,
    pixart,
    run,
    stable,
    state_of,
    text_parts,
    unet,
    vae,
)
from torch import Tensor

from autodiffusion import InputError, NoiseSchedule, Plan, Step, apply, load_model
from autodiffusion._pipelines.turns import _turns, _users
from autodiffusion._plans.grids import grid
from autodiffusion._sampling.sampling import Beginnings, Cost, walk
from autodiffusion.layers._switch import LeftOut

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning"),
]

TIMES = (900.0, 650.0, 300.0, 120.0)
ZERO: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
"""A schedule without signal at its end."""
SOLVERS = ("ddim", "plms", "dpm_solver++", "pfdiff", "gls", "unipc")
FROM_TEXT = (
    "StableDiffusionXLPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLControlNetPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
)
FROM_IMAGE = (
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
)
REPAINTING = (
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
)
MIDDLE = pytest.mark.filterwarnings("ignore:the plan's free numbers:UserWarning")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def tiny(kind: str = "StableDiffusionPipeline", batch: int = 1, scheduler: Any = None, **changes: Any) -> Tiny:
    return pixart(kind, batch, scheduler) if "PixArt" in kind else stable(kind, batch, scheduler, **changes)


def plans(solver: str) -> tuple[Plan, Plan]:
    """Whole and plain; with layers left out and free numbers."""
    return Plan.of(solver, TIMES), free_plan(solver, TIMES)


# from text


@pytest.mark.parametrize("solver", SOLVERS)
def test_stable_diffusion_does_what_our_loop_does(solver: str) -> None:
    made, found = tiny(), []
    for plan in plans(solver):
        expected = made.ours(plan)
        with apply(plan, made.pipe):
            found.append(made.call())
        assert apart(found[-1], expected) < 1e-4
    assert apart(*found) > 1e-2


@pytest.mark.parametrize("kind", FROM_TEXT)
@pytest.mark.parametrize("solver", ["dpm_solver++", "gls"])
def test_other_pipelines_do_what_our_loop_does(kind: str, solver: str) -> None:
    made, (_, plan) = tiny(kind), plans(solver)
    expected = made.ours(plan)
    with apply(plan, made.pipe):
        assert apart(made.call(), expected) < 1e-4
        assert apart(made.call(seed=1), expected) > 1e-2


def test_stable_diffusion_2_predicts_v() -> None:
    stock = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False, **STOCK)
    made = tiny(scheduler=stock, cross_attention_dim=16, use_linear_projection=True)
    for plan in (free_plan("unipc", (999, *TIMES)), Plan.of("heun", (999, *TIMES))):
        expected = made.ours(plan)
        with apply(plan, made.pipe):
            assert apart(made.call(), expected) < 1e-4


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"guidance_scale": 1.0}, {"scale": 1.0}),
        ({"guidance_scale": 7.5}, {"scale": 7.5}),
        ({"guidance_rescale": 0.7}, {"rescale": 0.7}),
        ({"num_images_per_prompt": 3}, {"images": 3}),
    ],
)
def test_guidance_is_the_pipelines(options: dict[str, Any], ours: dict[str, Any]) -> None:
    made, (_, plan) = tiny(batch=2), plans("gls")
    expected = made.ours(plan, **ours)
    with apply(plan, made.pipe):
        sample = made.call(**options)
        assert len(sample) == 2 * ours.get("images", 1)
        assert apart(sample, expected) < 1e-4
        assert torch.equal(made.call(**options), sample)


def test_an_embedded_guidance_scale_is_the_pipelines() -> None:
    """As in networks that were distilled to be guided by a number (time_cond_proj_dim)."""
    made, (_, plan) = tiny(time_cond_proj_dim=8), plans("dpm_solver++")
    shown = made.pipe.get_guidance_scale_embedding(torch.tensor([2.0]), embedding_dim=8)
    texts = made.texts["encoder_hidden_states"][1]
    network = made.pipe.unet
    model = made.model(1.0)
    model.network = lambda x, t, label: network(x, t, texts, timestep_cond=shown).sample
    _ = model.parts
    expected = run(model, plan, drawn(0, 1, 4, 8, 8))
    with apply(plan, made.pipe):
        assert apart(made.call(guidance_scale=3.0), expected) < 1e-4
        assert apart(made.call(guidance_scale=9.0), expected) > 1e-2


def test_a_prompt_is_encoded_by_the_pipeline(tmp_path: Path) -> None:
    made, plan = tiny(), Plan.of("dpm_solver++", TIMES)
    for name, part in text_parts(tmp_path / "tokens").items():
        made.pipe.register_modules(**{name: part})
    embedded = made.pipe.encode_prompt("a cat", "cpu", 1, True)
    made.texts["encoder_hidden_states"] = (embedded[1], embedded[0])
    made.options = {"prompt": "a cat", "guidance_scale": 3.0}
    expected = made.ours(plan)
    with apply(plan, made.pipe):
        assert apart(made.call(), expected) < 1e-4
        images = made.pipe("a cat", generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("solver", ["ddim", "plms", "heun"])
def test_callbacks_are_called_once_an_evaluation(solver: str) -> None:
    made, (_, plan) = tiny(), plans(solver)
    expected, seen = made.ours(plan), []

    def callback(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((i, float(t)))
        return tensors

    with apply(plan, made.pipe):
        times = made.pipe.scheduler.timesteps.tolist()
        sample = made.call(callback_on_step_end=callback)
    assert seen == list(enumerate(times))
    assert apart(sample, expected) < 1e-4


def test_a_callback_may_break_off_for_a_pipeline_on_the_same_network() -> None:
    made, plan = tiny(), Plan(solver="ddim", steps=tuple(Step(t=t, skip={0, 2}) for t in TIMES))
    other = StableDiffusionPipeline(**made.pipe.components, requires_safety_checker=False)
    other.scheduler = DDIMScheduler(**STOCK)
    other.set_progress_bar_config(disable=True)
    whole = other(**made.options, num_inference_steps=3, output_type="latent", generator=torch.Generator()).images

    def enough(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 1
        return kwargs

    with apply(plan, made.pipe):
        expected = made.call()
        made.call(callback_on_step_end=enough)
        again = other(**made.options, num_inference_steps=3, output_type="latent", generator=torch.Generator()).images
        assert torch.equal(again, whole)
        assert torch.equal(made.call(), expected)


def test_a_callback_that_changes_the_sample_is_refused() -> None:
    made, (_, plan) = tiny(), plans("ddim")
    with apply(plan, made.pipe):
        expected = made.call()
        with pytest.raises(InputError, match="the sample was changed between two steps"):
            made.call(callback_on_step_end=lambda pipe, i, t, tensors: {"latents": tensors["latents"] + 1})
        assert not len(_turns)
        assert torch.equal(made.call(), expected)


def sigmas(times: tuple[float, ...]) -> list[float]:
    schedule = NoiseSchedule.from_config(STOCK)
    return [schedule.sigma(t) / schedule.alpha(t) for t in times]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, None),  # 50, which nobody asked for
        ({"num_inference_steps": 4}, None),
        ({"num_inference_steps": 30}, "num_inference_steps = 30 is not followed: the plan asks the network 4 times"),
        ({"timesteps": [900, 650, 300, 120]}, None),
        ({"timesteps": [900, 300]}, "other timesteps are not followed"),
        ({"sigmas": [*sigmas(TIMES), 0.0]}, None),
        ({"sigmas": [14.6, 3.0, 1.0, 0.3, 0.0]}, "other sigmas are not followed"),
        ({"eta": 0.5}, "eta and clipping are those of the plan"),
    ],
)
def test_steps_that_are_asked_for(options: dict[str, Any], told: str | None) -> None:
    made, plan = tiny(), Plan.of("dpm_solver++", TIMES)
    expected = made.ours(plan)
    with apply(plan, made.pipe), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert apart(made.call(**options), expected) < 1e-4
    said = [str(one.message) for one in caught if one.category is UserWarning]
    assert len(said) == (told is not None)
    assert all(told in one and "\n" not in one for one in said if told)


@pytest.mark.parametrize("kind", ["PixArtAlphaPipeline", "StableDiffusionPipeline"])
@pytest.mark.parametrize("times", [(700.0,), TIMES])
@pytest.mark.filterwarnings("ignore:num_inference_steps = 1 is not followed:UserWarning")
def test_one_step_is_asked_for(kind: str, times: tuple[float, ...]) -> None:
    """Where PixArt's pipelines take something else from the scheduler."""
    made, plan = tiny(kind), Plan.of("ddim", times)
    expected = made.ours(plan)
    with apply(plan, made.pipe):
        assert apart(made.call(num_inference_steps=1), expected) < 1e-4


def test_a_network_that_does_not_say_its_size() -> None:
    made, (_, plan) = tiny(sample_size=None), plans("unipc")
    expected = tiny().ours(plan)
    with apply(plan, made.pipe):
        assert apart(made.call(height=16, width=16), expected) < 1e-4


def test_half_precision() -> None:
    made, plan = tiny(), Plan.of("dpm_solver++", TIMES)
    expected = made.ours(plan)
    made.pipe.to(torch.bfloat16)
    with apply(plan, made.pipe):
        sample = made.call()
    assert sample.dtype == torch.bfloat16
    assert apart(sample.float(), expected) < 0.1


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "PixArtAlphaPipeline"])
def test_whole_networks_that_are_elsewhere(kind: str) -> None:
    """What ``enable_model_cpu_offload`` makes of a pipeline, on the only device that every machine has."""
    made, (_, plan) = tiny(kind), plans("unipc")
    expected = made.ours(plan)
    hook = None
    for network in (made.network, made.pipe.vae):
        _, hook = accelerate.cpu_offload_with_hook(network, torch.device("cpu"), hook)
    with apply(plan, made.pipe):
        assert apart(made.call(), expected) < 1e-4


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "PixArtAlphaPipeline"])
def test_weights_that_are_elsewhere(kind: str) -> None:
    """What ``enable_sequential_cpu_offload`` makes of a pipeline."""
    made, (_, plan) = tiny(kind), plans("unipc")
    expected = made.ours(plan)
    for network in (made.pipe.vae, made.network):
        accelerate.cpu_offload(network, torch.device("cpu"))
    assert made.network.device.type == made.pipe.device.type == "meta"
    with apply(plan, made.pipe):
        assert apart(made.call(), expected) < 1e-4
    assert made.network.device.type == "meta"


# the stock schedulers

SAME: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any], float | None]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, "ddim", {}, None),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, "plms", {}, 0),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler", {}, None),
    "Euler ancestral": (
        "EulerAncestralDiscreteScheduler",
        {"timestep_spacing": "leading"},
        "euler_ancestral",
        {},
        None,
    ),
    "Heun": ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, "heun", {}, None),
    "DPM-Solver++ 2": ("DPMSolverMultistepScheduler", {}, "dpm_solver++", {}, None),
    "DPM-Solver++ 3": ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpm_solver++", {"order": 3}, None),
    "DPM-Solver++ singlestep": (
        "DPMSolverSinglestepScheduler",
        {"lower_order_final": True},
        "dpm_solver++",
        {"method": "singlestep"},
        None,
    ),
    "DPM-Solver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "dpm_solver",
        {},
        0,
    ),
    "DEIS": ("DEISMultistepScheduler", {}, "deis", {}, 0),
    "UniPC": ("UniPCMultistepScheduler", {}, "unipc", {}, None),
    "LCM": ("LCMScheduler", {"clip_sample": False}, "lcm", {}, None),
}
"""diffusers' scheduler and its settings; our solver, its options and its end."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("StableDiffusionPipeline", name) for name in SAME),
        *(("StableDiffusionInpaintPipeline", name) for name in ("DDIM", "Heun", "DPM-Solver++ singlestep", "UniPC")),
    ],
)
def test_on_its_own_steps_a_solver_is_the_stock_scheduler(kind: str, name: str) -> None:
    cls, settings, solver, options, end = SAME[name]
    taken = inspect.signature(getattr(diffusers, cls)).parameters
    usual = {key: value for key, value in STOCK.items() if key in taken}
    made = tiny(kind, scheduler=getattr(diffusers, cls)(**usual, **settings))
    made.options |= {"strength": 1.0} if made.begins else {}
    before = state_of(made.pipe, made.network)
    stock = made.call(num_inference_steps=6)
    times = sorted({float(t) for t in made.pipe.scheduler.timesteps}, reverse=True)
    plan = Plan.of(solver, times, end=end, solver_options=options)
    assert len(times) == 6 or name == "PNDM"
    with apply(plan, made.pipe):
        # diffusers' schedulers keep their sigmas and samples in float32
        assert apart(made.call(num_inference_steps=6), stock) < 1e-4
    assert torch.equal(made.call(num_inference_steps=6), stock)
    assert state_of(made.pipe, made.network) == before


@pytest.mark.parametrize("cls", [EulerDiscreteScheduler, LMSDiscreteScheduler, HeunDiscreteScheduler])
def test_over_a_scheduler_that_scales_its_input(cls: Any) -> None:
    made, (_, plan) = tiny(scheduler=cls(**STOCK)), plans("unipc")
    expected, stock = made.ours(plan), made.call(num_inference_steps=3)
    with apply(plan, made.pipe):
        assert apart(made.call(), expected) < 1e-4
    assert torch.equal(made.call(num_inference_steps=3), stock)


def test_a_schedule_without_signal_at_the_end_is_the_configurations() -> None:
    """Euler's scheduler has 2**-24 where the others have 0, and the configuration is the same."""
    made = tiny(scheduler=EulerDiscreteScheduler(**(STOCK | ZERO)))
    expected = NoiseSchedule.from_config(dict(made.pipe.scheduler.config)).alpha(999)
    assert expected < 2**-12  # of this schedule less than theirs, for it falls to the end
    with apply(Plan.of("ddim", (999, 500)), made.pipe):
        found = made.pipe.scheduler.add_noise(torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.tensor([999]))
    torch.testing.assert_close(found, torch.full((1, 4, 8, 8), expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("count", "close"), [(1, 5e-4), (2, 5e-3), (4, 0.05)])
def test_steps_from_no_signal_are_the_stock_schedulers(count: int, close: float) -> None:
    """DDIM takes the clean data from v itself, without dividing by the signal that there is not.

    We have a signal of 2e-4 there, and the random network makes ten times as much of a difference in each step.
    """
    made = tiny(scheduler=DDIMScheduler(timestep_spacing="trailing", clip_sample=False, **(STOCK | ZERO)))
    stock = made.call(num_inference_steps=count)
    times = tuple(made.pipe.scheduler.timesteps.tolist())
    assert times == grid("trailing", count, NoiseSchedule.scaled_linear())
    with apply(Plan.of("ddim", times), made.pipe):
        assert apart(made.call(num_inference_steps=count), stock) < close


# from an image


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        *((FROM_IMAGE[0], solver) for solver in ("ddim", "dpm_solver++", "gls", "unipc")),
        *((kind, "gls") for kind in FROM_IMAGE[1:]),
    ],
)
@MIDDLE
def test_an_image_begins_within_the_plan(kind: str, solver: str) -> None:
    made = tiny(kind)
    for plan, strength, first in zip(plans(solver), (0.75, 0.5), (1, 2), strict=True):
        expected = made.ours(after(plan, first))
        with apply(plan, made.pipe):
            assert apart(made.call(num_inference_steps=4, strength=strength), expected) < 1e-4


def test_times_that_are_not_whole() -> None:
    made, plan = tiny("StableDiffusionImg2ImgPipeline"), Plan.of("dpm_solver++", (900.1, 500, 411.3, 33.7))
    expected = made.ours(after(plan, 1))
    with apply(plan, made.pipe), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert apart(made.call(timesteps=[900.1, 500, 411.3, 33.7], strength=0.75), expected) < 1e-4


@pytest.mark.parametrize(("strength", "first"), [(1.0, 0), (0.99, 1), (0.8, 1), (0.75, 1), (0.6, 2), (0.25, 3)])
def test_strength_is_a_share_of_the_plans_steps(strength: float, first: int) -> None:
    made, plan = tiny("StableDiffusionImg2ImgPipeline"), Plan.of("dpm_solver++", TIMES)
    asked: list[float] = []
    made.pipe.unet.register_forward_pre_hook(lambda module, args: asked.append(float(args[1])))
    with apply(plan, made.pipe):
        made.call(num_inference_steps=4, strength=strength)
    assert asked == list(TIMES[first:])


@pytest.mark.parametrize(("strength", "first"), [(1.0, 0), (0.75, 1), (0.25, 3)])
def test_two_evaluations_a_step_begin_together(strength: float, first: int) -> None:
    made, (_, plan) = tiny("StableDiffusionImg2ImgPipeline"), plans("heun")
    expected = made.ours(after(plan, first))
    with apply(plan, made.pipe):
        assert made.pipe.scheduler.order == 2
        assert apart(made.call(num_inference_steps=4, strength=strength), expected) < 1e-4


def test_heun_from_an_image_is_the_stock_scheduler() -> None:
    made = tiny("StableDiffusionImg2ImgPipeline", scheduler=HeunDiscreteScheduler(timestep_spacing="leading", **STOCK))
    stock = made.call(num_inference_steps=5, strength=0.6)
    times = sorted({float(t) for t in made.pipe.scheduler.timesteps}, reverse=True)
    with apply(Plan.of("heun", times), made.pipe):
        assert apart(made.call(num_inference_steps=5, strength=0.6), stock) < 1e-4


def test_free_numbers_in_the_middle_are_told() -> None:
    made, (plain, free) = tiny("StableDiffusionImg2ImgPipeline"), plans("gls")
    with apply(free, made.pipe), pytest.warns(UserWarning, match="free numbers are made for a beginning in pure noise"):
        made.call(num_inference_steps=4, strength=0.5)
    with apply(free, made.pipe), pytest.warns(UserWarning, match="not with an image"):
        made.call(num_inference_steps=4, strength=1.0)
    repainting = tiny("StableDiffusionInpaintPipeline")  # begins in pure noise there
    for one, plan, strength in ((made, plain, 0.5), (made, plain, 1.0), (repainting, free, 1.0)):
        with apply(plan, one.pipe), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            one.pipe.scheduler.add_noise(drawn(1, 1, 4), drawn(2, 1, 4), torch.tensor([900]))  # nobody's beginning
            one.call(num_inference_steps=4, strength=strength)


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        (
            "ddim",
            {},
            "num_inference_steps = 50: to begin in the middle of this plan, .*steps=4, or with strength=1",
        ),
        (
            "ddim",
            {"num_inference_steps": 4, "strength": 0.2},
            "strength or denoising_start leaves none of the plan's 4 steps; give a strength of at least 1/4, .*t = 120",
        ),
        ("plms", {"num_inference_steps": 4, "strength": 0.5}, "num_inference_steps = 4: .*num_inference_steps=5"),
        ("plms", {"num_inference_steps": 5, "strength": 0.5}, "solver plms begins otherwise than it goes on"),
        ("pfdiff", {"num_inference_steps": 4, "strength": 0.5}, "solver pfdiff cannot begin at t = 210"),
        ("heun", {"num_inference_steps": 7, "strength": 0.5}, "num_inference_steps = 7: .*num_inference_steps=4"),
    ],
)
def test_what_cannot_begin_within_the_plan(solver: str, options: dict[str, Any], message: str) -> None:
    made, (_, plan) = tiny("StableDiffusionImg2ImgPipeline"), plans(solver)
    plan = plan.tuned([{}] * 4)
    expected = made.ours(plan)
    with apply(plan, made.pipe):
        with pytest.raises(InputError, match=message) as raised:
            made.call(**options)
        assert "\n" not in str(raised.value)
        assert not len(_turns)
        assert apart(made.call(strength=1.0), expected) < 1e-4  # all of it


@pytest.mark.parametrize("batch", [1, 3])
def test_noise_is_added_as_the_stock_schedulers_do(batch: int) -> None:
    made, stock = tiny(), DDIMScheduler(**STOCK)
    times = torch.tensor([900, 1, 333][:batch])
    x, noise = drawn(1, 3, 4, 8, 8), drawn(2, 3, 4, 8, 8)
    with apply(Plan.of("ddim", TIMES), made.pipe):
        found = made.pipe.scheduler.add_noise(x, noise, times)
        half = made.pipe.scheduler.add_noise(x.half(), noise.half(), times)
    assert apart(found, stock.add_noise(x, noise, times)) < 1e-5
    assert half.dtype == torch.float16


# repainting


@pytest.mark.parametrize("solver", [*SOLVERS, "heun"])
def test_repainting_with_any_solver(solver: str) -> None:
    made, (_, plan) = tiny("StableDiffusionInpaintPipeline"), plans(solver)
    assert made.blends
    expected = made.ours(plan, whole=True)
    with apply(plan, made.pipe):
        assert apart(made.call(strength=1.0), expected) < 1e-4


@pytest.mark.parametrize(
    ("kind", "channels", "prediction"),
    [
        *((kind, 4, "epsilon") for kind in REPAINTING),
        *((kind, 9, said) for kind in REPAINTING[:2] for said in ("epsilon", "v_prediction", "sample")),
    ],
)
@MIDDLE
def test_repainting_begins_within_the_plan(kind: str, channels: int, prediction: str) -> None:
    stock = DDIMScheduler(prediction_type=prediction, clip_sample=False, **STOCK)
    made, (_, plan) = tiny(kind, scheduler=stock, in_channels=channels), plans("gls")
    expected = made.ours(after(plan, 2))
    with apply(plan, made.pipe):
        assert apart(made.call(num_inference_steps=4, strength=0.5), expected) < 1e-4


def test_repainting_v_with_evaluations_between() -> None:
    stock = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **STOCK)
    made = tiny("StableDiffusionInpaintPipeline", scheduler=stock)
    for plan in (Plan.of("heun", TIMES), Plan.of("pfdiff", TIMES)):
        expected = made.ours(plan, whole=True)
        with apply(plan, made.pipe):
            assert apart(made.call(strength=1.0), expected) < 1e-4


# ControlNet


def test_the_controlnet_stays_whole() -> None:
    made, (_, plan) = tiny("StableDiffusionControlNetPipeline"), plans("ddim")
    seen: list[tuple[str, int]] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            seen.append((name, sum(isinstance(block, LeftOut) for block in module.modules())))

        return hook

    with apply(plan, made.pipe):
        made.pipe.controlnet.register_forward_pre_hook(look("controlnet"))
        made.pipe.unet.register_forward_pre_hook(look("unet"))
        made.call()
    left = [count for name, count in seen if name == "unet"]
    assert left == [1, 2, 0, 1]
    assert [count for name, count in seen if name == "controlnet"] == [0] * 4


def test_a_controlnet_that_ends_early() -> None:
    made, plan = tiny("StableDiffusionControlNetPipeline"), Plan.of("ddim", TIMES)
    without = tiny()
    with apply(plan, made.pipe), apply(plan, without.pipe):
        assert torch.equal(made.call(controlnet_conditioning_scale=0.0), without.call())
        assert apart(made.call(control_guidance_end=0.5), made.call()) > 1e-3


# Stable Diffusion XL in two pipelines


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++", "unipc"])
def test_one_pipeline_ends_where_another_begins(solver: str) -> None:
    base, refiner = tiny("StableDiffusionXLPipeline"), tiny("StableDiffusionXLImg2ImgPipeline")
    plan = plans(solver)[1].tuned([{}] * 4)
    early, where = plan.model_copy(update={"steps": plan.steps[:2], "end": TIMES[2]}), 0.6
    with apply(plan, base.pipe), apply(plan, refiner.pipe):
        latents = base.call(denoising_end=where)
        assert not len(_turns)
        if solver == "ddim":  # which goes on as it ends
            assert apart(latents, base.ours(early)) < 1e-4
        model = refiner.model(3.0)
        _ = model.parts
        expected = run(model, after(plan, 2), latents)
        refined = refiner.call(image=latents, num_inference_steps=4, denoising_start=where)
        assert apart(refined, expected) < 1e-4
        assert apart(base.call(), base.ours(plan)) < 1e-4


@pytest.mark.parametrize(("solver", "where"), [("pfdiff", 0.6), ("plms", 0.2), ("heun", 0.5)])
def test_an_end_within_a_step_is_refused(solver: str, where: float) -> None:
    made, plan = tiny("StableDiffusionXLPipeline"), Plan.of(solver, TIMES)
    with apply(plan, made.pipe):
        with pytest.raises(InputError, match=f"solver {solver} cannot end at t = "):
            made.call(denoising_end=where)
        assert apart(made.call(), made.ours(plan)) < 1e-4


# given back


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", *FROM_TEXT, *FROM_IMAGE, *REPAINTING])
def test_removing_gives_the_pipeline_back(kind: str) -> None:
    made, plan = tiny(kind), free_plan("unipc", TIMES)
    before, sample = state_of(made.pipe, made.network), made.call(num_inference_steps=3)
    applied = apply(plan, made.pipe)
    made.call(num_inference_steps=4)
    applied.remove()
    assert state_of(made.pipe, made.network) == before
    assert torch.equal(made.call(num_inference_steps=3), sample)
    assert not len(_turns)
    assert not len(_users)


def test_two_pipelines_that_share_a_network() -> None:
    one, other = tiny(), tiny("StableDiffusionImg2ImgPipeline")
    other.pipe.unet = one.pipe.unet
    stock = tiny()
    stock.pipe.unet = one.pipe.unet
    first, second = free_plan("dpm_solver++", TIMES), free_plan("unipc", TIMES)
    wanted, others, plain = one.ours(first), other.ours(after(second, 1)), stock.call(num_inference_steps=3)
    cls = type(one.pipe.unet)
    with apply(first, one.pipe), apply(second, other.pipe):
        for _ in range(2):
            assert apart(one.call(), wanted) < 1e-4
            assert apart(other.call(num_inference_steps=4, strength=0.75), others) < 1e-4
            assert torch.equal(stock.call(num_inference_steps=3), plain)
    assert type(one.pipe.unet) is cls


def test_a_pipeline_made_of_anothers_parts() -> None:
    """With the scheduler that follows the other's plan, which is not undone by what happens here."""
    made, plan = tiny(), free_plan("ddim", TIMES)
    applied = apply(plan, made.pipe)
    again = tiny("StableDiffusionImg2ImgPipeline")
    again.pipe = StableDiffusionImg2ImgPipeline(**made.pipe.components, requires_safety_checker=False)
    again.pipe.set_progress_bar_config(disable=True)
    other = Plan.of("unipc", TIMES)
    expected, images = made.ours(plan), again.ours(after(other, 2))
    with apply(other, again.pipe):
        assert apart(again.call(num_inference_steps=4, strength=0.5), images) < 1e-4
        assert apart(made.call(), expected) < 1e-4
    assert type(again.pipe.scheduler) is DDIMScheduler
    again.pipe.scheduler = made.pipe.scheduler
    applied.remove()
    with pytest.raises(InputError, match="its plan was removed"):
        again.call(num_inference_steps=4)


def test_a_call_that_fails_leaves_the_pipeline_usable() -> None:
    made, plan = tiny(), free_plan("gls", TIMES)

    def fail(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if i == 1:
            raise RuntimeError("stopped")
        return {}

    before, whole = state_of(made.pipe, made.network), made.call(num_inference_steps=3)
    with apply(plan, made.pipe):
        expected = made.call()
        with pytest.raises(RuntimeError, match="stopped"):
            made.call(callback_on_step_end=fail)
        assert torch.equal(made.call(), expected)
        with pytest.raises(RuntimeError, match="stopped"):
            made.call(callback_on_step_end=fail)
    assert not len(_turns)
    assert state_of(made.pipe, made.network) == before
    assert torch.equal(made.call(num_inference_steps=3), whole)


# refused before anything is changed


def named(name: str) -> Any:
    """A pipeline of another class."""
    return type(name, (), {"scheduler": FlowMatchEulerDiscreteScheduler(), "config": {}})()


def flowing() -> Any:
    pipe = tiny().pipe
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    return pipe


def adapted() -> Any:
    pipe = tiny().pipe
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return pipe


REFUSED: dict[str, tuple[Callable[[], Any], Plan, str]] = {
    "pipeline": (lambda: named("LattePipeline"), Plan.of("ddim", TIMES), "is none that plans can be applied to"),
    "network": (
        lambda: named("FluxPipeline"),
        Plan.of("ddim", TIMES),
        "FluxPipeline has no transformer; load the whole",
    ),
    "flow matching": (flowing, Plan.of("ddim", TIMES), "is for flow matching"),
    "time": (lambda: tiny().pipe, Plan.of("ddim", (1000, 3)), "t = 1000 lies outside the time steps of StableDiff"),
    "layer": (lambda: tiny().pipe, Plan(solver="ddim", steps=(Step(t=9, skip={77}),)), "layer 77 does not exist"),
    "adapter": (adapted, Plan(solver="ddim", steps=(Step(t=9, skip={1}),)), "layers cannot be found with encoder_hid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, plan, message = REFUSED[case]
    pipe = make()
    network = getattr(pipe, "unet", torch.nn.Identity())
    before = state_of(pipe, network)
    with pytest.raises(InputError, match=message) as raised:
        apply(plan, pipe)
    assert "\n" not in str(raised.value)
    assert state_of(pipe, network) == before


# a plan that a search has saved, in another process

SCRIPT = """
import sys, torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("pipeline", safety_checker=None)
stock = type(pipe.scheduler).__name__
{lines}
x = pipe("a cat", generator=torch.Generator().manual_seed(5), output_type="latent").images
torch.save(x, "x.pt")
applied.remove()
print(stock == type(pipe.scheduler).__name__, stock)
"""
LINES = """import autodiffusion
applied = autodiffusion.apply(autodiffusion.Plan.load("run/plan.json"), pipe)"""


def from_text(tokens: Path) -> Any:
    return StableDiffusionPipeline(
        vae=vae(),
        unet=copied(unet()),
        scheduler=PNDMScheduler(skip_prk_steps=True, **STOCK),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **text_parts(tokens),
    )


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("make", "solver", "size"),
    [
        (from_text, "ddim", (4, 8, 8)),
        (functools.partial(flow_from_text, "StableDiffusion3Pipeline"), "dpm_solver++", (16, 8, 8)),
    ],
)
def test_a_plan_that_was_found_in_a_new_process(
    make: Callable[[Path], Any],
    solver: str,
    size: tuple[int, ...],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(line in readme for line in LINES.splitlines())
    made = make(tmp_path / "tokens")
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "captions.txt").write_text("a cat\ntwo dogs\nthe sea\n" * 8)
    few = "--samples 3 --confirm-samples 6 --finalists 1 --budget 700 --reference teacher:3:12"
    what = "--layers --max-cost 75% --max-steps 3 --min-steps 3 --starts uniform --features test_text_to_image:features"
    found = command(f"search pipeline --captions captions.txt --steps 3 --solver {solver} {what} {few} --out run")
    assert found.status == 0, found.err
    plan = Plan.load("run/plan.json")
    assert plan != plan.leaving()
    (tmp_path / "script.py").write_text(SCRIPT.format(lines=LINES))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", type(made.scheduler).__name__]
    (tmp_path / "captions.txt").write_text("a cat\n")
    model = load_model(str(tmp_path / "pipeline"), captions=str(tmp_path / "captions.txt"))
    [(_, expected)] = walk(model, [plan], [0], 0, Cost(), begun=Beginnings(drawn(5, 1, *size), torch.tensor([0])))
    assert apart(torch.load(tmp_path / "x.pt", weights_only=True), expected) < 1e-4
