"""What a pipeline would do with a plan, told from its configurations: what ``apply`` does, and why it would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from conftest import Command
from diffusers import DDIMScheduler, DDPMPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from test_pipeline import pipeline, unet, with_classes
from tiny_flow import fluxes, stable3
from tiny_pipelines import pixart, stable

from autodiffusion import InputError, Plan, Step, apply
from autodiffusion._pipelines.check import check
from autodiffusion._pipelines.denoisers import PIPELINES

pytestmark = [
    pytest.mark.usefixtures("offline"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

TIMES = (900.0, 650.0, 300.0, 120.0)
SKIPS = Plan(solver="ddim", steps=(Step(t=900, skip={1}), Step(t=650), Step(t=300, skip={0, 2}), Step(t=120)))
WHOLE = Plan.of("ddim", TIMES)
OF_PIXELS = {"DDPMPipeline": "ddpm", "DDIMPipeline": "ddim", "PNDMPipeline": "pndm", "LDMPipeline": "ldm"}
OF_PIXELS |= {"DiTPipeline": "dit"}


def made(kind: str) -> Any:
    """A tiny pipeline of this class."""
    if kind in OF_PIXELS:
        return pipeline(OF_PIXELS[kind])
    make: Any = (
        pixart if "PixArt" in kind else stable3 if "Diffusion3" in kind else fluxes if "Flux" in kind else stable
    )
    return make(kind).pipe


def saved(pipe: Any, folder: Path) -> Path:
    """The pipeline's folder, without any weights."""
    pipe.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_pipeline_is_told_without_its_weights(kind: str, tmp_path: Path) -> None:
    pipe = made(kind)
    found = check(SKIPS, saved(pipe, tmp_path / "pipeline"))
    network = "unet" if hasattr(pipe, "unet") else "transformer"
    assert (found.pipeline, found.network, found.nfe) == (kind, network, 4)
    assert found.left_out == ((900, 1), (300, 2))
    assert bool(found.strength) == any(part in kind for part in ("Img2Img", "Inpaint", "Fill"))
    assert str(found).startswith(f"{kind} asks its {network} 4 times, without 1 layer at 900, 2 layers at 300")
    with apply(SKIPS, pipe):  # and it does
        assert len(pipe.scheduler.timesteps) == found.nfe


@pytest.mark.parametrize("text", [False, True])
def test_networks_with_classes(text: bool, tmp_path: Path) -> None:
    pipe = stable(num_class_embeds=4).pipe if text else DDPMPipeline(unet(num_class_embeds=4), DDIMScheduler())
    found = check(SKIPS, saved(pipe, tmp_path / "pipeline"))
    assert found.left_out == ((900, 1), (300, 2))
    with apply(SKIPS, pipe):
        assert len(pipe.scheduler.timesteps) == found.nfe


def test_nothing_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = saved(made("StableDiffusionPipeline"), tmp_path / "pipeline"), []
    to = ModelMixin.to

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({parameter.device.type for parameter in self.parameters()})
        return to(self, *args, **kwargs)

    monkeypatch.setattr(ModelMixin, "to", watched)
    check(SKIPS, folder)
    assert seen
    assert all(devices == {"meta"} for devices in seen)


@pytest.mark.parametrize(
    ("solver", "told"),
    [
        ("ddim", "strength below 1: call it with num_inference_steps=4"),
        ("heun", "strength below 1: call it with num_inference_steps=4"),
        ("plms", "strength below 1 is refused (solver plms cannot begin at t = 650"),
        ("pfdiff", "strength below 1 is refused (solver pfdiff cannot begin at t = 475"),
    ],
)
def test_how_strength_may_be_below_1(tmp_path: Path, solver: str, told: str) -> None:
    folder = saved(made("StableDiffusionImg2ImgPipeline"), tmp_path / "pipeline")
    assert told in check(Plan.of(solver, TIMES), folder).strength


def test_what_is_not_followed(tmp_path: Path) -> None:
    folder = saved(made("StableDiffusionPipeline"), tmp_path / "text")
    assert check(WHOLE, folder).not_followed == ("num_inference_steps", "timesteps", "sigmas", "eta")
    folder = saved(pipeline("ddim", clip_sample=True), tmp_path / "pixels")
    assert check(WHOLE, folder).not_followed == ("num_inference_steps", "eta", "clip_sample of DDIMScheduler")
    clipped = WHOLE.model_copy(update={"solver_options": {"clip": True}})
    assert check(clipped, folder).not_followed == ("num_inference_steps", "eta")
    assert check(Plan.of("heun", TIMES), folder).nfe == 7


# refused, as apply refuses it


def refusal(plan: Any, name: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        check(plan, name)
    message = str(caught.value)
    assert "\n" not in message
    return message


ODD = {
    "time": (lambda: stable().pipe, Plan.of("ddim", (1000, 3))),
    "layer": (lambda: stable().pipe, Plan(solver="ddim", steps=(Step(t=9, skip={77}),))),
    "for flow matching": (lambda: stable(scheduler=FlowMatchEulerDiscreteScheduler()).pipe, WHOLE),
    "not for flow matching": (lambda: fluxes(scheduler=DDIMScheduler()).pipe, WHOLE),
    "no schedule": (lambda: stable(scheduler=EDMEulerScheduler()).pipe, WHOLE),
    "classes": (lambda: with_classes("timestep"), SKIPS),
    "classes beside a text": (lambda: stable(class_embed_type="timestep").pipe, SKIPS),
    "option": (lambda: stable().pipe, WHOLE.model_copy(update={"solver_options": {"order": 3}})),
}


@pytest.mark.parametrize("case", ODD)
def test_it_is_refused_as_apply_refuses_it(case: str, tmp_path: Path) -> None:
    make, plan = ODD[case]
    pipe = make()
    with pytest.raises(InputError) as caught:
        apply(plan, pipe)
    folder = saved(pipe, tmp_path / "pipeline")
    assert refusal(plan, folder) == f"{folder}: {caught.value}"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("place", "changes", "told"),
    [
        ("model_index.json", {"_class_name": "MyPipeline"}, "its pipeline MyPipeline is no class of diffusers"),
        ("model_index.json", {"_class_name": "StableVideoDiffusionPipeline"}, "is none that plans can be applied to"),
        ("model_index.json", {"unet": [None, None]}, "StableDiffusionPipeline has no unet; load the whole pipeline"),
        (
            "model_index.json",
            {"unet": ["mine", "MyUNet"]},
            "says that its unet is ['mine', 'MyUNet'], which is no class",
        ),
        ("model_index.json", {"scheduler": None}, "has no scheduler; load the whole pipeline"),
        ("unet/config.json", {"down_block_types": ["NoBlock"]}, "no UNet2DConditionModel can be made of its conf"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "no DDIMScheduler can be made of its conf"),
    ],
)
def test_files_that_describe_no_such_pipeline(tmp_path: Path, place: str, changes: dict[str, Any], told: str) -> None:
    folder = saved(made("StableDiffusionPipeline"), tmp_path / "pipeline")
    rewrite(folder / place, **changes)
    assert told in refusal(WHOLE, folder)


@pytest.mark.parametrize("place", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    ("content", "told"), [(None, "is missing; give a pipeline's folder"), ("[1]", "is no JSON obj")]
)
def test_files_that_cannot_be_read(tmp_path: Path, place: str, content: str | None, told: str) -> None:
    folder = saved(made("StableDiffusionPipeline"), tmp_path / "pipeline")
    (folder / place).unlink()
    if content is not None:
        (folder / place).write_text(content)
    message = refusal(WHOLE, folder)
    assert place in message
    assert told in message


def test_names_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert "is a file; give the folder or the hub name" in refusal(WHOLE, tmp_path / "plan.json")
    assert "no such folder, and the hub cannot be reached for it" in refusal(WHOLE, "nobody/nothing")
    assert "'plan.json' is not a plan; read it with Plan.load" in refusal("plan.json", tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LocalEntryNotFoundError("no connection"), "no such folder, and the hub cannot be reached for it"),
        (EntryNotFoundError("404"), "no such folder, and the hub has no such file"),
        (GatedRepoError("401", response=MagicMock()), "the hub gives it to those alone who agreed to its terms"),
    ],
)
def test_what_the_hub_says(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def download(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    assert f"nobody/nothing/model_index.json: {told}" in refusal(WHOLE, "nobody/nothing")


# through the command line


def test_the_command(command: Command, tmp_path: Path) -> None:
    folder = saved(made("StableDiffusionXLImg2ImgPipeline"), tmp_path / "pipeline")
    SKIPS.save("plan.json")
    status, out, err = command(f"plans plan.json --for {folder}")
    assert (status, err) == (0, "")
    assert out.startswith("follows: StableDiffusionXLImg2ImgPipeline asks its unet 4 times, without 1 layer at 900, 2 ")
    assert out.count("\n") == 1
    status, out, err = command(f"plans plan.json --for {folder} --json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert Plan.model_validate(found["plan"]) == SKIPS
    assert found["follows"]["nfe"] == 4
    assert found["follows"]["left_out"] == [[900, 1], [300, 2]]


def test_the_command_refuses_in_a_line(command: Command, tmp_path: Path) -> None:
    folder = saved(made("StableDiffusionPipeline"), tmp_path / "pipeline")
    Plan.of("ddim", (1000.0, 3.0)).save("plan.json")
    for line, told in (
        (f"plans plan.json --for {folder}", "t = 1000 lies outside the time steps of StableDiffusionPipeline"),
        (f"plans plan.json --for {folder} --resample 3 --out new.json", "t = 1000 lies outside"),
        ("plans plan.json --for nowhere", "no such folder"),
        (f"plans --for {folder}", "are for one plan; give its file or its name"),
        (f"plans plan.json --for {folder} --sigmas --schedule linear", "give one of them"),
    ):
        status, out, err = command(line)
        assert (status, out, err.count("\n")) == (2, "", 1), line
        assert told in err, line
    assert not Path("new.json").exists()
    assert command(f"plans sd-v1-4/coco/4/plms --for {folder}").status == 0
