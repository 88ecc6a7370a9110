"""References: every kind of source, what is refused, and the bundled one."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from frechet import frechet_distance
from PIL import Image
from torch import Tensor, nn

from autodiffusion import _npz as npz_reader
from autodiffusion._errors import InputError
from autodiffusion._references import pictures, reference
from autodiffusion._references.reference import Reference, load, symmetric_root
from autodiffusion.features import Extractor, Features
from autodiffusion.features import _base as features
from autodiffusion.metrics._build import build

BUNDLED = Path(reference.__file__).parents[1] / "_bundled" / "mnist" / "reference.npz"


class Corners(nn.Module):
    """Bytes of the first and last pixel of every channel: which image, which channel, where, all show."""

    wants_uint8 = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, 0, 0], x[:, :, -1, -1]], 1).float()


corners = Extractor(Corners(), "corners")


def pixels(count: int = 6, channels: int = 3, height: int = 4, width: int = 5) -> np.ndarray:
    """uint8 ``[N, H, W, C]``."""
    return np.random.default_rng(0).integers(256, size=(count, height, width, channels), dtype=np.uint8)


def folder(path: Path, images: np.ndarray) -> Path:
    path.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{i:03}.png")
    return path


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def test_symmetric_root_squares_to_the_covariance_even_when_singular() -> None:
    mix = np.random.default_rng(1).normal(size=(6, 3))
    sigma = mix @ mix.T
    root = symmetric_root(sigma)
    np.testing.assert_allclose(root @ root, sigma, atol=1e-12)
    np.testing.assert_allclose(root, root.T, atol=1e-14)
    assert np.linalg.eigvalsh(root).min() > -1e-9


def test_a_folder_an_array_and_the_features_themselves_give_the_same_reference(tmp_path: Path) -> None:
    images = pixels()
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    vectors = corners(channels_first).vectors.numpy()
    for source in (
        folder(tmp_path / "folder", images),
        npz(tmp_path / "guided.npz", arr_0=images, arr_1=np.arange(6)),
        npz(tmp_path / "images.npz", images=images),
        npz(tmp_path / "first.npz", images=channels_first.numpy()),
        npz(tmp_path / "features.npz", features=vectors),
    ):
        found = load(source, corners)
        np.testing.assert_allclose(found.mu, vectors.mean(0))
        np.testing.assert_allclose(found.sigma, np.cov(vectors.astype(np.float64), rowvar=False), rtol=1e-10)
        assert found.mu.dtype == found.sigma.dtype == np.float64
        np.testing.assert_array_equal(found.vectors.numpy(), vectors)
        assert found.vectors.dtype == torch.float32
        if "features" in source.name:
            assert found.images is None
            assert found.extractor is None
        else:
            assert torch.equal(found.images, channels_first)
            assert found.extractor == "corners"


def test_it_is_told_how_many_images_have_their_features(tmp_path: Path) -> None:
    told: list[int] = []

    def begin(count: int) -> Callable[[int], None]:
        told.append(count)
        return told.append

    extractor = Extractor(nn.Flatten(), "flat", batch_size=4)
    load(folder(tmp_path / "images", pixels(10)), extractor, begin=begin)
    assert told == [10, 4, 4, 2]


def test_folders_are_read_deep_in_order_and_in_the_mode_of_the_first(tmp_path: Path) -> None:
    grey = pixels(3, channels=1)
    root = folder(tmp_path / "a", grey)
    (root / "deep").mkdir()
    Image.fromarray(pixels(1, channels=3)[0]).save(root / "deep" / "x.BMP")
    Image.fromarray(grey[0, ..., 0]).save(root / "zz.webp", lossless=True)
    (root / "notes.txt").write_text("not an image")
    found = load(root, Extractor(Corners()))
    assert found.images.shape == (5, 1, 4, 5)
    assert torch.equal(found.images[:3], torch.from_numpy(grey).permute(0, 3, 1, 2))
    assert torch.equal(found.images[4], found.images[0])
    grey[0, 0, 0] = 7
    colour = folder(tmp_path / "b", pixels(2))
    Image.fromarray(grey[0, ..., 0]).save(colour / "zz.png")
    last = load(colour, corners).images[2]
    assert last.shape == (3, 4, 5)
    assert torch.equal(last[0], last[2])
    assert last[0, 0, 0] == 7


@pytest.mark.parametrize("more", [{}, {"arr_0": pixels()}, {"arr_0": pixels(), "mu_s": np.ones(3)}])
def test_statistics_are_used_as_they_are_and_images_beside_them_left_alone(
    tmp_path: Path, more: dict[str, np.ndarray]
) -> None:
    mu, sigma = np.arange(6.0, dtype=np.float32), np.eye(6, dtype=np.float32) * 2
    found = load(npz(tmp_path / "statistics.npz", mu=mu, sigma=sigma, **more), corners)
    np.testing.assert_array_equal(found.mu, mu)
    np.testing.assert_array_equal(found.sigma, sigma)
    assert found.mu.dtype == np.float64
    assert found.vectors is None
    assert found.images is None
    assert found.extractor is None


# --- guided-diffusion's reference batches


class Everything(nn.Module):
    """Stands in for Inception: features, logits and spatial features of tiny images; counts the images it is shown."""

    wants_uint8 = True
    shown = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.shown += len(x)
        flat = x.float().flatten(1)
        return flat[:, :6], flat[:, :4] / 50, flat[:, 6:11]


def batch(path: Path, **changed: object) -> Path:
    """What a ``VIRTUAL_*.npz`` holds: a few images, and statistics of many more."""
    many = Extractor(Everything())(torch.from_numpy(pixels(500)).permute(0, 3, 1, 2))
    arrays: dict[str, object] = {"arr_0": pixels(20)}
    for end, vectors in (("", many.vectors), ("_s", many.spatial)):
        values = vectors.double().numpy()
        arrays |= {f"mu{end}": values.mean(0), f"sigma{end}": np.cov(values, rowvar=False)}
    arrays |= changed
    return npz(path, **{key: value for key, value in arrays.items() if value is not None})


def test_a_reference_batch_serves_every_metric(tmp_path: Path) -> None:
    network = Everything()
    found = load(batch(tmp_path / "VIRTUAL.npz"), Extractor(network, "inception"))
    assert (found.extractor, found.name) == ("inception", "VIRTUAL")
    made = Extractor(Everything())(torch.from_numpy(pixels(40)).permute(0, 3, 1, 2))
    statistics = {
        name: np.load(tmp_path / "VIRTUAL.npz", allow_pickle=False)[name] for name in ("mu", "sigma", "mu_s", "sigma_s")
    }
    for name, end, part in (("fid", "", made.vectors), ("sfid", "_s", made.spatial)):
        values = part.double().numpy()
        expected = frechet_distance(
            values.mean(0), np.cov(values, rowvar=False), statistics[f"mu{end}"], statistics[f"sigma{end}"]
        )
        assert build(name, found).value(made) == pytest.approx(expected, rel=1e-6)
    assert build("inception_score", found).value(made) >= 1
    assert network.shown == 0  # no image was needed so far
    real = Extractor(Everything())(torch.from_numpy(pixels(20)).permute(0, 3, 1, 2))
    for name in ("kid", "precision", "recall"):
        alone = build(name, Reference.of(real, None)).value(made)
        assert build(name, found).value(made) == alone
    assert network.shown == 20  # once for all of them
    assert torch.equal(build("kl", found).images, torch.from_numpy(pixels(20)).permute(0, 3, 1, 2))


def test_a_reference_batch_is_kept_whole(tmp_path: Path) -> None:
    extractor = Extractor(Everything(), "inception")
    found = load(batch(tmp_path / "VIRTUAL.npz"), extractor).complete()
    found.save(tmp_path / "own.npz")
    again = load(tmp_path / "own.npz", extractor)
    assert again.vectors.shape == (20, 6)
    assert again.images.shape == (20, 3, 4, 5)
    assert (again.extractor, again.pictures) == ("inception", None)
    np.testing.assert_array_equal(again.mu, found.mu)
    np.testing.assert_array_equal(again.spatial.mu, found.spatial.mu)
    np.testing.assert_array_equal(again.spatial.sigma, found.spatial.sigma)
    assert again.complete() is again


def test_a_reference_batch_without_images_has_its_statistics(tmp_path: Path) -> None:
    found = load(batch(tmp_path / "VIRTUAL.npz", arr_0=None), Extractor(Everything(), "inception"))
    build("fid", found)
    build("sfid", found)
    for name, told in (("kid", "vectors of real images, it has 0"), ("kl", "needs real images, and it has none")):
        with pytest.raises(InputError, match=told):
            build(name, found)


def test_spatial_features_of_images_are_those_of_the_network(tmp_path: Path) -> None:
    found = load(npz(tmp_path / "images.npz", arr_0=pixels(30)), Extractor(Everything(), "inception"))
    expected = pixels(30).transpose(0, 3, 1, 2).reshape(30, -1)[:, 6:11].astype(np.float64)
    np.testing.assert_allclose(found.spatial.mu, expected.mean(0))
    np.testing.assert_allclose(found.spatial.sigma, np.cov(expected, rowvar=False), rtol=1e-10)
    with pytest.raises(InputError, match="the sfid metric needs spatial features"):
        build("sfid", load(tmp_path / "images.npz", corners))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sigma_s": np.eye(4)}, r"VIRTUAL .spatial.: mu \[5\] and sigma \[4, 4\] are not"),
        ({"mu_s": np.full(5, np.nan)}, "VIRTUAL .spatial.: mu holds NaN"),
        ({"mu_s": np.array([None] * 5)}, "'mu_s' holds Python objects, which are never loaded"),
    ],
)
def test_spatial_statistics_that_are_unusable(tmp_path: Path, changed: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(batch(tmp_path / "VIRTUAL.npz", **changed), Extractor(Everything(), "inception"))


def test_a_reference_batch_belongs_to_inception(command: Command, tmp_path: Path) -> None:
    path = batch(tmp_path / "VIRTUAL.npz")
    with pytest.raises(InputError, match="made with features 'inception', not 'own'"):
        load(path, Extractor(Everything()))  # though the numbers of features agree
    status, out, err = command(f"evaluate uniform:2 --model mnist --reference {path}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "was made with features 'inception', not 'mnist'; choose features 'inception'" in err


@pytest.mark.parametrize("half", [False, True])
def test_what_is_saved_is_read_again(tmp_path: Path, half: bool) -> None:
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    vectors = corners(images).vectors + 0.1
    before = Reference.of(Features(vectors), "corners", images, "mine")
    before.save(tmp_path / "reference.npz", half=half)
    after = load(tmp_path / "reference.npz", corners)
    np.testing.assert_array_equal(after.mu, before.mu)
    np.testing.assert_array_equal(after.sigma, before.sigma)
    assert torch.equal(after.vectors, vectors.half().float() if half else vectors)
    assert torch.equal(after.images, images)
    assert (after.extractor, after.name) == ("corners", "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def test_statistics_alone_are_saved_and_read_too(tmp_path: Path) -> None:
    Reference(np.zeros(6), np.eye(6), name="bare").save(tmp_path / "reference")
    after = load(tmp_path / "reference", corners)
    assert (after.vectors, after.images, after.extractor, after.name) == (None, None, None, "bare")


def test_the_bundled_reference() -> None:
    found = load(BUNDLED, features.load("mnist"))
    assert found.vectors.shape == (5000, 64)
    assert found.vectors.dtype == torch.float32
    assert found.images.shape == (1000, 1, 16, 16)
    assert (found.extractor, found.name) == ("mnist", "mnist")
    assert BUNDLED.stat().st_size < 1.2e6
    # the vectors are a part of what the statistics are of
    spread = np.sqrt(np.diag(found.sigma))
    assert np.abs((found.vectors.double().numpy().mean(0) - found.mu) / spread).max() < 5 / np.sqrt(5000)


def test_references_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made with features 'mnist', not 'corners'"):
        load(BUNDLED, corners)
    statistics = npz(tmp_path / "s.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(InputError, match="6 features an image and features 'mnist' 64"):
        load(statistics, features.load("mnist"))
    with pytest.raises(InputError, match="6 features an image and features 'corners' 2"):
        load(statistics, corners, shape=(1, 4, 4))
    assert load(statistics, corners, shape=(3, 4, 4)).mu.shape == (6,)


def header(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
    return path


def truncated(path: Path) -> Path:
    npz(path, mu=np.zeros(6), sigma=np.eye(6))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def flipped(path: Path) -> Path:
    npz(path, mu=np.zeros(6), sigma=np.eye(6))
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<d", 1.0))] ^= 1
    path.write_bytes(content)
    return path


def lying(path: Path) -> Path:
    return member(path, "features.npy", header("(3, 5)") + bytes(8))


def own(path: Path, **changed: object) -> Path:
    arrays = {"format": reference.FORMAT, "name": "n", "mu": np.zeros(6), "sigma": np.eye(6)} | changed
    return npz(path, **{key: value for key, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "does not exist; give a folder"),
        (lambda p: p.with_name("some" + 300 * "a"), "does not exist; give a folder"),
        (lambda p: (p.write_bytes(b"hello"), p)[1], "is not a complete .npz file"),
        (lambda p: (p.write_bytes(b""), p)[1], "is not a complete .npz file"),
        (truncated, "is not a complete .npz file"),
        (flipped, "is not a complete .npz file .*CRC"),
        (lying, "'features' is not as long as it says"),
        (lambda p: member(p, "a.txt", b"text of some length"), "is not a complete .npz file"),
        (lambda p: member(p, "mu.npy", header("(3,", "<f8")), "is not a complete .npz file"),
        (lambda p: npz(p, mu=np.array([None, 1], object)), "'mu' holds Python objects, which are never loaded"),
        (lambda p: npz(p, mu=np.zeros(6)), "holds mu; it must have images, arr_0, features, or mu and sigma"),
        (lambda p: npz(p), "holds nothing; it must have"),
        (lambda p: npz(p, mu=np.zeros(6), sigma=np.zeros((6, 5))), r"mu \[6\] and sigma \[6, 5\] are not"),
        (lambda p: npz(p, mu=np.zeros(6), sigma=np.zeros(6)), r"'sigma' is float64 \[6\]; .* 2 dimensions"),
        (lambda p: npz(p, mu=np.array(["a"]), sigma=np.eye(1)), "'mu' is <U1 .* numbers in 1 dimension$"),
        (lambda p: npz(p, mu=np.full(6, np.nan), sigma=np.eye(6)), "mu holds NaN"),
        (lambda p: npz(p, mu=np.zeros(6), sigma=np.full((6, 6), np.inf)), "sigma holds NaN"),
        (lambda p: npz(p, features=np.full((5, 6), np.nan)), "holds NaN"),
        (lambda p: npz(p, features=np.zeros((1, 6))), "1 images have no covariance"),
        (lambda p: npz(p, features=np.zeros(6)), r"'features' is float64 \[6\]"),
        (lambda p: npz(p, arr_0=np.zeros((4, 5, 5, 3))), "float64 .*must be uint8"),
        (lambda p: npz(p, arr_0=np.zeros((4, 5, 5), np.uint8)), r"uint8 \[4, 5, 5\]; images must be"),
        (lambda p: npz(p, arr_0=np.zeros((4, 3, 5, 3), np.uint8)), "does not show which axis"),
        (lambda p: npz(p, arr_0=np.zeros((4, 5, 5, 4), np.uint8)), "does not show which axis"),
        (lambda p: own(p, format="autodiffusion.reference/2"), "has format 'autodiffusion.reference/2', not"),
        (lambda p: own(p, mu=None), "has no array 'mu' .it has: format, name, sigma"),
        (lambda p: own(p, images=np.zeros((2, 3))), "'images' is not uint8"),
        (lambda p: own(p, vectors=np.zeros((2, 3))), r"vectors \[2, 3\] are not \[N, 6\]"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(make(tmp_path / "some.npz"), corners)
    assert "\n" not in str(caught.value)
    assert "some" in str(caught.value)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    """An object array's content would run code; reading must stop at its header."""
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], object), allow_pickle=True)
    path = member(tmp_path / "bad.npz", "sigma.npy", content.getvalue())
    with pytest.raises(InputError, match="'sigma' holds Python objects"):
        load(path, corners)


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pictures, npz_reader):
        monkeypatch.setattr(module, "MAX_BYTES", 300)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read before its size was checked"))
    with pytest.raises(InputError, match=r"array 'arr_0' of shape \[6, 4, 5, 3\] takes more than"):
        load(npz(tmp_path / "large.npz", arr_0=pixels()), corners)
    with pytest.raises(InputError, match="its 6 images take more than"):
        load(folder(tmp_path / "large", pixels()), corners)


def test_unusable_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load(tmp_path / "empty", corners)
    odd = folder(tmp_path / "odd", pixels())
    Image.new("RGB", (9, 9)).save(odd / "zz.png")
    with pytest.raises(InputError, match=r"zz.png: is 9x9 where 000.png is 5x4"):
        load(odd, corners)
    damaged = folder(tmp_path / "damaged", pixels())
    content = (damaged / "003.png").read_bytes()
    (damaged / "003.png").write_bytes(content[:-30])
    with pytest.raises(InputError, match=r"003.png: is not a readable image"):
        load(damaged, corners)
    (damaged / "003.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"003.png: is not a readable image"):
        load(damaged, corners)
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(deep / "a.png")
    with pytest.raises(InputError, match=r"a.png: has pixels of mode I;16; convert the images to 8 bits"):
        load(deep, corners)
