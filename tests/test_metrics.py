"""Metrics against closed forms, naive computations and other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from frechet import frechet_distance
from rooms import FEATURE_METRICS

from autodiffusion._errors import InputError
from autodiffusion._references.reference import Reference
from autodiffusion.features import Features
from autodiffusion.metrics import Metric
from autodiffusion.metrics._base import Floats, Indices, Interval, bootstrap, interval
from autodiffusion.metrics._build import build
from autodiffusion.metrics.fid import FID
from autodiffusion.metrics.inception_score import InceptionScore
from autodiffusion.metrics.kl import KL


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def of(array: np.ndarray, logits: np.ndarray | None = None) -> Features:
    """The spatial features are the features themselves, as far as half precision goes."""
    vectors = torch.from_numpy(np.asarray(array, np.float32))
    return Features(
        vectors, None if logits is None else torch.from_numpy(np.asarray(logits, np.float32)), vectors.half()
    )


def reference(array: np.ndarray, **more: object) -> Reference:
    return Reference.of(of(array), None, **more)


def correlated(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    mix = rng.normal(size=(dimension, dimension)) / math.sqrt(dimension)
    return rng.normal(size=(count, dimension)) @ mix + rng.normal(size=dimension)


def metric(name: str, given: Reference) -> Metric:
    made = build(name, given)
    assert isinstance(made, Metric)
    return made


def fid_by_sqrtm(samples: np.ndarray, ref: Reference) -> float:
    """The textbook formula with SciPy's matrix square root of the product of the covariances."""
    sigma = np.cov(samples, rowvar=False)
    root = scipy.linalg.sqrtm(sigma @ ref.sigma)
    return float(((samples.mean(0) - ref.mu) ** 2).sum() + np.trace(sigma + ref.sigma) - 2 * np.trace(root).real)


# --- Frechet distance


def test_frechet_distance_of_diagonal_gaussians() -> None:
    rng = random(0)
    mu1, mu2 = rng.normal(size=(2, 7))
    a, b = rng.uniform(0.1, 3, size=(2, 7))
    expected = ((mu1 - mu2) ** 2).sum() + ((a - b) ** 2).sum()
    assert frechet_distance(mu1, np.diag(a**2), mu2, np.diag(b**2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_gaussians_that_share_axes_other_than_the_coordinates() -> None:
    rng = random(1)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0.1, 3, size=(2, 6))
    mu = rng.normal(size=6)
    distance = frechet_distance(mu, axes @ np.diag(a**2) @ axes.T, mu, axes @ np.diag(b**2) @ axes.T)
    assert distance == pytest.approx(((a - b) ** 2).sum(), rel=1e-12)


def test_frechet_distance_of_degenerate_gaussians_is_the_distance_of_points() -> None:
    zero = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), zero, np.array([1.0, 2, 2]), zero) == pytest.approx(9)


@pytest.mark.parametrize("count", [200, 41, 40])
def test_fid_equals_the_textbook_formula(count: int) -> None:
    rng = random(2)
    ref = reference(correlated(rng, 500, 40))
    samples = of(correlated(rng, count, 40))
    expected = fid_by_sqrtm(samples.vectors.double().numpy(), ref)
    # with 40 samples the covariance is singular, where sqrtm itself loses half its digits
    assert metric("fid", ref).value(samples) == pytest.approx(expected, rel=1e-6 if count > 41 else 1e-5)


@pytest.mark.parametrize("count", [12, 63, 64, 65, 300])
def test_fid_is_the_frechet_distance_on_both_sides_of_as_many_samples_as_features(count: int) -> None:
    rng = random(3)
    ref = reference(correlated(rng, 1000, 64))
    samples = of(correlated(rng, count, 64))
    vectors = samples.vectors.double().numpy()
    slow = frechet_distance(vectors.mean(0), np.cov(vectors, rowvar=False), ref.mu, ref.sigma)
    assert metric("fid", ref).value(samples) == pytest.approx(slow, rel=1e-4)


def test_fid_of_the_reference_itself_is_nothing() -> None:
    data = correlated(random(4), 400, 16)
    assert metric("fid", reference(data)).value(of(data)) == pytest.approx(0, abs=1e-9)


def test_fid_does_not_lose_digits_to_float32_features_far_from_zero() -> None:
    rng = random(5)
    real = (rng.normal(size=(3000, 8)) + 500).astype(np.float32)
    made = (rng.normal(size=(3000, 8)) + 500).astype(np.float32)
    ref = reference(real)
    assert metric("fid", ref).value(of(made)) == pytest.approx(fid_by_sqrtm(made.astype(np.float64), ref), rel=1e-6)


# --- sFID


@pytest.mark.parametrize("count", [30, 300])
def test_sfid_is_the_textbook_formula_of_the_spatial_features_alone(count: int) -> None:
    rng = random(33)
    real, made = correlated(rng, 400, 12), correlated(rng, count, 12)
    samples = Features(torch.zeros(count, 3), spatial=torch.from_numpy(made).half())
    spatial = Reference.of(of(real), None)
    ref = Reference(np.ones(3), np.eye(3), spatial=spatial)
    expected = fid_by_sqrtm(samples.spatial.double().numpy(), spatial)
    assert metric("sfid", ref).value(samples) == pytest.approx(expected, rel=1e-6)
    # the rounding to half precision is nothing
    assert metric("sfid", ref).value(samples) == pytest.approx(fid_by_sqrtm(made, spatial), rel=1e-4)


def test_sfid_sees_where_something_is_and_fid_does_not() -> None:
    """Images of one bright column: the mean does not tell which, the column of each does."""
    rng = random(34)

    def images(columns: np.ndarray) -> Features:
        maps = np.eye(8)[columns] + 0.01 * rng.normal(size=(len(columns), 8))
        return Features(torch.from_numpy(maps.mean(1, keepdims=True)).float(), spatial=torch.from_numpy(maps).half())

    ref = Reference.of(images(rng.integers(4, size=2000)), None)
    right, wrong = images(rng.integers(4, size=500)), images(4 + rng.integers(4, size=500))
    assert metric("fid", ref).value(wrong) < 1e-4
    assert metric("sfid", ref).value(right) < 0.01
    assert metric("sfid", ref).value(wrong) > 0.4


# --- kernel inception distance


def naive_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kid_equals_the_naive_sum_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random(6)
    real, made = of(correlated(rng, 23, 5)), of(correlated(rng, 31, 5))
    expected = naive_mmd(made.vectors.double().numpy(), real.vectors.double().numpy())
    assert metric("kid", Reference.of(real, None)).value(made) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("autodiffusion.metrics.kid.ROWS", 7)  # blocks that do not divide the counts
    assert metric("kid", Reference.of(real, None)).value(made) == pytest.approx(expected, rel=1e-9)


def test_kid_is_unbiased_and_its_standard_error_is_right() -> None:
    rng = random(7)
    real = rng.normal(size=(300, 4))
    kid = build("kid", reference(real))
    draws = [of(rng.normal(size=(20, 4)) * 1.2 + 0.3) for _ in range(1500)]
    values = np.array([kid.value(draw) for draw in draws])
    variances = np.array([kid._pairs(draw).variance for draw in draws])
    many = kid.value(of(rng.normal(size=(6000, 4)) * 1.2 + 0.3))
    assert abs(values.mean() - many) < 4 * values.std() / math.sqrt(len(values))
    assert variances.mean() == pytest.approx(values.var(ddof=1), rel=0.15)
    assert kid.standard_error(draws[0]) == pytest.approx(math.sqrt(variances[0]))


def test_kid_is_never_certain_of_samples_like_the_reference() -> None:
    """The unbiased variance is negative for about half of such samples; the standard error still is the true one."""
    rng = random(21)
    kid = build("kid", reference(rng.normal(size=(3000, 3))))
    draws = [of(rng.normal(size=(50, 3))) for _ in range(200)]
    assert min(kid._pairs(draw).variance for draw in draws) < 0
    errors = np.array([kid.standard_error(draw) for draw in draws])
    assert errors.min() > 0
    assert math.sqrt(np.square(errors).mean()) == pytest.approx(np.std([kid.value(draw) for draw in draws]), rel=0.35)


def test_kid_of_equal_distributions_is_around_zero() -> None:
    rng = random(8)
    values = []
    for _ in range(300):
        values.append(build("kid", reference(rng.normal(size=(25, 3)))).value(of(rng.normal(size=(25, 3)))))
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < max(values)


# --- inception score


def test_inception_score_equals_scipys_entropies() -> None:
    logits = random(9).normal(size=(50, 6)) * 3
    given = scipy.special.softmax(logits.astype(np.float32).astype(np.float64), axis=1)
    ref = reference(random(9).normal(size=(9, 2)))

    def score(p: np.ndarray) -> float:
        return math.exp(np.mean(scipy.stats.entropy(p, p.mean(0)[None], axis=1)))

    samples = of(np.zeros((50, 2)), logits)
    assert InceptionScore(ref).value(samples) == pytest.approx(score(given), rel=1e-9)
    parts = np.mean([score(part) for part in np.split(given, 5)])
    assert InceptionScore(ref, splits=5).value(samples) == pytest.approx(parts, rel=1e-9)


def test_inception_score_lies_between_one_and_the_number_of_classes() -> None:
    score = InceptionScore(reference(np.eye(2)))
    certain = np.full((30, 10), -200.0)
    certain[np.arange(30), np.arange(30) % 10] = 200
    assert score.value(of(np.zeros((30, 2)), certain)) == pytest.approx(10)
    assert score.value(of(np.zeros((30, 2)), np.tile(certain[:1], (30, 1)))) == pytest.approx(1)
    assert score.value(of(np.zeros((30, 2)), np.zeros((30, 10)))) == pytest.approx(1)


# --- precision and recall


def naive_share_inside(points: np.ndarray, centres: np.ndarray, k: int = 3) -> float:
    inside = 0
    reach = [sorted(math.dist(a, b) for j, b in enumerate(centres) if j != i)[k - 1] for i, a in enumerate(centres)]
    for point in points:
        inside += any(math.dist(point, c) <= r for c, r in zip(centres, reach, strict=True))
    return inside / len(points)


def test_precision_and_recall_equal_a_naive_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autodiffusion.metrics._manifold.ROWS", 16)
    rng = random(10)
    real, made = of(rng.normal(size=(60, 3))), of(rng.normal(size=(45, 3)) * 0.7 + 0.6)
    ref = Reference.of(real, None)
    x, y = made.vectors.double().numpy(), real.vectors.double().numpy()
    precision, recall = naive_share_inside(x, y), naive_share_inside(y, x)
    assert 0 < recall < precision < 1
    assert metric("precision", ref).value(made) == precision
    assert metric("recall", ref).value(made) == recall


def test_precision_and_recall_in_the_limits() -> None:
    rng = random(11)
    real = rng.normal(size=(200, 4))
    ref = reference(real)
    precision, recall = metric("precision", ref), metric("recall", ref)
    assert precision.value(of(real)) == recall.value(of(real)) == 1
    assert precision.value(of(real + 100)) == recall.value(of(real + 100)) == 0
    collapsed = of(np.repeat(real[:1], 50, axis=0))  # one real image, again and again
    assert precision.value(collapsed) == 1
    assert recall.value(collapsed) <= 1 / 200
    scattered = of(np.concatenate([real, real + 100]))  # all that is real, and as much that is not
    assert precision.value(scattered) == 0.5
    assert recall.value(scattered) == 1


# --- the variational bound


def test_kl_equals_the_closed_form_between_the_posteriors() -> None:
    """Ho et al. 2020, equations 6 and 7: posteriors given the true and the predicted x_0, as explicit Gaussians."""
    rng = random(12)
    alphas_cumprod = np.array([0.02, 0.2, 0.55, 0.9, 0.99])  # at the steps in order and at the end
    log_snr = 0.5 * np.log(alphas_cumprod / (1 - alphas_cumprod))
    images, dimensions = 6, 5
    x0, noise = rng.uniform(-1, 1, size=(images, dimensions)), rng.normal(size=(4, images, dimensions))
    guess = x0 + rng.normal(size=(4, images, dimensions)) * 0.3

    def posterior(clean: np.ndarray, x_t: np.ndarray, now: float, after: float) -> tuple[np.ndarray, float]:
        beta = 1 - now / after
        mean = (math.sqrt(after) * beta * clean + math.sqrt(now / after) * (1 - after) * x_t) / (1 - now)
        return mean, (1 - after) / (1 - now) * beta

    total = 0.0
    for k, (now, after) in enumerate(pairwise(alphas_cumprod)):
        x_t = math.sqrt(now) * x0 + math.sqrt(1 - now) * noise[k]
        (mean, variance), (predicted, _) = posterior(x0, x_t, now, after), posterior(guess[k], x_t, now, after)
        total += ((mean - predicted) ** 2 / (2 * variance)).mean()
    kl = KL(with_images())
    assert kl.value(log_snr, ((x0 - guess) ** 2).mean(2)) == pytest.approx(total / math.log(2), rel=1e-12)


def with_images() -> Reference:
    return reference(random(0).normal(size=(4, 2)), images=torch.zeros(4, 1, 2, 2, dtype=torch.uint8))


def test_kl_interval_covers_the_expectation() -> None:
    rng, kl, hits = random(13), KL(with_images()), 0
    log_snr = np.array([-1.0, 0.0, 0.5])
    expectation = 0.5 * (math.exp(1) - math.exp(-2)) / math.log(2)  # errors of mean 1 throughout
    for trial in range(100):
        found = kl.interval(log_snr, rng.exponential(size=(2, 60)), resamples=200, seed=trial)
        hits += found.low <= expectation <= found.high
        assert found.low < found.value < found.high
    assert 86 <= hits <= 99


def test_kl_refuses_what_it_cannot_use() -> None:
    kl = KL(with_images())
    with pytest.raises(InputError, match=r"log_snr \[2\] and errors \[2, 3\]"):
        kl.value([0.0, 1.0], np.ones((2, 3)))
    with pytest.raises(InputError, match="must not decrease"):
        kl.value([0.0, 1.0, 0.5], np.ones((2, 3)))
    with pytest.raises(InputError, match="finite"):
        kl.value([0.0, math.inf], np.ones((1, 3)))
    assert kl.value([0.0, 1.0], [[1.0, math.nan]]) == math.inf
    assert kl.interval([0.0, 1.0], [[1.0, math.nan]]) == Interval(math.inf, math.inf, math.inf)
    assert kl.value([0.0, 0.0], [[1.0, 2.0]]) == 0


# --- pseudo-values


def influences(value: Callable[[np.ndarray], float], count: int, step: float = 1e-4) -> np.ndarray:
    """Derivatives of ``value(weights)`` by the weight that each sample gets at the expense of all."""
    even = np.full(count, 1 / count)
    steps = step * (np.eye(count) - even)
    return np.array([(value(even + s) - value(even - s)) / (2 * step) for s in steps])


def leaving_one_out(judge: Metric, samples: Features) -> np.ndarray:
    numbers = np.arange(len(samples))
    without = np.array([judge.value(samples.take(np.delete(numbers, i))) for i in numbers])
    return len(samples) * judge.value(samples) - (len(samples) - 1) * without


def standard_error(pseudovalues: np.ndarray) -> float:
    return float(pseudovalues.std(ddof=1) / math.sqrt(len(pseudovalues)))


@pytest.mark.parametrize("count", [10, 16, 17, 60])
def test_fid_pseudovalues_are_the_derivatives_by_the_samples_weights(count: int) -> None:
    rng = random(22)
    ref = reference(correlated(rng, 400, 16))
    samples = of(correlated(rng, count, 16))
    vectors, root = samples.vectors.double().numpy(), scipy.linalg.sqrtm(ref.sigma).real

    def fid(weights: np.ndarray) -> float:
        mean = weights @ vectors
        scaled = np.sqrt(weights * count / (count - 1))[:, None] * (vectors - mean)
        trace = np.linalg.svd(scaled @ root, compute_uv=False).sum()
        return float(((mean - ref.mu) ** 2).sum() + (scaled**2).sum() + np.trace(ref.sigma) - 2 * trace)

    expected = influences(fid, count)
    found = metric("fid", ref).pseudovalues(samples) - fid(np.full(count, 1 / count))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_fid_pseudovalues_are_near_those_of_leaving_each_sample_out() -> None:
    rng = random(23)
    judge = metric("fid", reference(correlated(rng, 500, 6)))
    samples = of(correlated(rng, 300, 6))
    slow, fast = leaving_one_out(judge, samples), judge.pseudovalues(samples)
    assert np.corrcoef(slow, fast)[0, 1] > 0.999
    assert slow.std() == pytest.approx(fast.std(), rel=0.03)


@pytest.mark.parametrize("count", [5, 30])
def test_fid_pseudovalues_of_one_sample_again_and_again_are_the_value(count: int) -> None:
    judge = metric("fid", reference(correlated(random(24), 100, 8)))
    samples = of(np.full((count, 8), 0.1))
    np.testing.assert_allclose(judge.pseudovalues(samples), judge.value(samples), rtol=1e-6)


def test_kid_pseudovalues_are_those_of_leaving_each_sample_out() -> None:
    rng = random(25)
    judge = metric("kid", reference(correlated(rng, 40, 5)))
    samples = of(correlated(rng, 35, 5))
    np.testing.assert_allclose(judge.pseudovalues(samples), leaving_one_out(judge, samples), rtol=1e-8)


@pytest.mark.parametrize("splits", [1, 3])
def test_inception_score_pseudovalues_are_the_derivatives_by_the_samples_weights(splits: int) -> None:
    samples = of(np.zeros((50, 2)), random(26).normal(size=(50, 6)) * 2)
    assert samples.logits is not None
    given = scipy.special.softmax(samples.logits.double().numpy(), axis=1)

    def score(weights: np.ndarray) -> float:
        parts = zip(np.array_split(given, splits), np.array_split(weights / weights.sum(), splits), strict=True)
        shares = [(p, w / w.sum()) for p, w in parts]
        return float(np.mean([math.exp(w @ scipy.stats.entropy(p, (w @ p)[None], axis=1)) for p, w in shares]))

    judge = InceptionScore(reference(np.eye(2)), splits)
    found = judge.pseudovalues(samples) - judge.value(samples)
    np.testing.assert_allclose(found, influences(score, 50), atol=1e-6)


class Mean(Metric):
    """The plainest metric, whose standard error is known."""

    better = "lower"
    needs = "features"

    def measure(self, features: Features) -> float:
        return float(features.vectors.double().mean())


class Picky(Mean):
    minimum = 30

    def measure(self, features: Features) -> float:
        assert len(features) >= 30
        return super().measure(features)


def test_pseudovalues_of_a_mean_give_the_standard_error_of_a_mean() -> None:
    judge = Mean(reference(random(27).normal(size=(9, 1))))
    few, many = (of(random(28).normal(size=(n, 1))) for n in (15, 400))
    np.testing.assert_allclose(judge.pseudovalues(few), few.vectors[:, 0], rtol=1e-9)  # the samples themselves
    groups = many.vectors.double().numpy().reshape(20, 20).mean(1)
    np.testing.assert_allclose(judge.pseudovalues(many), groups, atol=1e-12)
    errors = [standard_error(judge.pseudovalues(of(random(i).normal(size=(403, 1))))) for i in range(100)]
    assert np.mean(errors) == pytest.approx(1 / math.sqrt(403), rel=0.06)


def test_pseudovalues_leave_as_many_samples_as_the_metric_needs() -> None:
    judge = Picky(reference(random(29).normal(size=(9, 1))))
    for count in (31, 32, 33, 40, 500):
        found = judge.pseudovalues(of(random(30).normal(size=(count, 1))))
        assert 20 <= len(found) <= count
    with pytest.raises(InputError, match="of 30 samples none can be left out; give 31 or more"):
        judge.pseudovalues(of(np.ones((30, 1))))


@pytest.mark.parametrize(
    ("name", "count", "dimension", "likeness", "low", "high"),
    [
        ("fid", 400, 16, 0.3, 0.85, 1.2),
        ("fid", 400, 16, 0.9, 0.85, 1.2),
        ("fid", 40, 64, 0.3, 0.95, 1.3),  # 1.14 with many draws
        ("fid", 40, 64, 0.9, 0.95, 1.3),
        ("kid", 100, 6, 0.6, 0.8, 1.25),
        ("inception_score", 100, 6, 0.6, 0.8, 1.25),
        ("precision", 100, 6, 0.6, 0.8, 1.25),
        ("recall", 100, 6, 0.6, 1.2, 2.3),  # 1.8 with many draws
    ],
)
def test_pseudovalues_tell_how_far_apart_two_plans_on_the_same_noise_can_be_by_chance(
    name: str, count: int, dimension: int, likeness: float, low: float, high: float
) -> None:
    rng = random(31)
    judge = metric(name, reference(rng.normal(size=(150, dimension))))
    common, *own = rng.normal(size=(3, dimension, dimension)) / math.sqrt(dimension)
    plans = [np.eye(dimension) + 0.5 * (likeness * common + (1 - likeness) * mix) for mix in own]

    differences, errors = [], []
    for _ in range(80 if name == "recall" else 200):
        noise = rng.normal(size=(count, dimension))
        a, b = (judge.pseudovalues(of(noise @ plan + 0.2, noise @ plan * 2)) for plan in plans)
        differences.append(a.mean() - b.mean())
        errors.append(standard_error(a - b))
    assert low < np.mean(errors) / np.std(differences, ddof=1) < high


@pytest.mark.parametrize(("count", "dimension"), [(40, 8), (8, 8), (12, 20)])
def test_resampled_fid_is_that_of_the_samples_drawn(count: int, dimension: int) -> None:
    rng = random(39)
    judge = metric("fid", reference(correlated(rng, 300, dimension)))
    samples = of(correlated(rng, count, dimension) + 20)
    at = judge.resampled(samples)
    for size in (count, 2 * count, 5):
        drawn = rng.integers(count, size=size)
        assert at(drawn) == pytest.approx(judge.value(samples.take(drawn)), rel=1e-6)


# --- every metric of features


@pytest.mark.parametrize("name", FEATURE_METRICS)
@pytest.mark.parametrize("count", [10, 200, 1000])
def test_every_metric_has_pseudovalues_around_its_value(name: str, count: int) -> None:
    rng = random(32)
    judge = metric(name, reference(rng.normal(size=(150, 3))))
    vectors, logits = rng.normal(size=(count, 3)) + 0.5, rng.normal(size=(count, 4))
    samples = of(vectors, logits)
    found = judge.pseudovalues(samples)
    assert found.dtype == np.float64
    assert min(count, 20) <= len(found) <= count
    assert np.isfinite(found).all()
    assert found.std() > 0 or count == 10  # which can all be precise, whichever is left out
    assert found.mean() == pytest.approx(judge.value(samples), rel=1e-9)
    backwards = of(vectors[::-1], logits[::-1])
    np.testing.assert_allclose(judge.pseudovalues(backwards), found[::-1], atol=1e-9 * np.abs(found).max())
    vectors[3, 1] = logits[3, 1] = np.nan
    broken = judge.pseudovalues(of(vectors, logits))
    assert len(broken) == len(found)
    assert (broken == judge.worst).all()


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_every_metric_ranks_good_samples_above_bad_ones(name: str) -> None:
    rng = random(14)
    real = rng.normal(size=(300, 6))
    judge = metric(name, reference(real))
    sure, unsure = rng.normal(size=(2, 200, 5)) * [[[8.0]], [[0.1]]]
    good, bad = of(rng.normal(size=(200, 6)), sure), of(rng.normal(size=(200, 6)) * 0.2 + 4, unsure)
    sign = 1 if judge.better == "higher" else -1
    assert sign * judge.value(good) > sign * judge.value(bad)


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_every_metric_gives_the_worst_value_to_samples_that_are_not_finite(name: str) -> None:
    judge = metric(name, reference(random(15).normal(size=(30, 3))))
    broken = np.zeros((20, 3))
    broken[4, 1] = np.nan
    samples = of(broken, broken)
    worst = math.inf if judge.better == "lower" else -math.inf
    assert judge.value(samples) == worst
    assert interval(judge, samples) == Interval(worst, worst, worst)


def test_intervals_of_few_resamples_hold_as_much_as_they_say() -> None:
    """Of a mean, whose samples are normal; between the usual quantiles of 40 resamples it would be 89 %."""
    rng, held = np.random.default_rng(0), 0
    for trial in range(1000):
        x = rng.normal(size=100)

        def mean(indices: Indices, x: Floats = x) -> float:
            return float(x[indices].mean())

        found = bootstrap(mean, len(x), mean(np.arange(100)), 40, trial, 0.95)
        held += found.low <= 0 <= found.high
    assert 0.93 < held / 1000 < 0.97


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_every_metric_has_an_interval_around_its_value_that_shrinks_and_repeats(name: str) -> None:
    rng = random(16)
    judge = metric(name, reference(rng.normal(size=(150, 3))))
    few, many = (of(rng.normal(size=(n, 3)) + 0.5, rng.normal(size=(n, 4))) for n in (40, 400))
    narrow, wide = interval(judge, many, resamples=60), interval(judge, few, resamples=60)
    for found, samples in ((narrow, many), (wide, few)):
        assert found.low < found.value < found.high
        assert found.value == judge.value(samples)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert interval(judge, few, resamples=60) == wide
    half = interval(judge, few, resamples=60, level=0.5)
    assert half.high - half.low < wide.high - wide.low


@pytest.mark.parametrize("name", ["fid", "kid", "precision", "recall"])
def test_intervals_cover_what_other_samples_of_the_same_number_give(name: str) -> None:
    rng = random(17)
    judge = metric(name, reference(rng.normal(size=(100, 6))))

    def draw() -> Features:
        return of(rng.normal(size=(200, 6)) + 0.4)

    expectation = np.mean([judge.value(draw()) for _ in range(200)])
    found = [interval(judge, draw(), resamples=50, seed=i) for i in range(60)]
    assert 50 <= sum(i.low <= expectation <= i.high for i in found) <= 60  # 95 % is 57
    widths = np.array([i.high - i.low for i in found]) / 2 / 1.96
    assert widths.mean() == pytest.approx(np.std([judge.value(draw()) for _ in range(200)]), rel=0.3)


def test_plain_percentiles_of_the_fid_would_leave_its_value_out() -> None:
    """The reason for the shift: in many dimensions every resample is farther from the reference than the samples."""
    rng = random(18)
    judge = metric("fid", reference(rng.normal(size=(2000, 40))))
    samples = of(rng.normal(size=(120, 40)))
    at = judge.resampled(samples)
    assert min(at(rng.integers(120, size=120)) for _ in range(50)) > judge.value(samples)
    found = interval(judge, samples, resamples=50)
    assert found.low < found.value < found.high


def test_unusable_samples_and_names_are_refused() -> None:
    ref = reference(random(19).normal(size=(10, 3)))
    with pytest.raises(InputError, match=r"'fidd' is unknown .did you mean 'fid'"):
        build("fidd", ref)
    with pytest.raises(InputError, match="not a class derived from"):
        build("math:sqrt", ref)
    with pytest.raises(InputError, match="have 4 features and reference reference has 3"):
        metric("fid", ref).value(of(np.zeros((5, 4))))
    with pytest.raises(InputError, match="1 samples are too few"):
        metric("fid", ref).value(of(np.zeros((1, 3))))
    with pytest.raises(InputError, match="no logits"):
        metric("inception_score", ref).value(of(np.zeros((5, 3))))
    with pytest.raises(InputError, match="cannot be cut into 9"):
        InceptionScore(ref, splits=9).value(of(np.zeros((5, 3)), np.zeros((5, 3))))
    with pytest.raises(InputError, match="resamples at level"):
        interval(metric("fid", ref), of(np.ones((5, 3))), level=1.0)
    statistics = Reference(ref.mu, ref.sigma, name="published")
    for name in ("kid", "precision", "recall"):
        with pytest.raises(InputError, match=f"published: the {name} metric needs .* vectors of real images"):
            build(name, statistics)
    with pytest.raises(InputError, match="published: the sfid metric needs spatial features"):
        build("sfid", statistics)
    with pytest.raises(InputError, match="no spatial features; use one that returns"):
        metric("sfid", ref).value(Features(torch.zeros(5, 3)))
    with pytest.raises(InputError, match="published: the kl metric needs real images"):
        build("kl", statistics)
    assert metric("fid", statistics).value(of(np.ones((5, 3)))) > 0


# First looks


def test_extrapolated_frechet_distances_have_less_bias() -> None:
    # a wide and a narrow Gaussian whose order is another at 40 samples than at infinitely many
    fid, random = FID(Reference(np.zeros(32), np.eye(32))), np.random.default_rng(0)
    for scale, true in ((1.2, 32 * 0.2**2), (0.8, 32 * 0.2**2)):
        draws = [Features(torch.from_numpy(scale * random.standard_normal((80, 32)))) for _ in range(40)]
        plain = np.mean([fid.value(features) for features in draws]) - true
        extrapolated = np.mean([fid.extrapolated(features).mean() for features in draws]) - true
        assert plain > 1
        assert abs(extrapolated) < plain / 2


def test_extrapolated_values_are_of_both_counts() -> None:
    fid = FID(Reference(np.zeros(8), np.eye(8)))
    features = Features(torch.from_numpy(np.random.default_rng(0).standard_normal((60, 8))))
    halves = (fid.value(features.take(range(30))) + fid.value(features.take(range(30, 60)))) / 2
    assert fid.extrapolated(features).mean() == pytest.approx(2 * fid.value(features) - halves)
    assert len(fid.extrapolated(features)) == 60
    broken = Features(torch.full((60, 8), torch.nan))
    assert (fid.extrapolated(broken) == math.inf).all()
