"""ADM and ADM-G from files: flags, presets, searches through the command line, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, refused_model
from safetensors.torch import save_file
from test_adm import NETWORKS, Plain, PlainClassifier
from torch import Tensor, nn

from autodiffusion import InputError, NoiseSchedule, Plan, load_model
from autodiffusion._references.reference import Reference
from autodiffusion.features import Extractor
from autodiffusion.layers._find import find
from autodiffusion.models._adm.flags import Flags
from autodiffusion.models._adm.network import empty_adm_unet
from autodiffusion.models.adm import PRESETS

UNCONDITIONAL: dict[str, Any] = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "num_head_channels": 16,
    "resblock_updown": True,
    "learn_sigma": True,
}
CONDITIONAL: dict[str, Any] = UNCONDITIONAL | {
    "class_cond": True,
    "use_new_attention_order": True,
    "noise_schedule": "cosine",
    "classifier_width": 32,
    "classifier_depth": 1,
    "classifier_channel_mult": "1,2",
    "classifier_attention_resolutions": "4",
    "classifier_num_head_channels": 16,
}
CLASSES = 3


class Features(nn.Module):
    """Six fixed random features of a 8x8 image in color."""

    dimension = 6

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(192, 6, generator=torch.Generator().manual_seed(0)) / 14
        self.weights = nn.Parameter(weights, requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(x.flatten(1) @ self.weights)
        return features, features


features = Features


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in guided-diffusion's naming: ``adm.pt``, ``adm_g.pt`` and ``classifier.pt``."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adm")
    guided = Flags(**CONDITIONAL)
    networks = {
        "adm": Plain(Flags(**UNCONDITIONAL).network()),
        "adm_g": Plain(guided.network(CLASSES)),
        "classifier": PlainClassifier(guided.classifier(CLASSES)),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pt")
    return folder


def guided(files: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"checkpoint": str(files / "adm_g.pt"), "classifier": str(files / "classifier.pt")}
    return load_model("adm", **(given | {"classes": CLASSES, "model_options": CONDITIONAL} | options))


# flags


def test_a_checkpoint_by_its_flags(files: Path) -> None:
    model = guided(files, guidance_scale=2.5)
    assert (model.shape, model.classes, model.guidance_scale, model.name) == ((3, 8, 8), CLASSES, 2.5, "adm")
    plain = Plain(Flags(**CONDITIONAL).network(CLASSES))
    plain.load_state_dict(torch.load(files / "adm_g.pt", weights_only=True))
    x, y = model.noise(range(4), 0), model.condition(range(4), 0)
    with torch.inference_mode():
        theirs = plain(x, torch.full((4,), 300.0), y)[:, :3]  # without the learned variance
        torch.testing.assert_close(model.predict(x, 300.0, y), theirs, rtol=1e-4, atol=1e-5)
    assert guided(files).guidance_scale == 1
    assert guided(files, classifier=None).classifier is None


def test_an_unconditional_network_may_be_guided(files: Path) -> None:
    options = CONDITIONAL | {"class_cond": False, "use_new_attention_order": False}
    model = guided(files, checkpoint=str(files / "adm.pt"), model_options=options)
    assert model.classes == CLASSES
    x, y = model.noise(range(3), 0), model.condition(range(3), 0)
    with torch.inference_mode():
        assert torch.equal(model.predict(x, 300.0, y), model.predict(x, 300.0, None))
        assert model.guide(x, 300.0, y) is not None


def test_safetensors_are_the_same(files: Path, tmp_path: Path) -> None:
    save_file(torch.load(files / "adm.pt", weights_only=True), tmp_path / "adm.safetensors")
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        there, here = (
            load_model("adm", checkpoint=str(file), model_options=UNCONDITIONAL).predict(x, 10.0, None)
            for file in (files / "adm.pt", tmp_path / "adm.safetensors")
        )
    assert torch.equal(there, here)


def test_fewer_steps_and_predicted_data(files: Path) -> None:
    options = UNCONDITIONAL | {"diffusion_steps": 4000, "rescale_timesteps": True, "predict_xstart": True}
    few = load_model("adm", checkpoint=str(files / "adm.pt"), model_options=options)
    assert len(few.schedule) == 4000
    # a step there is a quarter of one here
    assert abs(few.schedule.alpha(3999) - NoiseSchedule.linear().alpha(999)) < 1e-3
    plain = load_model("adm", checkpoint=str(files / "adm.pt"), model_options=UNCONDITIONAL)
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        x0 = plain.predict(x, 500.0, None)
        expected = (x - few.schedule.alpha(2000) * x0) / few.schedule.sigma(2000)
        torch.testing.assert_close(few.predict(x, 2000.0, None), expected, rtol=1e-4, atol=1e-4)


def test_half_precision_is_close(files: Path) -> None:
    whole, half = guided(files), guided(files, dtype="bfloat16")
    x, y = whole.noise(range(4), 0), whole.condition(range(4), 0)
    with torch.inference_mode():
        for ask in ("predict", "guide"):
            exact, rough = (getattr(model, ask)(x, 300.0, y) for model in (whole, half))
            assert rough.dtype == torch.float32
            assert 0 < float((exact - rough).norm() / exact.norm()) < 0.1, ask


# the published sizes


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [("imagenet64", 295_904_454, 58), ("lsun-cat", 552_814_086, 58), ("lsun-bedroom", 552_814_086, 58)],
)
def test_published_networks_and_their_layers(name: str, parameters: int, layers: int) -> None:
    flags = NETWORKS[name]
    unet: Any = empty_adm_unet(flags)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters
    side = flags.image_size
    x, t = torch.zeros(1, 3, side, side, device="meta"), torch.zeros(1, device="meta")
    label = None if flags.num_classes is None else torch.zeros(1, dtype=torch.long, device="meta")
    assert len(find(unet, lambda: unet(x, t, class_labels=label)).layers) == layers


def test_presets_are_as_published() -> None:
    imagenet, lsun = PRESETS["imagenet64"], PRESETS["lsun-cat"]
    assert (imagenet.noise_schedule, lsun.noise_schedule) == ("cosine", "linear")
    assert (imagenet.use_new_attention_order, lsun.use_new_attention_order) == (True, False)
    assert (NETWORKS["imagenet64"].num_classes, NETWORKS["lsun-cat"].num_classes) == (1000, None)
    assert NETWORKS["imagenet64"].attention_resolutions == (2, 4, 8)
    assert sorted(NETWORKS["lsun-cat"].attention_resolutions) == [8, 16, 32]
    assert PRESETS["lsun-bedroom"] == lsun


# searches, through the command line


def line_of(files: Path, kind: str) -> str:
    """The options of the tiny ADM or ADM-G."""
    flags = {"adm": UNCONDITIONAL, "adm_g": CONDITIONAL}[kind]
    given = " ".join(f"--model-option {name}={str(value).lower()}" for name, value in flags.items())
    line = f"--checkpoint {files / f'{kind}.pt'} {given}"
    return line if kind == "adm" else f"{line} --classifier {files / 'classifier.pt'} --classes {CLASSES}"


FEW = "--features test_adm_files:features --reference teacher:4:12 --samples 3 --confirm-samples 10 --finalists 1"
EVOLUTION = "--strategy evolution --population 3 --generations 2 --parents 2 --mutations 1 --crossovers 1"
PRUNE = "--layers --max-cost 75% --max-steps 2 --min-steps 2 --starts uniform --budget 400"


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("kind", "solver", "layers"),
    [
        ("adm", "ddim", False),
        ("adm", "ddim", True),
        ("adm_g", "ddim", False),
        ("adm_g", "ddim", True),
        ("adm", "plms", True),
        ("adm_g", "plms", False),
        ("adm_g", "dpm_solver++", False),
    ],
)
def test_a_search(command: Command, files: Path, kind: str, solver: str, layers: bool) -> None:
    options = line_of(files, kind)
    scale = " --guidance-scale 2" if kind == "adm_g" else ""
    how = PRUNE if layers else EVOLUTION
    status, out, err = command(f"search adm {options}{scale} --steps 2 --solver {solver} {how} {FEW} --out run")
    assert status == 0, err
    assert "found" in out
    plan = Plan.load("run/plan.json")
    assert plan.solver == solver
    assert (plan != plan.leaving()) is layers
    # the run knows its model: resumed, it is finished already
    assert command("search --config run/config.yaml --out run")[0] == 0


def test_evaluate_sample_layers_and_reference(command: Command, files: Path) -> None:
    options = f"{line_of(files, 'adm_g')}"
    picked = "--features test_adm_files:features"
    status, out, err = command(
        f"reference teacher:2:12 --model adm {options} --guidance-scale 3 {picked} --out ref.npz"
    )
    assert (status, err) == (0, "")
    assert "features of 12 images" in out
    scores = {}
    for scale in ("0", "3"):
        line = f"evaluate uniform:2 --model adm {options} --guidance-scale {scale} {picked} --reference ref.npz"
        status, out, err = command(f"{line} --samples 12 --json")
        assert (status, err) == (0, "")
        found = json.loads(out)
        assert found["nfe"] == 2  # a guided prediction counts as one
        scores[scale] = found["scores"]["fid"]["value"]
    assert scores["0"] != scores["3"]
    assert command(f"sample uniform:2 --model adm {options} -n 2 --out grid.png")[0] == 0
    status, out, _ = command(f"layers adm {options} --json")
    assert len(json.loads(out)["layers"]) == 14


def test_the_labels_of_a_sample_are_its_own(files: Path) -> None:
    model = guided(files)
    labels = model.condition(range(300), 4)
    assert sorted(set(labels.tolist())) == list(range(CLASSES))
    assert torch.equal(model.condition([7, 200], 4), labels[[7, 200]])


# what cannot be used


def test_a_checkpoint_is_needed_and_where_it_is() -> None:
    said = refused_model("adm/imagenet64")
    assert "--checkpoint FILE, 64x64_diffusion.pt from the README of github.com/openai/guided-diffusion" in said
    assert "lsun_cat.pt" in refused_model("adm/lsun-cat")
    assert "--checkpoint FILE" in refused_model("adm")
    assert "did you mean 'lsun-bedroom'" in refused_model("adm/lsun-bedrom")
    assert "no such file" in refused_model("adm/imagenet64", checkpoint="nowhere.pt")
    assert "no such file" in refused_model("adm/imagenet64", checkpoint=300 * "a")


def test_a_checkpoint_of_another_architecture(files: Path) -> None:
    # what is named fits, then
    said = refused_model("adm/imagenet64", checkpoint=str(files / "adm_g.pt"))
    assert "adm_g.pt: time_embed.0.weight is [128, 32], these flags make [768, 192]; it fits with " in said
    assert "num_channels=32 num_res_blocks=1 channel_mult=1,2 classes=3 " in said
    options = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2"}
    heads = {"num_head_channels": 16}  # which no weight shows
    loaded = load_model("adm/imagenet64", checkpoint=str(files / "adm_g.pt"), classes=3, model_options=options | heads)
    assert (loaded.classes, loaded.schedule.alpha(500)) == (3, NoiseSchedule.cosine().alpha(500))
    # the unconditional one with the flags of the other
    said = refused_model("adm", checkpoint=str(files / "adm.pt"), model_options=CONDITIONAL)
    assert "label_emb.weight is missing; it fits with class_cond=false" in said
    said = refused_model("adm", checkpoint=str(files / "adm_g.pt"), classes=3)
    assert "attention_resolutions=32 channel_mult=1,2 class_cond=true resblock_updown=true learn_sigma=true" in said
    said = refused_model(
        "adm", checkpoint=str(files / "adm_g.pt"), model_options=CONDITIONAL | {"num_head_channels": 24}
    )
    assert "do not divide by 24 (num_head_channels)" in said


@pytest.mark.parametrize("changes", [{"resblock_updown": False}, {"use_scale_shift_norm": False, "learn_sigma": False}])
@pytest.mark.parametrize("shape", [{"num_res_blocks": 2, "channel_mult": "1,1,2"}, {"attention_resolutions": "8,4"}])
def test_the_flags_that_fit_are_those_it_was_made_with(tmp_path: Path, changes: dict[str, Any], shape: Any) -> None:
    flags = UNCONDITIONAL | changes | shape
    torch.save(Plain(Flags(**flags).network()).state_dict(), tmp_path / "other.pt")
    unshown = {name: flags[name] for name in ("image_size", "num_head_channels")}
    said = refused_model("adm", checkpoint=str(tmp_path / "other.pt"), model_options=unshown | {"channel_mult": "1"})
    fits = said.partition("it fits with ")[2].partition(" (")[0]
    options = {
        name: json.loads(value) if value in ("true", "false") else value
        for name, _, value in (part.partition("=") for part in fits.split())
    }
    options = {name: int(value) if name.startswith("num_") else value for name, value in options.items()}
    loaded = load_model("adm", checkpoint=str(tmp_path / "other.pt"), model_options=unshown | options)
    assert Flags(**(unshown | options)).network() == Flags(**flags).network()
    assert loaded.shape == (3, 8, 8)


def test_a_classifier_that_does_not_fit(files: Path) -> None:
    assert "--classifier nowhere.pt: there is no such file" in guided_refused(files, classifier="nowhere.pt")
    said = guided_refused(files, model_options=CONDITIONAL | {"classifier_depth": 2})
    assert "--classifier " in said
    assert "it fits with classifier_depth=1 (" in said
    said = guided_refused(files, classes=3, classifier=str(files / "adm_g.pt"))
    assert "give it as --checkpoint" in said
    assert "give it as --classifier" in guided_refused(files, checkpoint=str(files / "classifier.pt"))


def guided_refused(files: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        guided(files, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Harmful:
    """Would make a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_are_not_loaded(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(files / "adm.pt", weights_only=True) | {"extra": Harmful()}
    torch.save(state, "harmful.pt", _use_new_zipfile_serialization=not legacy)
    said = refused_model("adm", checkpoint="harmful.pt", model_options=UNCONDITIONAL)
    assert "holds other objects than tensors" in said
    assert not Path("harmed").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1000, 0.5, 0.999])
def test_a_truncated_checkpoint(files: Path, tmp_path: Path, suffix: str, kept: float) -> None:
    file = tmp_path / f"whole{suffix}"
    state = torch.load(files / "adm.pt", weights_only=True)
    if suffix == ".pt":
        torch.save(state, file)
    else:
        save_file(state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    assert "is incomplete or no file of weights; fetch it again" in refused_model("adm", checkpoint=str(file))


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "is not a state_dict" in refused_model("adm", checkpoint=str(tmp_path / "list.pt"))
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "nested.pt")
    assert "is not a state_dict" in refused_model("adm", checkpoint=str(tmp_path / "nested.pt"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    said = refused_model("adm/lsun-cat", checkpoint=str(tmp_path / "other.pt"))
    assert "time_embed.0.weight is missing; no flags make it fit" in said


@pytest.mark.parametrize("broken", [torch.zeros(()), torch.zeros(0), torch.zeros(32, 0)], ids=lambda x: str(x.shape))
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("checkpoint", "time_embed.0.weight"),
        ("checkpoint", "input_blocks.1.0.emb_layers.1.weight"),
        ("checkpoint", "label_emb.weight"),
        ("classifier", "out.2.positional_embedding"),
        ("classifier", "out.2.c_proj.weight"),
    ],
)
def test_weights_of_no_shape(files: Path, tmp_path: Path, kind: str, key: str, broken: Tensor) -> None:
    whole = torch.load(files / ("adm_g.pt" if kind == "checkpoint" else "classifier.pt"), weights_only=True)
    torch.save(whole | {key: broken}, tmp_path / "broken.pt")
    said = guided_refused(files, **{kind: str(tmp_path / "broken.pt")})
    assert f"{key} is {list(broken.shape)}, these flags make " in said
    assert "; no flags make it fit; " in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_chanels": 32}, "option 'num_chanels' is unknown (did you mean 'num_channels'?"),
        ({"num_channels": "many"}, "option num_channels = 'many' is not a int"),
        ({"class_cond": 1}, "option class_cond = 1 is not a bool"),
        ({"channel_mult": "1,x"}, "channel_mult = '1,x' is not numbers above 0 by commas"),
        ({"channel_mult": "1,-2"}, "channel_mult = '1,-2' is not numbers above 0 by commas"),
        ({"channel_mult": "1,nan"}, "channel_mult = '1,nan' is not numbers above 0 by commas"),
        ({"channel_mult": "1,inf"}, "channel_mult = '1,inf' is not numbers above 0 by commas"),
        ({"attention_resolutions": "0.5"}, "sizes of images are whole numbers"),
        ({"noise_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"num_res_blocks": 0}, "num_res_blocks = 0 is not above 0"),
        ({"classifier_num_head_channels": -1}, "classifier_num_head_channels = -1 is not above 0"),
        ({"image_size": 100}, "channel_mult is missing: image_size = 100 has none"),
        ({"image_size": 6}, "image_size = 6 cannot be halved 2 times"),
    ],
)
def test_flags_that_make_no_network(files: Path, options: dict[str, Any], said: str) -> None:
    if options.get("image_size") == 6:
        options = options | {"channel_mult": "1,1,2"}
    assert said in refused_model("adm", checkpoint=str(files / "adm.pt"), model_options=options)


def test_one_number_is_a_list(files: Path) -> None:
    # as YAML reads --model-option attention_resolutions=4
    loaded = load_model(
        "adm", checkpoint=str(files / "adm.pt"), model_options=UNCONDITIONAL | {"attention_resolutions": 4}
    )
    assert loaded.classes is None


def test_guidance_needs_a_classifier(files: Path) -> None:
    said = guided_refused(files, classifier=None, guidance_scale=2.0)
    assert "guidance_scale = 2 needs a classifier; give --classifier FILE, such as 64x64_classifier.pt from" in said


def test_options_are_for_models_that_take_them(files: Path) -> None:
    assert "model 'mnist' takes no --checkpoint; leave it out" in refused_model("mnist", checkpoint="a.pt")
    assert "model 'mnist' takes no --model-option; leave it out" in refused_model("mnist", model_options={"a": 1})
    assert "model 'small:model' takes no --classifier" in refused_model("small:model", classifier="a.pt")
    assert "takes no --null-class" in refused_model("adm", null_class=3)
    assert "has no classes" in refused_model(
        "adm", checkpoint=str(files / "adm.pt"), classes=3, model_options=UNCONDITIONAL
    )


BAD: dict[str, tuple[str, str]] = {
    "no checkpoint": ("evaluate uniform:2 --model adm/imagenet64", "needs its weights; give --checkpoint FILE"),
    "another architecture": (
        "layers adm/imagenet64 --checkpoint {files}/adm_g.pt",
        "time_embed.0.weight is [128, 32], these flags make [768, 192]; it fits with num_channels=32",
    ),
    "unknown flag": ("{search} --checkpoint {files}/adm.pt --model-option nonsense=1", "option 'nonsense' is unknown"),
    "no flag": ("{search} --checkpoint {files}/adm.pt --model-option nonsense", "is not NAME=VALUE"),
    "truncated": ("{search} --checkpoint torn.pt", "torn.pt: is incomplete or no file of weights; fetch it again"),
    "objects": ("{search} --checkpoint harmful.pt", "harmful.pt: holds other objects than tensors"),
    "truncated classifier": ("{guided} --classifier torn.pt", "--classifier torn.pt: is incomplete"),
    "classifier of objects": ("{guided} --classifier harmful.pt", "--classifier harmful.pt: holds other objects"),
    "classifier of a network": ("{guided} --classifier {files}/adm_g.pt", "give it as --checkpoint"),
    "other features": (
        "{guided} --classifier {files}/classifier.pt --features test_adm_files:features --reference inception.npz",
        "inception.npz: was made with features 'inception', not 'test_adm_files:features'",
    ),
    "reference batch": (
        "{guided} --classifier {files}/classifier.pt --features test_adm_files:features --reference VIRTUAL.npz",
        "VIRTUAL.npz: has 2048 features an image and features 'test_adm_files:features' 6",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_the_command_says_it_in_one_line(command: Command, files: Path, case: str) -> None:
    line, told = BAD[case]
    Path("torn.pt").write_bytes((files / "adm.pt").read_bytes()[:-1000])
    torch.save({"a": Harmful()}, "harmful.pt")
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    Reference.of(Extractor(Features())(images), "inception", name="other").save(Path("inception.npz"))
    # as guided-diffusion writes them: images, and statistics of Inception's 2,048 features
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    if case == "reference batch":
        np.savez("VIRTUAL.npz", arr_0=images.permute(0, 2, 3, 1).numpy(), **statistics)
    flags = " ".join(f"--model-option {name}={str(value).lower()}" for name, value in CONDITIONAL.items())
    search = "search adm --steps 2 --out run"
    guided = f"{search} --checkpoint {files}/adm_g.pt --classes {CLASSES} {flags}"
    status, out, err = command(line.format(files=files, search=search, guided=guided))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not Path("run").exists()
    assert not Path("harmed").exists()
