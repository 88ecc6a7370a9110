"""Time that an iteration of a pipeline takes outside the network, with a plan applied and with the stock scheduler.

    .venv/bin/python -m bench.apply_time [--runs 15] [--steps 20] [--batch 4] [--size 32]

One thread, processor time. Both are timed in turns in one run, on the same time steps; the figure is the median of the
ratios of the turns, with their quartiles. The loop of the pipeline is in both.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse
import time
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

from autodiffusion import Plan, apply

SMALL: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}


def pixels(size: int, batch: int, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """A pipeline without text, and how it is called. The network is small: its own time does not count."""
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(size, **SMALL, **blocks).eval().to(memory_format=torch.channels_last)
    return DDPMPipeline(unet, scheduler), {"batch_size": batch, "output_type": "pt"}


def text(size: int, batch: int, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion with guidance, from a text that is encoded already to latents of a quarter of the size."""
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    unet = UNet2DConditionModel(size // 4, cross_attention_dim=8, attention_head_dim=2, **SMALL, **blocks)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipe = StableDiffusionPipeline(
        vae=vae, unet=unet.eval(), scheduler=scheduler, requires_safety_checker=False, **parts
    )
    shown = {name: torch.zeros(batch, 8, 8) for name in ("prompt_embeds", "negative_prompt_embeds")}
    return pipe, {"output_type": "latent", **shown}


def flow(size: int, batch: int, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 3 with guidance, likewise."""
    sizes = {"sample_size": size // 4, "pos_embed_max_size": size // 4, "num_layers": 4, "num_attention_heads": 2}
    widths = {"joint_attention_dim": 8, "caption_projection_dim": 8, "attention_head_dim": 4}
    transformer = SD3Transformer2DModel(in_channels=4, pooled_projection_dim=8, out_channels=4, **sizes, **widths)
    parts = [name for i in ("", "_2", "_3") for name in (f"text_encoder{i}", f"tokenizer{i}")]
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=scheduler, vae=vae, **dict.fromkeys(parts)
    )
    pooled = {name: torch.zeros(batch, 8) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
    shown = {name: torch.zeros(batch, 8, 8) for name in ("prompt_embeds", "negative_prompt_embeds")}
    return pipe, {"output_type": "latent", "height": size // 4, "width": size // 4, **shown, **pooled}


CASES: dict[str, tuple[Any, Any, str, bool]] = {
    "ddim": (pixels, DDIMScheduler, "ddim", False),
    "dpm_solver++": (pixels, DPMSolverMultistepScheduler, "dpm_solver++", False),
    "gls beside DPM-Solver++": (pixels, DPMSolverMultistepScheduler, "gls", False),
    "dpm_solver++, layers left out": (pixels, DPMSolverMultistepScheduler, "dpm_solver++", True),
    "Stable Diffusion, dpm_solver++": (text, DPMSolverMultistepScheduler, "dpm_solver++", False),
    "the same, layers left out": (text, DPMSolverMultistepScheduler, "dpm_solver++", True),
    "Stable Diffusion 3, euler": (flow, FlowMatchEulerDiscreteScheduler, "euler", False),
    "Stable Diffusion 3, heun": (flow, FlowMatchHeunDiscreteScheduler, "heun", False),
    "euler, layers left out": (flow, FlowMatchEulerDiscreteScheduler, "euler", True),
}
"""The pipeline, its stock scheduler, the solver in its place, and whether each step leaves out layers."""


def outside(pipe: Any, steps: int, options: dict[str, Any]) -> float:
    """Seconds of processor time outside the network for an iteration of the pipeline's loop."""
    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    kinds = (UNet2DModel, UNet2DConditionModel, SD3Transformer2DModel)  # whatever class apply has derived from them
    inside, cls = 0.0, next(kind for kind in kinds if isinstance(network, kind))
    forward = cls.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        start = time.process_time()
        try:
            return forward(*args, **kwargs)
        finally:
            inside += time.process_time() - start

    with patch.object(cls, "forward", timed):
        start = time.process_time()
        pipe(num_inference_steps=steps, **options)
        return (time.process_time() - start - inside) / steps


def compare(case: str, runs: int, steps: int, batch: int, size: int) -> tuple[float, float, list[float]]:
    """Seconds with the stock scheduler and with the plan, and the ratio of each turn."""
    make, stock, solver, layers = CASES[case]
    pipe, options = make(size, batch, stock(**({"steps_offset": 1} if make is text else {})))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(steps)
    times = sorted(set(pipe.scheduler.timesteps.tolist()), reverse=True)  # Heun's are there twice
    plan = Plan.of(solver, times)
    if layers:
        plan = plan.leaving([frozenset({1, 3})] * steps)
    applied = apply(plan, pipe)  # which finds the layers
    schedulers, times = {"stock": applied.pipe.scheduler.stock, "plan": pipe.scheduler}, {"stock": [], "plan": []}
    for turn in range(runs + 1):
        for name, scheduler in schedulers.items():
            with patch.object(pipe, "scheduler", scheduler) if pipe.scheduler is not scheduler else nullcontext():
                seconds = outside(pipe, steps, options)
            times[name] += [seconds] * (turn > 0)  # the first is warm-up
    applied.remove()
    ratios = [ours / theirs for ours, theirs in zip(times["plan"], times["stock"], strict=True)]
    return float(np.median(times["stock"])), float(np.median(times["plan"])), ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="turns of each")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<32} {'stock':>9} {'plan':>9} {'ratio':>7}  quartiles")
    for case in CASES:
        stock, plan, ratios = compare(case, args.runs, args.steps, args.batch, args.size)
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        print(f"{case:<32} {1e6 * stock:6.0f} us {1e6 * plan:6.0f} us {middle:7.2f}  {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
