"""Text-to-image models: against diffusers' own pipelines, captions, searches through the command line, bad files."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, refused_model
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tiny_pipelines import STOCK, copied, unet, vae
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from autodiffusion import InputError, Model, NoiseSchedule, Plan, Settings, load_model, sample
from autodiffusion._evaluation.evaluate import Evaluator
from autodiffusion._plans.grids import grid
from autodiffusion._references.reference import Reference
from autodiffusion._sampling.sampling import Cost, walk
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics._build import build as build_metric
from autodiffusion.models._captions import Captions
from autodiffusion.models.diffusers._autoencoder import decoder
from autodiffusion.strategies.evolution import Evolution

SEED = 3
TEXTS = ("a cat", "two dogs on a bed", "the sea", "a red bus", "snow", "an old man with a hat", "tea")

pytestmark = [
    pytest.mark.usefixtures("offline"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


# a pipeline of a few thousand random weights


def text_parts(folder: Path, kind: type = CLIPTextModel, **changes: Any) -> tuple[CLIPTokenizer, Any]:
    """A tokenizer of single letters, and a text encoder for it."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **(sizes | ends | changes))
    return tokenizer, kind(config)


def made(folder: Path, scheduler: Any = None, **changes: Any) -> StableDiffusionPipeline:
    torch.manual_seed(1)
    tokenizer, encoder = text_parts(folder)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet(**changes),
        scheduler=scheduler or PNDMScheduler(skip_prk_steps=True, **STOCK),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline's in ``pipeline``, and captions."""
    folder = tmp_path_factory.mktemp("text")
    made(folder / "tokens").save_pretrained(folder / "pipeline")
    (folder / "captions.txt").write_text("\n".join(TEXTS))
    (folder / "many.txt").write_text("\n".join(f"{text} and {chr(97 + i)}" for i in range(20) for text in TEXTS))
    return folder


def loaded(files: Path, **options: Any) -> Model:
    return load_model(str(files / "pipeline"), **({"captions": str(files / "captions.txt")} | options))


def final(model: Model, plan: Plan, count: int) -> Tensor:
    [(_, x)] = walk(model, [plan], range(count), SEED, Cost())
    return x


def texts_of(model: Model, count: int) -> list[str]:
    condition = model.condition(range(count), SEED)
    assert model.captions is not None
    assert condition is not None
    return [model.captions.texts[number] for number in condition.tolist()]


# against diffusers


STOCKS: dict[str, Callable[[str], Any]] = {
    "ddim": lambda kind: DDIMScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type=kind, **STOCK),
    "plms": lambda kind: PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, prediction_type=kind, **STOCK),
    "dpm_solver++": lambda kind: DPMSolverMultistepScheduler(prediction_type=kind, **STOCK),
}


@pytest.mark.parametrize(
    ("solver", "kind", "scale"),
    [
        ("ddim", "epsilon", 7.5),
        ("plms", "epsilon", 7.5),
        ("dpm_solver++", "epsilon", 7.5),
        ("ddim", "epsilon", 1.0),
        ("ddim", "v_prediction", 3.0),
        # not PNDM's v_prediction: it extrapolates v, and takes the sum for that of the newest sample
        ("dpm_solver++", "v_prediction", 3.0),
    ],
)
def test_a_pipeline_is_sampled_as_diffusers_samples_it(tmp_path: Path, solver: str, kind: str, scale: float) -> None:
    theirs = made(tmp_path / "tokens", STOCKS[solver](kind))
    theirs.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "captions.txt").write_text("\n".join(TEXTS))
    ours = loaded(tmp_path, guidance_scale=scale)
    assert (ours.shape, ours.prediction, ours.clip) == ((4, 8, 8), kind, False)
    # the times that diffusers walks; its DDIM and PNDM stop at time 0, where noise is left
    theirs.scheduler.set_timesteps(5)
    times = sorted({float(t) for t in theirs.scheduler.timesteps}, reverse=True)
    plan = Plan.of(solver, times, end=None if solver == "dpm_solver++" else 0.0, solver_options={"clip": False})
    options: dict[str, Any] = {
        "prompt": texts_of(ours, 3),
        "latents": ours.noise(range(3), SEED),
        "num_inference_steps": 5,
        "guidance_scale": scale,
    }
    expected = theirs(output_type="latent", **options).images
    x = final(ours, plan, 3)
    assert expected.std() > 0.2
    # float32, over latents that random weights let grow to tens
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    images = theirs(output_type="np", **options).images
    drawn = sample(ours, plan, 3, SEED).permute(0, 2, 3, 1)
    torch.testing.assert_close(drawn.float(), torch.from_numpy(images * 255), rtol=0, atol=0.51)
    # none of this is so without the text
    options["prompt"] = options["prompt"][::-1]
    assert float((theirs(output_type="latent", **options).images - x).abs().max()) > 1e-2 * float(x.abs().max())


def xl_parts(folder: Path) -> dict[str, Any]:
    torch.manual_seed(1)
    tokenizer, first = text_parts(folder, hidden_act="quick_gelu")
    _, second = text_parts(folder, CLIPTextModelWithProjection, projection_dim=24)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    network = unet(cross_attention_dim=32, projection_class_embeddings_input_dim=24 + 6 * 4, **added)
    parts = {"text_encoder": first.eval(), "text_encoder_2": second.eval(), "tokenizer": tokenizer, "unet": network}
    return parts | {"tokenizer_2": tokenizer, "vae": vae(), "scheduler": STOCKS["ddim"]("epsilon")}


@pytest.mark.parametrize("zeros", [True, False])
def test_stable_diffusion_xl_too(tmp_path: Path, zeros: bool) -> None:
    parts = xl_parts(tmp_path / "tokens")
    theirs = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    theirs.save_pretrained(tmp_path / "pipeline")
    theirs.set_progress_bar_config(disable=True)
    (tmp_path / "captions.txt").write_text("\n".join(TEXTS))
    ours = loaded(tmp_path, guidance_scale=4.0)
    plan = Plan.of("ddim", [801.0, 601.0, 401.0, 201.0, 1.0], end=0.0, solver_options={"clip": False})
    expected = theirs(
        texts_of(ours, 3),
        latents=ours.noise(range(3), SEED),
        num_inference_steps=5,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(final(ours, plan, 3), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


STATISTICS: tuple[dict[str, Any], ...] = (
    {},
    {"latents_mean": [0.5, -1.0, 0.2, 3.0]},
    {"latents_mean": [0.5, -1.0, 0.2, 3.0], "latents_std": [2.0, 0.5, 4.0, 1.0]},
    {"shift_factor": 0.7},
)
"""Of latents, as autoencoders' configurations have them; which of them are put back is the pipeline's to say."""


@pytest.mark.parametrize("given", STATISTICS)
@pytest.mark.parametrize("xl", [False, True])
def test_latents_are_decoded_as_diffusers_decodes_them(tmp_path: Path, xl: bool, given: dict[str, Any]) -> None:
    theirs: Any
    if xl:
        theirs = StableDiffusionXLPipeline(**xl_parts(tmp_path / "tokens"), add_watermarker=False)
    else:
        theirs = made(tmp_path / "tokens", STOCKS["ddim"]("epsilon"))
    theirs.vae = copied(vae())
    theirs.vae.register_to_config(**given)
    theirs.save_pretrained(tmp_path / "pipeline")
    theirs.set_progress_bar_config(disable=True)
    (tmp_path / "captions.txt").write_text("\n".join(TEXTS))
    ours = loaded(tmp_path, guidance_scale=4.0)
    plan = Plan.of("ddim", [501.0, 1.0], end=0.0, solver_options={"clip": False})
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}
    images = theirs(texts_of(ours, 3), latents=ours.noise(range(3), SEED), **options).images
    assert images.std() > 0.05
    drawn = sample(ours, plan, 3, SEED).permute(0, 2, 3, 1)
    torch.testing.assert_close(drawn.float(), torch.from_numpy(images * 255), rtol=0, atol=0.51)


def test_a_guided_prediction_is_the_formula(files: Path) -> None:
    ours, tokenizer = loaded(files, guidance_scale=2.5), CLIPTokenizer.from_pretrained(files / "pipeline" / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(files / "pipeline" / "text_encoder").eval()
    network = UNet2DConditionModel.from_pretrained(files / "pipeline" / "unet")

    def said(x: Tensor, texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        output: Tensor = network(x, 300, encoder(tokens)[0]).sample
        return output

    x = ours.noise(range(4), SEED)
    with torch.inference_mode():
        plain = said(x, [""] * 4)
        expected = plain + 2.5 * (said(x, texts_of(ours, 4)) - plain)
        torch.testing.assert_close(
            ours.predict(x, 300.0, ours.condition(range(4), SEED)), expected, rtol=1e-4, atol=1e-4
        )


# single files


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"} | {
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OF_LDM = [
    (r"time_embedding.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"down_blocks.(\d).resnets.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0"),
    (r"down_blocks.(\d).attentions.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
    (r"down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
    (r"up_blocks.(\d).resnets.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"up_blocks.(\d).attentions.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
    (r"up_blocks.0.upsamplers.0", "output_blocks.1.1"),
    (r"mid_block.resnets.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"mid_block.attentions.0", "middle_block.1"),
    (rf"((?:put_blocks|middle_block)\.[\d.]+)\.({'|'.join(RESNET)})", lambda m: f"{m[1]}.{RESNET[m[2]]}"),
]
OF_LDM_VAE = [
    (r"down_blocks.(\d).resnets", r"down.\1.block"),
    (r"down_blocks.0.downsamplers.0", "down.0.downsample"),
    (r"up_blocks.(\d).resnets", lambda m: f"up.{1 - int(m[1])}.block"),
    (r"up_blocks.0.upsamplers.0", "up.1.upsample"),
    (r"mid_block.resnets.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    (r"mid_block.attentions.0.to_(\w)", r"mid.attn_1.\1"),
    (r"mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def single(files: Path) -> dict[str, Tensor]:
    """The weights of the pipeline with the names of CompVis' latent diffusion, in which Stable Diffusion came out."""

    def renamed(place: str, prefix: str, rules: list[tuple[str, Any]]) -> dict[str, Tensor]:
        [file] = (files / "pipeline" / place).glob("*.safetensors")
        state = {}
        for key, tensor in load_file(file).items():
            for pattern, replacement in rules:
                key = re.sub(pattern, replacement, key)
            state[prefix + key] = tensor
        return state

    clip = [(r"^(text_model\.)?", "text_model.")]
    return (
        renamed("unet", "model.diffusion_model.", OF_LDM)
        | renamed("vae", "first_stage_model.", OF_LDM_VAE)
        | renamed("text_encoder", "cond_stage_model.transformer.", clip)
    )


def write(state: dict[str, Tensor], file: Path) -> Path:
    if file.suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 1}, file)
    else:
        save_file(state, file)
    return file


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_single_file_is_the_pipeline(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    suffix: str,
    alone: bool,
) -> None:
    file, options = write(single(files), tmp_path / f"sd{suffix}"), {"captions": str(files / "captions.txt")}
    if alone:  # diffusers takes the configuration from the hub, by what the file looks like
        found = {"pretrained_model_name_or_path": str(files / "pipeline")}
        monkeypatch.setattr("diffusers.loaders.single_file.fetch_diffusers_config", lambda _: found)
        ours = load_model(str(file), **options)
    else:
        ours = load_model(str(files / "pipeline"), checkpoint=str(file), **options)
    whole, plan = loaded(files), Plan.of("ddim", [900.0, 400.0], solver_options={"clip": False})
    assert torch.equal(final(ours, plan, 2), final(whole, plan, 2))
    assert torch.equal(sample(ours, plan, 2), sample(whole, plan, 2))
    assert capfd.readouterr() == ("", "")


def test_a_single_file_of_xl(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = StableDiffusionXLPipeline(**xl_parts(tmp_path / "tokens"), add_watermarker=False)
    theirs.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "captions.txt").write_text("\n".join(TEXTS))
    # its names are diffusers' business; here they only count
    networks = {
        "model.diffusion_model.": theirs.unet,
        "first_stage_model.": theirs.vae,
        "conditioner.": nn.Linear(1, 1),
    }
    state = {f"{prefix}{key}": torch.zeros(1) for prefix, part in networks.items() for key in part.state_dict()}
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        StableDiffusionXLPipeline, "from_single_file", lambda file, **options: asked.append(options) or theirs
    )
    file, captions = str(write(state, tmp_path / "xl.safetensors")), str(tmp_path / "captions.txt")
    plan, whole = Plan.of("ddim", [900.0], solver_options={"clip": False}), loaded(tmp_path)
    for ours in (load_model(file, captions=captions), loaded(tmp_path, checkpoint=file)):
        assert torch.equal(final(ours, plan, 2), final(whole, plan, 2))
    assert [options["config"] for options in asked] == [None, str(tmp_path / "pipeline")]
    assert "safety_checker" not in asked[0]  # which it would not know


class Harmful:
    """Would make a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


class ModelCheckpoint:
    """A callback of PyTorch Lightning, by its name."""


class Callback:
    """Pickled as a call of Lightning's, which would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (touched, ("harmed",), {"state": 1})


def touched(name: str) -> None:
    Path(name).touch()


def test_what_lightning_leaves_in_a_file_is_not_made(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in sd-v1-4.ckpt, whose callbacks are filed under the class that they are of."""
    monkeypatch.chdir(tmp_path)
    place = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(place)
    for thing in (ModelCheckpoint, touched):
        monkeypatch.setattr(thing, "__module__", place)
        setattr(module, thing.__name__, thing)
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, place, module)
    kept = {"monitor": "val/loss", "best_model_score": np.float64(0.5), "made": ModelCheckpoint(), "called": Callback()}
    torch.save({"state_dict": single(files), "callbacks": {ModelCheckpoint: kept}}, "sd.ckpt")
    assert len(torch.serialization.get_unsafe_globals_in_checkpoint("sd.ckpt")) >= 3
    monkeypatch.setattr(module, "touched", pytest.fail)
    captions = str(files / "captions.txt")
    ours, plan = load_model(str(files / "pipeline"), checkpoint="sd.ckpt", captions=captions), Plan.of("ddim", [900.0])
    assert torch.equal(sample(ours, plan, 2), sample(loaded(files), plan, 2))
    assert not Path("harmed").exists()
    # of ADM's files none has such things, and nothing is taken for them elsewhere
    assert "holds other objects than tensors" in refused_model("adm", checkpoint="sd.ckpt")
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load("sd.ckpt", weights_only=True)


def test_single_files_that_cannot_be_used(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state, pipeline = single(files), files / "pipeline"
    torch.save({"state_dict": state, "callbacks": Harmful()}, "harmful.ckpt")
    said = refused_model("harmful.ckpt")
    assert "harmful.ckpt: holds other objects than tensors" in said
    assert said.endswith("give the .safetensors of the same model")
    assert not Path("harmed").exists()
    Path("torn.ckpt").write_bytes(write(state, Path("whole.ckpt")).read_bytes()[:-500])
    assert "torn.ckpt: is incomplete or no file of weights" in refused_model(pipeline, checkpoint="torn.ckpt")
    Path("torn.safetensors").write_bytes(write(state, Path("whole.safetensors")).read_bytes()[:-500])
    assert "is incomplete" in refused_model("torn.safetensors")
    write({"a.weight": torch.zeros(2)}, Path("other.safetensors"))
    assert "without a whole Stable Diffusion" in refused_model("other.safetensors")
    del state["model.diffusion_model.out.2.bias"]
    write(state, Path("short.safetensors"))
    said = refused_model(pipeline, checkpoint="short.safetensors")
    assert "short.safetensors" in said
    assert "cannot be loaded" in said
    assert "is a file itself; leave --checkpoint out" in refused_model("whole.ckpt", checkpoint="whole.ckpt")
    assert "nowhere.ckpt: is no file" in refused_model(pipeline, checkpoint="nowhere.ckpt")
    Path("list.txt").write_text("a")
    assert "give a .ckpt or .safetensors of Stable Diffusion" in refused_model("list.txt")
    # offline, without a folder that has the configuration
    assert "give its pipeline's folder, and --checkpoint FILE" in refused_model("whole.ckpt")


# captions


def test_a_sample_has_a_caption_of_its_own(files: Path) -> None:
    model = loaded(files)
    numbers = model.condition(range(7), SEED)
    assert numbers is not None
    assert sorted(numbers.tolist()) == list(range(7))
    for indices in ([0], [6, 2], range(3, 5)):
        part = model.condition(indices, SEED)
        assert part is not None
        assert torch.equal(part, numbers[list(indices)])
    again, other = model.condition(range(14), SEED), model.condition(range(7), SEED + 1)
    assert again is not None
    assert torch.equal(again, numbers.repeat(2))  # none a third time before all were there twice
    assert other is not None
    assert not torch.equal(other, numbers)
    # what a seed means must not change between releases
    assert numbers.tolist() == RECORDED


RECORDED = [0, 1, 2, 5, 6, 4, 3]


COCO = {
    "annotations": [
        {"image_id": 9, "id": 5, "caption": "A bus.\n"},
        {"image_id": 2, "id": 7, "caption": "later"},
        {"image_id": 9, "id": 8, "caption": "second"},
        {"image_id": 2, "id": 3, "caption": "Ein Zug fährt."},
    ]
}


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "a cat\n\n  two dogs \r\na cat\n", ("a cat", "two dogs", "a cat")),
        ("a.txt", "\ufeffa cat", ("a cat",)),
        ("a.list", "one\u2028line\n", ("one\u2028line",)),
        ("a.csv", 'id,Caption\n1,"a cat, asleep"\n2,\n3,"two\nlines"\n', ("a cat, asleep", "two\nlines")),
        ("a.csv", "prompt,text\nno,yes\n", ("yes",)),
        ("a.CSV", "\ufeffprompt\nyes\n", ("yes",)),
        ("a.json", json.dumps(COCO), ("Ein Zug fährt.", "A bus.")),
    ],
)
def test_captions_of_a_file(tmp_path: Path, name: str, content: str, texts: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert Captions.read(tmp_path / name).texts == texts


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "holds no captions"),
        ("a.txt", b" \n\n", "holds no captions"),
        ("a.txt", "ein Zug fährt".encode("latin-1"), "is not a UTF-8 text"),
        ("a.csv", b"", "is empty; name the one with the captions caption, text or prompt"),
        (
            "a.csv",
            b"id,words\n1,a\n",
            "has the columns id, words; name the one with the captions caption, text or prompt",
        ),
        ("a.csv", b"caption\n", "holds no captions"),
        ("a.csv", b'caption\n"a" cat\n', "is not a CSV"),
        ("a.json", b"{", "is not COCO's list of annotations"),
        ("a.json", b"[]", "is not COCO's list of annotations"),
        ("a.json", b'{"annotations": [{"caption": "a"}]}', "is not COCO's list of annotations"),
        ("a.json", b'{"annotations": []}', "holds no captions"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        Captions.read(tmp_path / name)
    assert str(caught.value).startswith(f"captions {tmp_path / name}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_captions_there_are_layers_only(files: Path) -> None:
    model = loaded(files, captions=None)
    assert model.layers
    with pytest.raises(InputError, match="needs captions; give --captions FILE"):
        model.condition([0], 0)
    assert "nowhere.txt: cannot be read" in refused_model(files / "pipeline", captions="nowhere.txt")


# what is computed once, and how


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of texts in each call of the text encoder."""
    calls: list[int] = []
    forward = CLIPTextModel.forward

    def counted(self: CLIPTextModel, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(input_ids))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(CLIPTextModel, "forward", counted)
    return calls


def test_prompts_are_encoded_once_for_any_number_of_plans(
    files: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the text is all that this is about
    monkeypatch.setattr(UNet2DConditionModel, "forward", lambda self, x, t, **options: (x,))
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z, **options: (z[:, :3].repeat(1, 1, 2, 2),))
    calls = {}
    for count in (1, 100):
        encoded.clear()
        model = loaded(files)
        evaluator = Evaluator(model, load_features("test_text_to_image:features"), batch_size=2)
        evaluator.features([Plan.of("ddim", [900.0 - t]) for t in range(count)], 3, SEED)
        assert evaluator.cost.evaluations == 3 * count
        calls[count] = list(encoded)
    # no caption, and the captions of each block of noise
    assert calls[1] == calls[100] == [1, 2, 1]


def test_a_caption_is_encoded_once_whatever_the_seed(files: Path, encoded: list[int]) -> None:
    model, plan = loaded(files), Plan.of("ddim", [900.0])
    for seed in range(4):
        sample(model, plan, 7, seed)
    assert encoded == [1, 7]
    # nor does it count as a part of the network
    fresh = loaded(files, captions=None)
    assert fresh.macs == model.macs
    assert encoded == [1, 7, 1]


def test_samples_do_not_depend_on_the_batch(files: Path) -> None:
    model, plan = loaded(files), Plan.of("ddim", [900.0, 500.0], solver_options={"clip": False})
    whole, parts = sample(model, plan, 5, SEED), sample(loaded(files), plan, 5, SEED, batch_size=2)
    assert whole.shape == (5, 3, 16, 16)
    assert int((whole.int() - parts.int()).abs().max()) <= 1
    assert whole.float().std() > 10


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_decoding_in_chunks_is_decoding_at_once(at_once: int) -> None:
    torch.manual_seed(2)
    network, latents, sizes = vae().eval(), torch.randn(5, 4, 8, 8), []
    expected = network.decode(latents / network.config.scaling_factor).sample
    whole = network.decode
    network.decode = lambda z, **options: sizes.append(len(z)) or whole(z, **options)  # type: ignore[method-assign]
    images = decoder(network, pixels=at_once * 16 * 16 + 1)(latents)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[at_once]
    # more than a chunk's worth in a single image is no fault
    assert decoder(network, pixels=1)(latents[:1]).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(("dtype", "kept"), [("float16", True), ("float16", False), ("bfloat16", True)])
def test_half_precision(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, kept: bool) -> None:
    shutil.copytree(files / "pipeline", tmp_path / "pipeline")
    rewrite(tmp_path / "pipeline" / "vae" / "config.json", force_upcast=kept)
    shutil.copy(files / "captions.txt", tmp_path)
    exact, half = loaded(tmp_path), loaded(tmp_path, dtype=dtype)
    x, t = exact.noise(range(4), SEED), 400.0
    seen: list[torch.dtype] = []
    decode = AutoencoderKL.decode

    def watched(self: AutoencoderKL, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z.dtype)
        return decode(self, z, *args, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "decode", watched)
    with torch.inference_mode():
        whole, rough = (model.predict(x, t, model.condition(range(4), SEED)) for model in (exact, half))
        images, rougher = (model.decode(x).float() for model in (exact, half))
    assert rough.dtype == torch.float32
    assert 0 < float((whole - rough).norm() / whole.norm()) < 0.05
    assert float((images - rougher).abs().mean()) < 2
    assert seen == [torch.float32, torch.float32 if kept and dtype == "float16" else half.dtype]
    plan = Plan.of("dpm_solver++", grid("uniform", 3, half.schedule), solver_options={"clip": False})
    assert torch.isfinite(final(half, plan, 2)).all()


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# through the command line


class Features(nn.Module):
    """Six fixed random features of a 16x16 image in color."""

    dimension = 6

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(768, 6, generator=torch.Generator().manual_seed(0)) / 28
        self.weights = nn.Parameter(weights, requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(x.flatten(1) @ self.weights)
        return features, features


features = Features
PICKED = "--features test_text_to_image:features"
FEW = f"{PICKED} --reference teacher:3:12 --samples 3 --confirm-samples 10 --finalists 1"
EVOLUTION = "--strategy evolution --population 3 --generations 2 --parents 2 --mutations 1 --crossovers 1"
PRUNE = "--layers --max-cost 75% --max-steps 2 --min-steps 2 --starts uniform --budget"


@pytest.mark.parametrize("solver", ["plms", "ddim", "dpm_solver++"])
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.usefixtures("plain")
def test_a_search(command: Command, files: Path, encoded: list[int], solver: str, layers: bool) -> None:
    how = f"{PRUNE} {450 if solver == 'plms' else 330}" if layers else EVOLUTION
    captions = files / "many.txt"
    line = f"search {files / 'pipeline'} --captions {captions} --steps 2 --solver {solver} {how} {FEW} --out run"
    status, out, err = command(line)
    assert status == 0, err
    assert "found" in out
    plan = Plan.load("run/plan.json")
    assert plan.solver == solver
    assert plan.solver_options["clip"] is False
    assert (plan != plan.leaving()) is layers
    assert sum(encoded) <= 141  # no caption, and each that was shown once
    # the run knows its captions: resumed, it is finished already
    assert command("search --config run/config.yaml --out run").status == 0


def test_evaluate_sample_layers_and_reference(command: Command, files: Path) -> None:
    model = f"--model {files / 'pipeline'} --captions {files / 'many.txt'}"
    status, out, err = command(f"reference teacher:2:12 {model} --guidance-scale 3 {PICKED} --out ref.npz")
    assert (status, err) == (0, "")
    assert "features of 12 images" in out
    scores = {}
    for scale in ("", "--guidance-scale 1"):
        line = f"evaluate uniform:2 {model} {PICKED} --reference ref.npz --samples 12 {scale} --json"
        status, out, err = command(line)
        assert (status, err) == (0, "")
        assert json.loads(out)["nfe"] == 2  # a guided prediction counts as one
        scores[scale] = json.loads(out)["scores"]["fid"]["value"]
    assert len(set(scores.values())) == 2
    # pictures may show a caption twice
    assert command(
        f"sample uniform:2 --model {files / 'pipeline'} --captions {files / 'captions.txt'} -n 9 --out a.png"
    )
    assert Path("a.png").stat().st_size > 0


def test_layers_of_a_pipeline(command: Command, files: Path) -> None:
    status, out, err = command(f"layers {files / 'pipeline'} --json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    kinds = [layer["kind"] for layer in found["layers"]]
    assert (kinds.count("resnet"), kinds.count("transformer"), len(kinds)) == (8, 4, 12)
    model = loaded(files)
    x, labels = model.noise([0], 0), model.condition([0], 0)
    with torch.inference_mode():
        whole = model.predict(x, 500.0, labels)
        for layer in found["layers"]:
            with model.without(frozenset({layer["number"]})):
                assert not torch.equal(model.predict(x, 500.0, labels), whole), layer["name"]
        assert torch.equal(model.predict(x, 500.0, labels), whole)


def test_captions_that_are_missing_or_too_few(command: Command, files: Path) -> None:
    pipeline, captions = files / "pipeline", files / "captions.txt"
    few, with_few = f"{captions}: 7 are too few for 12 samples", f"--model {pipeline} --captions {captions}"
    Path("empty.txt").write_text("\n \n")
    torch.save({"state_dict": {}, "callbacks": Harmful()}, "harmful.ckpt")
    for line, told in (
        (f"search {pipeline} --steps 2 {FEW} --out run", "needs captions; give --captions FILE"),
        (f"evaluate uniform:2 --model {pipeline} {FEW.partition('--samples')[0]}", "needs captions"),
        (f"sample uniform:2 --model {pipeline} --out a.png", "needs captions"),
        (f"search {pipeline} --captions {captions} --steps 2 {FEW} --out run", few),
        (
            f"search {pipeline} --captions {captions} --steps 2 {PICKED} --reference teacher:2:5 --samples 3 "
            "--confirm-samples 10 --out run",
            f"{captions}: 7 are too few for 10 samples",
        ),
        (f"reference teacher:2:12 {with_few} {PICKED} --out r.npz", few),
        (f"evaluate uniform:2 {with_few} {PICKED} --reference teacher:2:5 --samples 12", few),
        (f"layers {pipeline} --captions nowhere.txt", "nowhere.txt: cannot be read"),
        (f"search {pipeline} --captions empty.txt --steps 2 {FEW} --out run", "empty.txt: "),
        (f"search harmful.ckpt --captions {captions} --steps 2 {FEW} --out run", "holds other objects than tensors"),
        (f"layers mnist --captions {captions}", "takes no --captions; leave it out"),
    ):
        status, out, err = command(line)
        assert (status, out, err.count("\n")) == (2, "", 1), line
        assert told in err, line
    assert not Path("run").exists()


# what cannot be used


@pytest.fixture
def damaged(files: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline that a test may spoil."""
    return Path(shutil.copytree(files / "pipeline", tmp_path / "damaged"))


@pytest.mark.parametrize(
    ("place", "changes", "told"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "in a StableDiffusionInpaintPipeline"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "its vae is a AutoencoderTiny"),
        ("model_index.json", {"text_encoder": [None, None]}, "its text_encoder is a None"),
        ("unet/config.json", {"sample_size": None}, "does not say the sample_size"),
        ("vae/config.json", {"latent_channels": 8}, "weights cannot be loaded"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is unknown"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "prediction 'flow_prediction'"),
    ],
)
def test_other_pipelines_are_refused(damaged: Path, place: str, changes: dict[str, Any], told: str) -> None:
    rewrite(damaged / place, **changes)
    assert told in refused_model(damaged)


def test_the_safety_checker_is_not_loaded(damaged: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    rewrite(
        damaged / "model_index.json", safety_checker=checker, feature_extractor=["transformers", "CLIPImageProcessor"]
    )
    assert load_model(str(damaged)).layers  # whose files are not there


def test_networks_that_take_more_than_a_text_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "tokens", time_cond_proj_dim=8).save_pretrained(tmp_path / "pipeline")  # a consistency model
    assert "its network has time_cond_proj_dim = 8; this version samples those with None" in refused_model(
        tmp_path / "pipeline"
    )


def remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def remove_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def shorten_text_encoder(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    save_file(dict(list(state.items())[1:]), file)


def tear_vae(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def tear_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (remove_index, "model_index.json is missing"),
        (remove_tokenizer, "its tokenizer cannot be loaded"),
        (shorten_text_encoder, "is missing"),
        (tear_vae, "weights cannot be loaded"),
        (tear_index, "not a valid JSON file"),
    ],
)
def test_damaged_pipelines_are_refused(damaged: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(damaged)
    assert told in refused_model(damaged)


def test_options_of_other_models(files: Path) -> None:
    for option in ({"classes": 3}, {"null_class": 0}, {"schedule": "linear"}, {"classifier": "a.pt"}):
        assert "takes no --" in refused_model(files / "pipeline", **option)


def test_the_extra_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'pip install "autodiffusion[text]"' in refused_model(files / "pipeline")


def test_real_images_have_no_latents(files: Path) -> None:
    model = loaded(files)
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    reference = Reference.of(load_features("test_text_to_image:features")(images), "own", name="own")
    with pytest.raises(InputError):
        Evaluator(model, load_features("test_text_to_image:features")).check(build_metric("kl", reference))


def test_own_models_of_latents(files: Path) -> None:
    captions = Captions("own", ("black", "white"))

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return x - label.view(-1, 1, 1, 1)

    model = Model(
        network,
        NoiseSchedule.linear(),
        (1, 2, 2),
        prediction="sample",
        clip=False,
        captions=captions,
        decoder=lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2),
    )
    assert sample(model, Plan.of("ddim", [500.0]), 3).shape == (3, 1, 4, 4)
    with pytest.raises(InputError, match="null class"):
        Model(network, NoiseSchedule.linear(), (1, 2, 2), captions=captions, guidance_scale=2.0)


# the page


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "text_to_image.md").read_text()
LINES = [
    line.replace("\\\n", " ").removeprefix("autodiffusion ")
    for line in re.findall(r"^    (autodiffusion (?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
]


def test_it_shows_every_verb() -> None:
    assert [line.split()[0] for line in LINES] == ["search", "evaluate", "sample", "layers", "search", "search"]
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    shown = {*re.findall(r"--[a-z][a-z-]*", " ".join(LINES)), "--checkpoint", "--guidance-scale", "--features"} | {
        "--model-option"
    }
    assert set(re.findall(r"--[a-z][a-z-]*", PAGE)) == shown


@pytest.mark.parametrize("line", LINES)
def test_its_commands_run(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    Plan.of("ddim", [900.0, 400.0]).save(tmp_path / "run" / "plan.json")
    asked: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> Model:
        asked.append({"model": name} | options)
        raise InputError("enough")

    def search(settings: Settings, *_: Any) -> None:
        asked.append(settings.model_dump())
        raise InputError("enough")

    monkeypatch.setattr("autodiffusion.models._load.load", load)
    monkeypatch.setattr("autodiffusion._search.loop.search", search)
    status, _, err = command(line)
    assert (status, err) == (2, "autodiffusion: enough\n")
    [options] = asked
    assert options["model"] == "CompVis/stable-diffusion-v1-4"
    assert options["captions"] == (re.findall(r"--captions (\S+)", line) or [None])[0]
    if options.get("preset") == "paper":
        released = {"population": 50, "generations": 10, "mutations": 25, "mutation_probability": 0.1}
        used = vars(Evolution) | options["strategy_options"]
        assert released.items() <= used.items()
        assert (options["samples"], used["crossovers"]) == {"plms": (2000, 15), "dpm_solver++": (1000, 10)}[
            options["solver"]
        ]
        assert options["confirm_samples"] <= 40_504  # images of COCO's validation set
