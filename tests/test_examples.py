"""The files of examples/ as a reader runs them, on tiny pipelines: what they leave is what our own loop gives."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from test_text_to_image import xl_parts
from tiny_flow import whole
from tiny_pipelines import STOCK, copied, text_parts, unet, vae

from autodiffusion import NoiseSchedule, Plan, Step, apply, load_model
from autodiffusion._plans.grids import grid
from autodiffusion._sampling.sampling import Beginnings, Cost, walk

pytestmark = [
    pytest.mark.usefixtures("offline"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = ("sdxl", "flux", "image_to_image", "own_network", "comfyui_sigmas")
TIMES = (900.0, 650.0, 300.0, 120.0)
SKIPS = ({1}, (), {0}, ())
PLAN = Plan(solver="dpm_solver++", steps=tuple(Step(t=t, skip=skip) for t, skip in zip(TIMES, SKIPS, strict=True)))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a file of examples/ with these arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


def pixels(file: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(file)).astype(np.float32)


def close(file: str, images: torch.Tensor) -> None:
    """The picture is the only one of ``images`` (uint8 ``[1, C, H, W]``), but for the last step of rounding."""
    assert np.abs(pixels(file) - images[0].permute(1, 2, 0).numpy()).max() <= 1
    assert pixels(file).std() > 5


def decoded(folder: str, noise: torch.Tensor, plan: Plan, **options: Any) -> torch.Tensor:
    """What our own loop draws of the caption in captions.txt, from this noise."""
    model = load_model(folder, captions="captions.txt", **options)
    [(_, x)] = walk(model, [plan], [0], 0, Cost(), begun=Beginnings(noise, torch.tensor([0])))
    return model.decode(x)


def test_every_file_is_run_here() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(RUN)


@pytest.mark.parametrize("name", RUN)
def test_it_says_how_it_is_run(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert re.search(rf"^    python (examples/)?{name}\.py run/plan\.json", text, re.MULTILINE)


def test_sdxl(example: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    pipe = StableDiffusionXLPipeline(**xl_parts(tmp_path / "tokens"), add_watermarker=False)
    pipe.save_pretrained("xl")
    PLAN.save("plan.json")
    example("sdxl", "plan.json", "a cat", "--model", "xl", "--device", "cpu", "--seed", "3", "--out", "cat.png")
    Path("captions.txt").write_text("a cat\n")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    close("cat.png", decoded("xl", noise, PLAN, guidance_scale=5.0))  # the pipeline's own


def test_flux(example: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole("FluxPipeline", tmp_path / "tokens").save_pretrained("flux")
    PLAN.save("plan.json")
    left = example("flux", "plan.json", "a cat", "--model", "flux", "--size", "16", "--device", "cpu", "--out", "a.png")
    assert capsys.readouterr().out.startswith("FluxPipeline asks its transformer 4 times, without 1 layer at 900, 1 la")
    assert type(left["pipe"].scheduler) is FlowMatchEulerDiscreteScheduler
    Path("captions.txt").write_text("a cat\n")
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    close("a.png", decoded("flux", noise, PLAN, model_options={"height": 16, "width": 16}))


def test_image_to_image(example: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    pipe = StableDiffusionImg2ImgPipeline(
        vae=vae(),
        unet=copied(unet()),
        scheduler=DDIMScheduler(clip_sample=False, **STOCK),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **text_parts(tmp_path / "tokens"),
    )
    pipe.save_pretrained("pipeline")
    PLAN.save("plan.json")
    draw = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(draw).save("photo.png")
    example("image_to_image", "plan.json", "photo.png", "a cat", "--model", "pipeline", "--device", "cpu")
    asked: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: asked.append(float(args[1])))
    with apply(PLAN, pipe):
        options = {"strength": 0.5, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}
        expected = pipe("a cat", image=Image.open("photo.png"), output_type="pt", **options).images
    assert asked[-2:] == list(TIMES[2:])  # and before, to find the layers
    close("image_to_image.png", (255 * expected).round())


@pytest.mark.usefixtures("plain")
def test_own_network(example: Callable[..., dict[str, Any]], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    text = (EXAMPLES / "own_network.py").read_text()
    [line] = re.findall(r"^    autodiffusion (search .*)$", text, re.MULTILINE)
    few = "--samples 16 --confirm-samples 32 --finalists 1 --budget 1500"
    done = command(f"{line.replace('teacher:50', 'teacher:10:32')} {few}")
    assert done.status == 0, done.err
    names = example("own_network", "run/plan.json", "--out", "circles.png")
    drawn = pixels("circles.png")
    assert drawn.shape == (64, 64)
    # with enough steps every image is one of its circles
    many = Plan.of("euler", grid("uniform", 40, NoiseSchedule.flow()))
    images = names["sample"](names["factory"](), many, 8).float() / 127.5 - 1
    circles = names["Circles"]().circles
    nearest = (images[:, None] - circles[None]).abs().flatten(2).mean(-1).min(1).values
    assert float(nearest.max()) < 0.02


@pytest.mark.parametrize("schedule", ["scaled_linear", "flow"])
def test_comfyui_sigmas(
    example: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    PLAN.save("plan.json")
    example("comfyui_sigmas", "plan.json", "--schedule", schedule)
    line, lost = capsys.readouterr().out.splitlines()
    assert Path("sigmas.txt").read_text() == f"{line}\n"
    assert lost == "not in these sigmas: solver dpm_solver++, the layers left out at 2 steps"
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[[int(t) for t in TIMES]]
    levels = ((1 - kept) / kept).sqrt().tolist() if schedule == "scaled_linear" else [t / 1000 for t in TIMES]
    assert [float(value) for value in line.split(", ")] == pytest.approx([*levels, 0], rel=1e-6)
