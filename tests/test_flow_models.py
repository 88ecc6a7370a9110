"""Stable Diffusion 3 and Flux as models: against diffusers' own pipelines, by size, searched, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, refused_model
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from test_text_to_image import PICKED, SEED, final, texts_of
from tiny_flow import packed, whole
from torch import Tensor

from autodiffusion import InputError, Model, Plan, apply, load_model, sample
from autodiffusion._plans.flow import FlowSchedule
from autodiffusion._plans.grids import grid

TEXTS = ("a cat", "two dogs on a bed", "the sea", "a red bus", "snow", "an old man with a hat", "tea")
SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"
SMALL: dict[str, dict[str, Any]] = {SD3: {}, FLUX: {"model_options": {"height": 16, "width": 16}}}
"""Stable Diffusion 3 says its size itself, Flux's is always of 128 latents."""

pytestmark = [
    pytest.mark.usefixtures("offline"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of each kind by its name, and captions."""
    folder = tmp_path_factory.mktemp("flow")
    for kind in SMALL:
        whole(kind, folder / "tokens").save_pretrained(folder / kind)
    (folder / "captions.txt").write_text("\n".join(TEXTS))
    (folder / "many.txt").write_text("\n".join(f"{text} and {chr(97 + i)}" for i in range(20) for text in TEXTS))
    return folder


def loaded(folder: Path, kind: str, **options: Any) -> Model:
    captions = {"captions": str(folder / "captions.txt")}
    return load_model(str(folder / kind), **(captions | SMALL[kind] | options))


def laid_out(kind: str, x: Tensor) -> Tensor:
    return packed(x) if kind == FLUX else x


def near(x: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# against diffusers


@pytest.mark.parametrize(
    ("kind", "options", "scale"),
    [
        (SD3, {}, None),
        (SD3, {}, 1.0),
        (SD3, {"t5s": False}, 4.0),
        (SD3, {"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}, 3.0),
        (FLUX, {}, None),
        (FLUX, {}, 1.5),
        (FLUX, {"guidance": False, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)}, None),
    ],
)
def test_a_pipeline_is_sampled_as_diffusers_samples_it(
    tmp_path: Path, kind: str, options: dict[str, Any], scale: float | None
) -> None:
    theirs = whole(kind, tmp_path / "tokens", **options)
    theirs.save_pretrained(tmp_path / kind)
    (tmp_path / "captions.txt").write_text("\n".join(TEXTS))
    ours = loaded(tmp_path, kind, guidance_scale=scale)
    assert (ours.shape, ours.prediction, ours.clip) == ((16, 8, 8), "flow_prediction", False)
    plan = Plan.of("euler", grid("linspace" if kind == SD3 else "uniform", 5, ours.schedule))
    asked: dict[str, Any] = {
        "prompt": texts_of(ours, 3),
        "latents": laid_out(kind, ours.noise(range(3), SEED)),
        "num_inference_steps": 5,
        "height": 16,
        "width": 16,
    } | ({} if scale is None else {"guidance_scale": scale})
    expected = theirs(output_type="latent", **asked).images
    x = final(ours, plan, 3)
    assert expected.std() > 0.2
    near(laid_out(kind, x), expected)
    images = theirs(output_type="np", **asked).images
    drawn = sample(ours, plan, 3, SEED).permute(0, 2, 3, 1)
    torch.testing.assert_close(drawn.float(), torch.from_numpy(images * 255), rtol=0, atol=0.51)
    # none of this is so without the text
    asked["prompt"] = asked["prompt"][::-1]
    assert float((theirs(output_type="latent", **asked).images - expected).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", SMALL)
def test_an_applied_plan_is_what_was_searched(files: Path, kind: str) -> None:
    ours, pipe = loaded(files, kind), whole(kind, files / "tokens")
    plan = Plan.of("dpm_solver++", [1000, 802.5, 411, 90.25])
    plan = plan.leaving([frozenset(skip) for skip in ({1}, {}, {0, 2}, {2})])
    with apply(plan, pipe):
        images = pipe(
            texts_of(ours, 2),
            latents=laid_out(kind, ours.noise(range(2), SEED)),
            height=16,
            width=16,
            num_inference_steps=4,
            output_type="latent",
        ).images
    near(images, laid_out(kind, final(ours, plan, 2)))


# size


def test_flux_is_shifted_by_the_size_of_its_images(files: Path) -> None:
    for height, width in ((16, 16), (64, 32), (256, 256)):
        schedule = loaded(files, FLUX, model_options={"height": height, "width": width}).schedule
        assert isinstance(schedule, FlowSchedule)
        tokens = (height // 4) * (width // 4)
        assert schedule.shift == pytest.approx(torch.tensor(calculate_shift(tokens)).exp().item())
    # as its pipeline: 128 latents high and wide
    assert loaded(files, FLUX, model_options={}).shape == (16, 128, 128)


def test_a_size_is_asked_for(files: Path) -> None:
    ours, theirs = loaded(files, SD3, model_options={"height": 16, "width": 24}), whole(SD3, files / "tokens")
    assert ours.shape == (16, 8, 12)
    expected = theirs(
        texts_of(ours, 1),
        latents=ours.noise([0], SEED),
        height=16,
        width=24,
        num_inference_steps=2,
        output_type="latent",
    ).images
    near(final(ours, Plan.of("ddim", grid("linspace", 2, ours.schedule)), 1), expected)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (SD3, {"height": 18}, "model option height = 18 is not a multiple of 4 pixels"),
        (SD3, {"width": 36}, "model option width = 36 is more than its network has, 32"),
        (FLUX, {"width": 0}, "model option width = 0 is not a multiple of 4 pixels above 0"),
        (FLUX, {"height": "big"}, "model option height = big is not a multiple"),
        (FLUX, {"higth": 16}, "model option 'higth' is unknown (did you mean 'height'"),
    ],
)
def test_sizes_that_do_not_fit(files: Path, kind: str, options: dict[str, Any], told: str) -> None:
    assert told in refused_model(files / kind, model_options=options)


# how it is computed


@pytest.mark.parametrize("kind", SMALL)
def test_half_precision(files: Path, kind: str) -> None:
    exact, half = loaded(files, kind), loaded(files, kind, dtype="bfloat16")
    plan = Plan.of("heun", grid("uniform", 3, exact.schedule))
    fine, rough = final(exact, plan, 2), final(half, plan, 2)
    assert rough.dtype == torch.float32
    assert 0 < float((rough - fine).norm() / fine.norm()) < 0.1


@pytest.mark.parametrize("kind", SMALL)
def test_without_captions_there_are_layers_only(files: Path, kind: str) -> None:
    model = loaded(files, kind, captions=None)
    assert len(model.layers) == {SD3: 3, FLUX: 4}[kind]
    with pytest.raises(InputError, match="needs captions; give --captions FILE"):
        model.condition([0], 0)


# through the command line


FEW = f"{PICKED} --reference teacher:3:12 --samples 3 --confirm-samples 10 --finalists 1"
SIZE = {SD3: "", FLUX: "--model-option height=16 --model-option width=16"}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.usefixtures("plain")
def test_a_search_with_layers(command: Command, files: Path, kind: str) -> None:
    how = "--layers --max-cost 75% --max-steps 2 --min-steps 2 --starts uniform --budget 330"
    line = f"search {files / kind} --captions {files / 'many.txt'} {SIZE[kind]} --steps 2 {how} {FEW} --out run"
    status, out, err = command(line)
    assert status == 0, err
    assert "found" in out
    plan = Plan.load("run/plan.json")
    assert all(1 <= t <= 1000 for t in plan.times)
    assert plan != plan.leaving()
    # the run knows the captions and the size: resumed, it is finished already
    assert command("search --config run/config.yaml --out run").status == 0


@pytest.mark.parametrize("kind", SMALL)
def test_evaluate_sample_layers_and_sigmas(command: Command, files: Path, kind: str) -> None:
    model = f"{files / kind} {SIZE[kind]}"
    captions = f"--captions {files / 'many.txt'}"
    scores = {}
    for scale in ("", "--guidance-scale 1"):
        line = f"evaluate uniform:2 --model {model} {captions} {FEW.partition('--confirm')[0]} {scale} --json"
        status, out, err = command(line)
        assert (status, err) == (0, "")
        assert json.loads(out)["nfe"] == 2  # a guided prediction counts as one
        scores[scale] = json.loads(out)["scores"]["fid"]["value"]
    assert len(set(scores.values())) == 2
    assert command(f"sample linspace:2 --model {model} {captions} -n 4 --out a.png") == (0, "a.png\n", "")
    assert Path("a.png").stat().st_size > 0
    status, out, err = command(f"layers {model} --json")
    assert (status, err) == (0, "")
    kinds = [layer["kind"] for layer in json.loads(out)["layers"]]
    assert kinds == ["transformer"] * {SD3: 3, FLUX: 4}[kind]


def test_its_sigmas_are_those_of_its_scheduler(command: Command, files: Path) -> None:
    status, out, err = command(f"plans linspace:4 --sigmas --model {files / SD3}")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    assert (status, err) == (0, "")
    assert [float(value) for value in out.split(", ")] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


# what cannot be used


@pytest.fixture
def damaged(files: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a pipeline that a test may spoil."""
    return lambda kind: Path(shutil.copytree(files / kind, tmp_path / kind))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("kind", "place", "changes", "told"),
    [
        (SD3, "model_index.json", {"_class_name": "StableDiffusion3InpaintPipeline"}, "in a StableDiffusion3Inpaint"),
        (SD3, "model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "its vae is a AutoencoderTiny"),
        (FLUX, "model_index.json", {"text_encoder_2": [None, None]}, "its text_encoder_2 is a None"),
        (FLUX, "transformer/config.json", {"in_channels": 384}, "makes 64 channels of 384"),
        (SD3, "vae/config.json", {"latent_channels": 8}, "makes 16 channels of 16"),
        (SD3, "scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas is set"),
        (FLUX, "scheduler/scheduler_config.json", {"time_shift_type": "cubic"}, "time_shift_type 'cubic' is unknown"),
        (SD3, "transformer/config.json", {"_class_name": "DiTTransformer2DModel"}, "is a DiTTransformer2DModel; this"),
    ],
)
def test_other_pipelines_are_refused(
    damaged: Callable[[str], Path], kind: str, place: str, changes: dict[str, Any], told: str
) -> None:
    folder = damaged(kind)
    rewrite(folder / place, **changes)
    assert told in refused_model(folder)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (DDIMScheduler(), "its scheduler is DDIMScheduler, which is not for flow matching"),
        (
            DPMSolverMultistepScheduler(use_flow_sigmas=True),
            "prediction 'epsilon' does not go with this noise schedule",
        ),
    ],
)
def test_schedulers_of_other_models_are_refused(damaged: Callable[[str], Path], scheduler: Any, told: str) -> None:
    folder = damaged(SD3)
    scheduler.save_pretrained(folder / "scheduler")
    assert told in refused_model(folder)


def test_options_of_other_models(files: Path, tmp_path: Path) -> None:
    for option in ({"classes": 3}, {"null_class": 0}, {"schedule": "flow"}, {"checkpoint": "a.safetensors"}):
        assert "takes no --" in refused_model(files / SD3, **option)
    whole(FLUX, tmp_path / "tokens", guidance=False).save_pretrained(tmp_path / "schnell")
    assert "is given no guidance scale; leave --guidance-scale out" in refused_model(
        tmp_path / "schnell", guidance_scale=3.5
    )


@pytest.mark.parametrize(("kind", "part"), [(SD3, "tokenizer_3"), (FLUX, "tokenizer"), (FLUX, "text_encoder_2")])
def test_missing_parts_are_told(damaged: Callable[[str], Path], kind: str, part: str) -> None:
    folder = damaged(kind)
    shutil.rmtree(folder / part)
    message = refused_model(folder)
    assert part in message or "weights cannot be loaded" in message
