"""Feature networks: the bundled one, a user's own, and torch-fidelity's, with a stand-in where that is missing."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import Command
from torch import Tensor, nn

from autodiffusion._errors import InputError
from autodiffusion._names import known, resolve
from autodiffusion._references.reference import Reference
from autodiffusion._references.reference import load as load_reference
from autodiffusion.features import Extractor, Features
from autodiffusion.features import _base as features
from autodiffusion.metrics._build import build

BUNDLED = Path(features.__file__).parent.parent / "_bundled" / "mnist"


@pytest.mark.parametrize("name", known("features"))
def test_every_one_is_made_without_arguments(name: str) -> None:
    required = [p for p in inspect.signature(resolve("features", name)).parameters.values() if p.default is p.empty]
    assert not required


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Mean(nn.Module):
    """Two features, spread over a grid: mean and dropped-out mean."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, self.drop(mean)], 1)[:, :, None, None]


class Raw(nn.Module):
    wants_uint8 = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.dtype == torch.uint8
        return x.flatten(1).double(), torch.zeros(len(x), 3, dtype=torch.float16)


def raw_in_small_batches() -> Extractor:
    return Extractor(Raw(), batch_size=2)


def broken() -> nn.Module:
    raise ZeroDivisionError("no luck")


def one_number(x: Tensor) -> nn.Module:
    raise AssertionError("needs an argument")


instance = Mean()
number = 3


def test_the_bundled_network_reads_digits() -> None:
    """Its reference holds real digits: it is sure of nearly all of them, and sees what the reference says it sees."""
    extractor = features.load("mnist")
    reference = load_reference(BUNDLED / "reference.npz", extractor)
    assert reference.images is not None
    found = extractor(reference.images)
    assert found.vectors.shape == (1000, 64)
    assert found.vectors.dtype == found.logits.dtype == torch.float32
    sure = found.logits.softmax(1).max(1).values > 0.9
    assert sure.float().mean() > 0.95
    spread = np.sqrt(np.diag(reference.sigma))
    assert np.abs((found.vectors.double().numpy().mean(0) - reference.mu) / spread).max() < 5 / np.sqrt(1000)
    counts = torch.bincount(found.logits.argmax(1), minlength=10)
    assert counts.min() > 60


def test_features_do_not_depend_on_the_batch_size() -> None:
    some = images(37, 1, 16, 16)
    whole = features.load("mnist")
    small = Extractor(whole.module, "mnist", batch_size=7)
    a, b = whole(some), small(some)
    torch.testing.assert_close(a.vectors, b.vectors, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)


def test_images_reach_the_network_as_minus_one_to_one_and_in_eval_mode() -> None:
    extractor = Extractor(Mean().train())
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 4, 4)
    found = extractor(black_and_white)
    assert found.vectors.tolist() == [[-1, -1], [1, 1]]
    assert found.logits is None
    assert not found.vectors.requires_grad


def test_networks_that_want_bytes_get_them_and_everything_comes_back_in_float32() -> None:
    some = images(5, 1, 2, 2)
    found = raw_in_small_batches()(some)
    assert torch.equal(found.vectors, some.flatten(1).float())
    assert found.vectors.dtype == found.logits.dtype == torch.float32
    assert found.logits.shape == (5, 3)


@pytest.mark.parametrize("attribute", ["Mean", "instance", "raw_in_small_batches"])
def test_a_users_own_network(attribute: str) -> None:
    name = f"{__name__}:{attribute}"
    extractor = features.load(name)
    assert extractor.name == name
    assert len(extractor(images(3, 1, 4, 4))) == 3
    if attribute == "raw_in_small_batches":
        assert extractor.batch_size == 2


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("broken", "without arguments failed .ZeroDivisionError: no luck"),
        ("one_number", "without arguments failed .TypeError"),
        ("number", "is a int; give a torch.nn.Module"),
        ("nothing", "has no attribute 'nothing'"),
    ],
)
def test_what_is_no_network_is_refused(attribute: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        features.load(f"{__name__}:{attribute}")
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        features.load("mnits")


def test_images_of_another_kind_are_refused() -> None:
    extractor = features.load("mnist")
    for wrong in (torch.zeros(2, 1, 16, 16), images(2, 16, 16), images(0, 1, 16, 16)):
        with pytest.raises(InputError, match="must be uint8"):
            extractor(wrong)
    with pytest.raises(InputError, match=r"shape \[3, 64, 64\] do not fit") as caught:
        extractor(images(2, 3, 64, 64))
    assert "\n" not in str(caught.value)


def test_networks_that_return_something_else_are_refused() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    class Listed(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x]

    with pytest.raises(InputError, match=r"features for 2 images are \[\]"):
        Extractor(Wrong())(images(2, 1, 4, 4))
    with pytest.raises(InputError, match="features for 2 images are list"):
        Extractor(Listed())(images(2, 1, 4, 4))


def test_the_number_of_features_is_said_or_found_or_unknown() -> None:
    assert features.load("mnist").dimension() == 64
    assert Extractor(Raw()).dimension((3, 2, 5)) == 30
    assert Extractor(Raw()).dimension() is None


def test_features_take_and_cat() -> None:
    whole = Features(torch.arange(8.0).view(4, 2), torch.arange(4.0)[:, None], torch.arange(12.0).view(4, 3))
    assert whole.take([3, 0, 3]).vectors.tolist() == [[6, 7], [0, 1], [6, 7]]
    assert whole.take(np.array([2])).logits.tolist() == [[2]]
    again = Features.cat([whole.take([0, 1]), whole.take(torch.tensor([2, 3]))])
    assert torch.equal(again.vectors, whole.vectors)
    assert torch.equal(again.logits, whole.logits)
    assert torch.equal(again.spatial, whole.spatial)
    assert len(again) == 4
    assert Features.cat([whole, Features(whole.vectors)]).logits is None
    assert Features.cat([whole, Features(whole.vectors)]).spatial is None


# --- torch-fidelity, which CPU builds of torch cannot have: a module with its constructor and output


class Places(nn.Module):
    """Maps ``[B, 192, 17, 17]`` that tell the first pixel, the channel, the row and the column."""

    def forward(self, x: Tensor) -> Tensor:
        channel, row, column = torch.meshgrid(torch.arange(192), torch.arange(17), torch.arange(17), indexing="ij")
        return x[:, :1, :1, :1].float() / 256 + (100 * channel + 17 * row + column)


class StandIn(nn.Module):
    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert isinstance(name, str)
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = Places()
        if feature_extractor_weights_path is None:
            raise OSError("<urlopen error no route\nto host>")
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True), strict=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        self.Mixed_6d.branch1x1(x)
        return x.float().flatten(2).mean(2).repeat(1, 683)[:, :2048], x.float().amax((2, 3)).repeat(1, 336)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("AUTODIFFUSION_INCEPTION", raising=False)


@pytest.mark.usefixtures("fidelity")
def test_inception_from_a_file_takes_grey_and_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "weights.pth")
    monkeypatch.setenv("AUTODIFFUSION_INCEPTION", str(tmp_path / "weights.pth"))
    extractor = features.load("inception")
    assert extractor.name == "inception"
    assert extractor.dimension() == 2048
    grey = images(70, 1, 8, 8)
    found = extractor(grey)
    assert found.vectors.shape == (70, 2048)
    assert found.logits.shape == (70, 1008)
    torch.testing.assert_close(found.vectors[:, 0], grey.float().mean((1, 2, 3)))
    assert torch.equal(found.vectors, extractor(grey.repeat(1, 3, 1, 1)).vectors)
    # [row, column, channel] of the first seven channels, as TensorFlow lays them out
    expected = [100 * c + 17 * i + j for i in range(17) for j in range(17) for c in range(7)]
    assert found.spatial.shape == (70, 2023)
    assert found.spatial.dtype == torch.float16
    expected = grey[:, :1, 0, 0].float() / 256 + torch.tensor(expected)
    torch.testing.assert_close(found.spatial, expected.half(), rtol=0, atol=0)
    assert not extractor.module.network.Mixed_6d.branch1x1._forward_hooks  # nothing is left behind
    with pytest.raises(InputError, match="4 channels"):
        extractor(images(2, 4, 8, 8))


@pytest.mark.usefixtures("fidelity")
def test_a_reference_batch_becomes_a_reference_with_the_features_of_its_images(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({}, tmp_path / "weights.pth")
    monkeypatch.setenv("AUTODIFFUSION_INCEPTION", str(tmp_path / "weights.pth"))
    arrays = {f"{what}{end}": value for end, d in (("", 2048), ("_s", 2023)) for what, value in statistics(d).items()}
    some = images(5, 3, 8, 8)
    np.savez(tmp_path / "VIRTUAL.npz", arr_0=some.permute(0, 2, 3, 1).numpy(), **arrays)
    out = tmp_path / "own.npz"
    done = command(f"reference VIRTUAL.npz --out {out}")
    assert done == (0, f"{out}: 2048 dimensions, features of 5 images\n", "")
    found = load_reference(out, features.load("inception"))
    assert torch.equal(found.vectors, features.load("inception")(some).vectors)
    np.testing.assert_array_equal(found.sigma, arrays["sigma"])
    np.testing.assert_array_equal(found.spatial.sigma, arrays["sigma_s"])


def statistics(dimension: int) -> dict[str, np.ndarray]:
    return {"mu": np.arange(float(dimension)), "sigma": np.diag(np.arange(1.0, dimension + 1))}


def test_the_real_network_and_its_own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity's, where it is installed (it needs a torchvision that fits this torch); with random weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = kind("inception-v3-compat", ["2048", "logits_unbiased"])
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setenv("AUTODIFFUSION_INCEPTION", str(tmp_path / "weights.pth"))
    extractor = features.load("inception")
    some, real = images(20, 3, 32, 32), images(20, 3, 32, 32) // 2
    found, reference = extractor(some), extractor(real)
    assert found.spatial.shape == (20, 2023)
    with torch.inference_mode():
        vectors, logits = network(some)
    torch.testing.assert_close(found.vectors, vectors, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    ours = Reference.of(reference, "inception", name="real")
    fid = fid_statistics_to_metric(*(fid_features_to_statistics(f.vectors) for f in (found, reference)), False)
    assert build("fid", ours).value(found) == pytest.approx(fid["frechet_inception_distance"], rel=1e-4)
    score = isc_features_to_metric(found.logits, splits=1, shuffle=False)
    assert build("inception_score", ours).value(found) == pytest.approx(score["inception_score_mean"], rel=1e-6)
    kid = kid_features_to_metric(found.vectors, reference.vectors, kid_subsets=1, kid_subset_size=20, verbose=False)
    assert build("kid", ours).value(found) == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-2)


@pytest.mark.usefixtures("fidelity")
def test_inception_that_cannot_be_downloaded_says_how_to_give_a_file() -> None:
    with pytest.raises(InputError, match=r"no route to host.*set AUTODIFFUSION_INCEPTION to the path") as caught:
        features.load("inception")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("fidelity")
def test_inception_weights_that_are_not_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    monkeypatch.setenv("AUTODIFFUSION_INCEPTION", str(path))
    with pytest.raises(InputError, match=r"weights.pth: cannot be read \(No such file"):
        features.load("inception")
    torch.save(Path("more than tensors"), path)
    with pytest.raises(InputError, match=r"weights.pth: cannot be read \(not a file of plain weights"):
        features.load("inception")
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"weights.pth: is not weights-inception") as caught:
        features.load("inception")
    assert "\n" not in str(caught.value)


def test_inception_without_torch_fidelity_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"pip install 'autodiffusion\[inception\]'"):
        features.load("inception")


def test_what_fails_on_images_that_it_has_taken_may_pass() -> None:
    class Failing(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return x.flatten(1)

    extractor = Extractor(Failing())
    given = images(2, 1, 4, 4)
    first = extractor(given)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        extractor(given)
    assert torch.equal(extractor(given).vectors, first.vectors)
