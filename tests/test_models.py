"""Models: folders of diffusers, a user's own network, the bundled one; noise, conditions and guidance."""

from __future__ import annotations

import inspect
import json
import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import refused_model
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn

from autodiffusion import Evaluator, InputError, Model, NoiseSchedule, Plan, load_model, sample
from autodiffusion._names import known, modules
from autodiffusion._plans.grids import grid
from autodiffusion._sampling.sampling import Cost, walk
from autodiffusion.features._base import load as load_features
from autodiffusion.models._model import NOISE, generator
from autodiffusion.models.diffusers import by_network
from autodiffusion.models.mnist import FOLDER
from autodiffusion.solvers._base import build, solve

SEED = 5
WEIGHTS = "diffusion_pytorch_model.safetensors"
ASK_ONCE = [name for name in known("solvers") if len(build(name, NoiseSchedule.linear()).moves([999.0])[0].ask) == 1]
"""Solvers whose one step is one question: all but PLMS, which asks again in clean data."""

pytestmark = [
    pytest.mark.usefixtures("offline"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def unet(**changes: Any) -> UNet2DModel:
    """A network of a few thousand random weights, the same every time."""
    torch.manual_seed(1)
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    return UNet2DModel(**(config | changes)).eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, saved by diffusers."""
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    DDPMPipeline(unet(), DDPMScheduler(clip_sample=True)).save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(pipeline: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(pipeline, tmp_path / "damaged"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# diffusers' folders


def final(model: Model, plan: Plan, count: int) -> Tensor:
    [(_, x)] = walk(model, [plan], range(count), SEED, Cost())
    return x


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [4, 10])
def test_a_pipeline_is_sampled_as_diffusers_samples_it(tmp_path: Path, clip: bool, steps: int) -> None:
    theirs = DDIMPipeline(unet(), DDIMScheduler(clip_sample=clip, beta_schedule="squaredcos_cap_v2"))
    theirs.save_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    ours = load_model(str(tmp_path))
    assert ours.clip is clip
    plan = Plan.of("ddim", grid("uniform", steps, ours.schedule), solver_options={"clip": ours.clip})
    draws = [generator(SEED, NOISE, i) for i in range(3)]
    expected = theirs(
        batch_size=3,
        generator=draws,
        num_inference_steps=steps,
        use_clipped_model_output=clip,
        output_type="np",
    ).images
    seen = (final(ours, plan, 3) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.02
    np.testing.assert_allclose(seen, expected, atol=1e-5)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_gives_diffusers_samples(tmp_path: Path, prediction: str, clip: bool) -> None:
    config = {"prediction_type": prediction, "clip_sample": clip, "num_train_timesteps": 200, "beta_end": 0.05}
    network = unet()
    DDPMPipeline(network, DDPMScheduler(**config)).save_pretrained(tmp_path)
    ours = load_model(str(tmp_path))
    assert (ours.prediction, len(ours.schedule), ours.shape) == (prediction, 200, (1, 8, 8))
    plan = Plan.of("ddim", grid("uniform", 5, ours.schedule), solver_options={"clip": ours.clip})
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(5)
    x = ours.noise(range(2), SEED)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x, use_clipped_model_output=clip).prev_sample
    torch.testing.assert_close(final(ours, plan, 2), x, rtol=1e-5, atol=1e-5)


def test_a_bare_network_with_a_scheduler_beside_it_is_the_pipeline(pipeline: Path, tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", tmp_path)
    whole, bare = load_model(str(pipeline)), load_model(str(tmp_path))
    plan = Plan.of("ddim", [800.0, 300.0, 20.0])
    assert torch.equal(final(whole, plan, 2), final(bare, plan, 2))


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_a_bare_network_takes_its_schedule_from_the_option(tmp_path: Path, name: str) -> None:
    unet().save_pretrained(tmp_path)
    assert "--schedule" in refused_model(tmp_path)
    loaded = load_model(str(tmp_path), schedule=name)
    betas = {
        "linear": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
        "scaled_linear": torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2,
        "cosine": DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas.double(),
    }[name]
    np.testing.assert_allclose(loaded.schedule.alphas_cumprod, (1 - betas).cumprod(0).numpy(), rtol=1e-4, atol=1e-10)
    assert "did you mean 'cosine'" in refused_model(tmp_path, schedule="cosin")


def test_a_bare_network_of_flow_matching(tmp_path: Path) -> None:
    network = unet()
    network.save_pretrained(tmp_path)
    ours = load_model(str(tmp_path), schedule="flow")
    assert ours.prediction == "flow_prediction"
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    x = ours.noise(range(2), SEED)
    plan = Plan.of("euler", grid("linspace", 5, ours.schedule), solver_options={"clip": False})
    found = final(ours, plan, 2)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_a_learned_variance_is_left_out(tmp_path: Path) -> None:
    network = unet(out_channels=2)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    x = torch.randn(2, 1, 8, 8, generator=generator(0, 0, 0))
    with torch.inference_mode():
        expected = network(x, 500).sample[:, :1]
        torch.testing.assert_close(loaded.predict(x, 500, None), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_close_to_single(pipeline: Path) -> None:
    single, half = load_model(str(pipeline)), load_model(str(pipeline), dtype="bfloat16")
    x = single.noise(range(4), SEED)
    with torch.inference_mode():
        exact, rough = single.predict(x, 400, None), half.predict(x, 400, None)
    assert rough.dtype == torch.float32
    error = float((exact - rough).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 0 < error < 0.05


# classes and guidance


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UNet2DModel]:
    folder = tmp_path_factory.mktemp("conditional")
    network = unet(num_class_embeds=5)
    with torch.no_grad():  # as large as the time embedding, so that labels matter
        network.class_embedding.weight.mul_(10)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    return folder, network


def test_labels_reach_the_network(conditional: tuple[Path, UNet2DModel]) -> None:
    folder, network = conditional
    loaded = load_model(str(folder))
    assert (loaded.classes, loaded.null_class) == (5, None)
    x, labels = loaded.noise(range(5), SEED), torch.arange(5)
    with torch.inference_mode():
        given = loaded.predict(x, 300, labels)
        torch.testing.assert_close(given, network(x, 300, class_labels=labels).sample, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(given, loaded.predict(x, 300, labels.flip(0)), atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_is_the_formula(conditional: tuple[Path, UNet2DModel], scale: float) -> None:
    folder, network = conditional
    loaded = load_model(str(folder), guidance_scale=scale, null_class=4)
    assert loaded.classes == 4
    x, labels = loaded.noise(range(3), SEED), torch.tensor([2, 0, 3])
    with torch.inference_mode():
        given = network(x, 300, class_labels=labels).sample
        null = network(x, 300, class_labels=torch.full((3,), 4)).sample
        expected = (1 - scale) * null + scale * given
        torch.testing.assert_close(loaded.predict(x, 300, labels), expected, rtol=1e-4, atol=1e-5)


def test_guidance_needs_a_null_class(conditional: tuple[Path, UNet2DModel], pipeline: Path) -> None:
    folder, _ = conditional
    assert "--null-class" in refused_model(folder, guidance_scale=2.0)
    assert "null class" in refused_model(pipeline, guidance_scale=2.0)
    assert "--null-class" in refused_model("small:model", guidance_scale=2.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_guidance_is_finite(conditional: tuple[Path, UNet2DModel], scale: float) -> None:
    assert "guidance_scale" in refused_model(conditional[0], guidance_scale=scale, null_class=4)


@pytest.mark.parametrize("options", [{"classes": 6}, {"null_class": 5}, {"classes": 4, "null_class": 3}])
def test_classes_that_do_not_fit_are_refused(
    conditional: tuple[Path, UNet2DModel], pipeline: Path, options: dict[str, int]
) -> None:
    assert "do not fit 5 class embeddings" in refused_model(conditional[0], **options)
    assert "no class embedding" in refused_model(pipeline, **options)


# one clean-data function, three ways to say it


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0.0, 13.5, 700.0, 999.0])
def test_parametrizations_agree(prediction: str, t: float) -> None:
    schedule = NoiseSchedule.linear()
    alpha = np.interp(t, np.arange(1000), np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))))
    sigma = np.sqrt(1 - alpha**2)
    if not t.is_integer():  # log alpha is what is linear between the steps
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)

    def network(x: Tensor, times: Tensor, label: Tensor | None) -> Tensor:
        assert label is None
        assert torch.equal(times, torch.full((len(x),), t))
        x0 = torch.tanh(x.mean((1, 2, 3), keepdim=True)) * 0.5 + 0.1 * x
        epsilon = (x - alpha * x0) / sigma
        return {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "sample": x0}[prediction]

    model = Model(network, schedule, (1, 4, 4), prediction=prediction, dtype=torch.float64)  # type: ignore[arg-type]
    x = torch.randn(6, 1, 4, 4, generator=generator(0, 0, 0), dtype=torch.float64)
    x0 = torch.tanh(x.mean((1, 2, 3), keepdim=True)) * 0.5 + 0.1 * x
    torch.testing.assert_close(model.predict(x, t, None), (x - alpha * x0) / sigma, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("solver", ASK_ONCE)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_step_from_no_signal_is_what_the_network_says(prediction: str, solver: str, betas: str) -> None:
    """Where all is noise a network that predicts v or the data still says all of the data."""
    schedule = NoiseSchedule.from_config({"beta_schedule": betas, "rescale_betas_zero_snr": True})
    x0 = torch.linspace(-0.9, 0.9, 16).view(1, 4, 4).expand(64, 1, 4, 4)
    # by the definitions, at an alpha of 0: there v is -x0
    said = {"v_prediction": -x0, "sample": x0}[prediction]
    model = Model(lambda x, t, label: said, schedule, (1, 4, 4), prediction=prediction)  # type: ignore[arg-type]
    noise = model.noise(range(64), SEED)
    reached = solve(build(solver, schedule), lambda x, t: model.predict(x, t, None), noise, [999])
    assert (reached - x0).abs().max() < 0.01
    assert (reached - x0).mean().abs() < 1e-3


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'v_prediction'"):
        Model(lambda x, t, label: x, NoiseSchedule.linear(), (1, 4, 4), prediction="v-prediction")  # type: ignore[arg-type]


# a decoder of one's own


def decoded() -> Model:
    """Samples twice as bright as their images, whose parts are modules as they are made: in training mode."""
    brightness, classifier = nn.Conv2d(1, 1, 1), Ignoring(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    with torch.no_grad():
        brightness.weight.fill_(0.5)
        brightness.bias.zero_()  # type: ignore[union-attr]
    return Model(
        network=Ignoring(nn.Conv2d(1, 1, 1)),
        schedule=NoiseSchedule.linear(),
        shape=(1, 4, 4),
        classes=3,
        guidance_scale=0,
        features="small:features",
        classifier=classifier,
        decoder=brightness,
    )


class Ignoring(nn.Module):
    """A network that looks at nothing but the sample."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Any:
        return self.network(x)


def test_a_decoder_with_weights() -> None:
    model = decoded()
    bare = replace(model, decoder=None, clip=False)
    [(_, x)] = walk(bare, [Plan.of("ddim", [999.0, 500.0])], range(3), 0, Cost())
    images = sample(model, Plan.of("ddim", [999.0, 500.0]), 3)
    assert torch.equal(images, bare.decode(0.5 * x))
    images[0] = 0  # the user's own, to do with what he likes
    evaluator = Evaluator(model, load_features("small:features"))
    [found] = evaluator.features([Plan.of("ddim", [999.0, 500.0])], 3, 0)
    assert not isinstance(found, str)
    expected = evaluator.extractor(bare.decode(0.5 * x)).vectors
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)


def test_samples_are_decoded_where_the_model_is() -> None:
    """What is checked before a search has not been there yet."""
    seen = []

    def decode(x: Tensor) -> Tensor:
        seen.append(x.device.type)
        return torch.zeros(x.shape)

    Model(lambda x, t, label: x, NoiseSchedule.linear(), (1, 4, 4), decoder=decode, device="meta").decode(
        torch.zeros(1, 1, 4, 4)
    )
    assert seen == ["meta"]


def test_all_parts_of_an_own_model_are_moved() -> None:
    model = load_model("test_models:decoded", dtype="bfloat16")
    parts = {name: getattr(model, name) for name in ("network", "classifier", "decoder")}
    assert not any(module.training for part in parts.values() for module in part.modules())
    # the decoder gets samples, which are float32
    kept = {name: next(part.parameters()).dtype for name, part in parts.items()}
    assert kept == {"network": torch.bfloat16, "classifier": torch.bfloat16, "decoder": torch.float32}
    model.guidance_scale = 1.0
    assert sample(model, Plan.of("ddim", [999.0, 500.0]), 2).shape == (2, 1, 4, 4)


# noise and conditions


def noisy(shape: tuple[int, ...] = (1, 4, 4), classes: int | None = 10) -> Model:
    return Model(lambda x, t, label: x, NoiseSchedule.linear(), shape, classes=classes)


def test_noise_and_labels_belong_to_the_sample() -> None:
    model = noisy()
    noise, labels = model.noise(range(40), SEED), model.condition(range(40), SEED)
    assert labels is not None
    for indices in ([0], [39, 3, 17], range(5, 30)):
        assert torch.equal(model.noise(indices, SEED), noise[list(indices)])
        part = model.condition(indices, SEED)
        assert part is not None
        assert torch.equal(part, labels[list(indices)])
    assert noisy(classes=None).condition(range(3), SEED) is None


def test_noise_is_drawn_on_the_cpu_from_its_own_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = noisy().noise([7], SEED)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, noisy().noise([7], SEED))
    # what a seed means must not change between releases
    expected = torch.tensor(RECORDED)
    torch.testing.assert_close(noisy((4,)).noise([0, 1], 0), expected, rtol=0, atol=1e-6)


RECORDED = [[0.995619, 0.264238, 1.536166, 1.309226], [-0.331377, -0.342612, 1.341787, 1.409759]]


def test_seeds_streams_and_samples_are_independent_standard_normal() -> None:
    model = noisy()
    draws = {
        "first": model.noise(range(1000), 0).flatten().numpy(),
        "other seed": model.noise(range(1000), 1).flatten().numpy(),
        "other stream": model.noise(range(1000), 0, stream=2).flatten().numpy(),
        "other samples": model.noise(range(1000, 2000), 0).flatten().numpy(),
    }
    for values in draws.values():
        assert stats.kstest(values, "norm").pvalue > 0.01
    for name, values in draws.items():
        if name != "first":  # 16,000 pairs: 4.5 standard errors
            assert abs(np.corrcoef(draws["first"], values)[0, 1]) < 0.035
    within = model.noise(range(1000), 0).flatten(1).numpy()
    assert np.abs(np.cov(within.T) - np.eye(16)).max() < 0.2


def test_labels_are_uniform() -> None:
    labels = noisy().condition(range(3000), SEED)
    assert labels is not None
    counts = np.bincount(labels.numpy(), minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 0.01


def test_images_are_rounded_pixels() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 2, 3)
    images = noisy().decode(x)
    assert images.dtype == torch.uint8
    assert images.flatten().tolist() == [0, 0, 128, 191, 255, 255]


# a user's own network

OWN = """
import torch
from autodiffusion import Model, NoiseSchedule

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, label):
        return self.scale * x

def factory():
    return Model(Network(), NoiseSchedule.linear(1000), shape=(3, 4, 4))

def named():
    return Model(lambda x, t, label: x, NoiseSchedule.linear(100), shape=(3, 4, 4), name="mine")

ready = named()

def with_classes():
    return Model(lambda x, t, label: x * label.view(-1, 1, 1, 1), NoiseSchedule.linear(100), (1, 2, 2), classes=7)

def broken():
    raise RuntimeError("no weights\\nhere")

def forgot():
    return Network()

def needs(argument):
    return argument
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own that lies where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    return name


def test_own_networks_are_loaded(own: str) -> None:
    made = load_model(f"{own}:factory")
    assert (made.name, made.shape) == (f"{own}:factory", (3, 4, 4))
    x = made.noise([0], 0)
    with torch.inference_mode():
        assert torch.equal(made.predict(x, 10, None), 0.5 * x)
    assert load_model(f"{own}:named").name == load_model(f"{own}:ready").name == "mine"
    half = load_model(f"{own}:factory", dtype="bfloat16")
    assert isinstance(half.network, torch.nn.Module)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert half.predict(x, 10, None).dtype == torch.float32


def test_options_replace_what_a_factory_set(own: str) -> None:
    guided = load_model(f"{own}:with_classes", classes=3, null_class=3, guidance_scale=2.0)
    assert (guided.classes, guided.null_class) == (3, 3)
    x = torch.ones(2, 1, 2, 2)
    expected = torch.tensor([3 + 2 * (1 - 3), 3 + 2 * (2 - 3)]).float().view(2, 1, 1, 1).expand(2, 1, 2, 2)
    torch.testing.assert_close(guided.predict(x, 5, torch.tensor([1, 2])), expected)


def test_what_is_no_model_is_refused(own: str, tmp_path: Path) -> None:
    assert "RuntimeError: no weights" in refused_model(f"{own}:broken")
    assert "gave a Network; it must return an autodiffusion.Model" in refused_model(f"{own}:forgot")
    assert "missing 1 required positional argument" in refused_model(f"{own}:needs")
    assert "has no attribute 'factori'" in refused_model(f"{own}:factori")
    assert "ModuleNotFoundError" in refused_model("no_such_module:factory")
    for name in (":factory", f"{own}:"):
        assert "is not package.module:attribute" in refused_model(name)
    (tmp_path / f"bad_{own}.py").write_text("import os\nos.no_such_thing\n")
    # the fault lies in the module, not in the name of the attribute
    assert "importing" in (message := refused_model(f"bad_{own}:factory"))
    assert "no_such_thing" in message


# what cannot be loaded, each in one line


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What diffusers logs on the user's terminal."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    yield lines
    logging.getLogger("diffusers").removeHandler(handler)


def test_unknown_names_are_answered_at_once(said: list[str], recwarn: pytest.WarningsRecorder) -> None:
    assert "did you mean 'mnist'" in (message := refused_model("mnsit"))
    assert "the hub cannot be reached" in message
    for name in ("nobody/nothing", "./no/such/folder", "a b/c d/e", ""):
        assert "is unknown" in refused_model(name)
    assert not said
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize(
    ("error", "told", "local"),
    [
        (EntryNotFoundError("404"), "the hub has no network of that name", False),
        (LocalEntryNotFoundError("no connection"), "the hub cannot be reached", True),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str, local: bool
) -> None:
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((options["subfolder"], bool(options["local_files_only"])))
        raise error

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    assert told in refused_model("nobody/nothing")
    assert asked == [("unet", False), ("transformer", local), (None, local)]


def test_folders_without_a_network_are_refused(tmp_path: Path, damaged: Path) -> None:
    assert "no configuration of a network in this folder" in refused_model(tmp_path)
    assert "is a file" in refused_model(damaged / "unet" / WEIGHTS)
    (damaged / "unet" / "config.json").write_text("[1]")
    assert "no configuration of a network in this folder" in refused_model(damaged)


@pytest.mark.parametrize("place", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_torn_configuration_is_named(damaged: Path, place: str) -> None:
    (damaged / place).write_text((damaged / place).read_text()[:40])
    assert place.rpartition("/")[2] in (message := refused_model(damaged))
    assert "not a valid JSON file" in message


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def one_missing(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["conv_out.bias"]
    save_file(weights, folder / WEIGHTS)


def another_shape(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"conv_out.bias": torch.zeros(3)}, folder / WEIGHTS)


def another_depth(folder: Path) -> None:
    rewrite(folder / "config.json", block_out_channels=[8, 32])


@pytest.mark.parametrize("spoil", [without_weights, pickled, truncated, one_missing, another_shape, another_depth])
def test_weights_that_do_not_fit_are_refused(damaged: Path, spoil: Callable[[Path], None], said: list[str]) -> None:
    spoil(damaged / "unet")
    message = refused_model(damaged)
    assert "weights cannot be loaded" in message
    assert "safetensors" in message
    assert not said
    logging.getLogger("diffusers.models").error("heard again")
    assert said == ["heard again"]


@pytest.mark.parametrize("name", known("models.diffusers"))
def test_every_kind_of_network(name: str, tmp_path: Path) -> None:
    file = modules("models.diffusers")[name]
    given, *options = inspect.signature(file.model).parameters.values()
    assert given.name == "name"
    assert {"device", "dtype"} <= {option.name for option in options}
    assert {option.name for option in options} <= {*inspect.signature(load_model).parameters, "found"}
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    for network in file.networks:
        assert issubclass(getattr(diffusers, network), torch.nn.Module)
        assert by_network()[network] == name  # no other file has it
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": network}))
        assert str(tmp_path) in refused_model(tmp_path)  # for all else that is missing


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel"),
        ({"_class_name": "UNet9DModel"}, "is a UNet9DModel; this version samples FluxTransformer2DModel"),
        ({"out_channels": 3}, "makes 3 channels of 1"),
        ({"in_channels": 2}, "makes 1 channels of 2"),
        ({"sample_size": None}, "does not say the sample_size"),
        ({"class_embed_type": "timestep"}, "has class_embed_type = timestep; this version samples those with None"),
        ({"class_embed_type": "identity"}, "has class_embed_type = identity; this version samples those with None"),
    ],
)
def test_other_networks_are_refused(damaged: Path, changes: dict[str, Any], told: str) -> None:
    rewrite(damaged / "unet" / "config.json", **changes)
    assert told in refused_model(damaged)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
            "FlowMatchEulerDiscreteScheduler is not of a variance-preserving model",
        ),
        (
            {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000, "sigma_max": 1348.0, "snr": 0.15},
            "ScoreSdeVeScheduler is not of a variance-preserving model",
        ),
        ({"_class_name": "KarrasVeScheduler", "sigma_max": 100}, "KarrasVeScheduler is not of a variance-preserving"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is unknown"),
        ({"beta_schedule": "linear", "num_train_timesteps": 0}, "describes no noise schedule"),
        ({"beta_schedule": "linear", "beta_start": "small"}, "describes no noise schedule"),
        (
            {"beta_schedule": "linear", "prediction_type": "flow_prediction"},
            "prediction 'flow_prediction' does not go with this noise schedule",
        ),
    ],
)
def test_other_schedulers_are_refused(damaged: Path, config: dict[str, Any], told: str) -> None:
    (damaged / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert told in refused_model(damaged)


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99"])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    assert "cpu always can" in refused_model("small:model", device=device)


@pytest.mark.parametrize("dtype", ["float64", "nonsense", "load", "bfloat"])
def test_other_number_types_are_refused(dtype: str) -> None:
    assert "known: bfloat16, float16, float32" in refused_model("small:model", dtype=dtype)


# the bundled model


def test_the_bundled_model(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    model = load_model("mnist")
    assert capfd.readouterr() == ("", "")
    assert not [warning for warning in recwarn if "autodiffusion" in warning.filename]
    assert (model.name, model.features, len(model.schedule)) == ("mnist", "mnist", 1000)
    assert (model.classes, model.null_class, model.shape, model.prediction) == (10, 10, (1, 16, 16), "epsilon")
    assert model.reference is not None
    assert model.reference.is_file()
    network = inspect.getclosurevars(model.network).nonlocals["unet"]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


def test_the_bundled_files_are_small() -> None:
    assert (FOLDER / "unet" / WEIGHTS).stat().st_size < 2 * 2**20
    assert (FOLDER / "classifier.safetensors").stat().st_size < 2**20


def test_the_bundled_model_knows_its_digits() -> None:
    # one step from the middle of the schedule: the class decides which way to go
    model = load_model("mnist")
    x = model.noise(range(8), SEED)
    with torch.inference_mode():
        one, two = (model.predict(x, 800, torch.full((8,), label)) for label in (1, 8))
        half = load_model("mnist", dtype="bfloat16").predict(x, 800, torch.full((8,), 1))
    spread = float(one.square().mean().sqrt())
    assert 0.5 < spread < 1.5  # noise is what it predicts
    assert float((one - two).square().mean().sqrt()) > 0.05
    assert float((one - half).square().mean().sqrt()) < 0.05 * spread
    assert "do not fit 11 class embeddings" in refused_model("mnist", null_class=3)


# small faults that were found by using it


def test_public_names_come_in_any_order() -> None:
    """`from autodiffusion import Result, search` once gave a module for the function."""
    code = "from autodiffusion import Result, search; print(search.__name__, callable(search), Result.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["search", "True", "Result"]


def test_a_pipeline_of_latents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}'
    )
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(
        '{"_class_name": "UNet2DModel", "in_channels": 3, "out_channels": 3}'
    )
    with pytest.raises(InputError, match="latents"):
        load_model(str(tmp_path))


def test_options_that_cannot_move_a_function_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="function"):
        load_model("small:model", dtype="bfloat16")
    assert load_model("small:model").dtype == torch.float32
