"""The classifier and what it adds to a solver's noise: recorded numbers, the same network written plainly, formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_adm import CASES, GOLDEN, OTHERS, SMALL, PlainClassifier, Recorded, error
from torch import Tensor

from autodiffusion import InputError, Model, NoiseSchedule, Plan
from autodiffusion._evaluation.evaluate import Evaluator
from autodiffusion._names import known
from autodiffusion._references.reference import Reference
from autodiffusion._sampling.sampling import Beginnings, Cost, walk
from autodiffusion.features import Extractor
from autodiffusion.metrics.kl import KL
from autodiffusion.models._adm.classifier import classifier_of, empty_classifier
from autodiffusion.models._adm.network import ADM, MisfitError
from autodiffusion.models.adm import PRESETS
from autodiffusion.solvers._base import Guided, build, solve

FACTS = CASES["class_conditional"]
TENSORS = load_file(GOLDEN / "adm_classifier.safetensors")
STATE = {key.removeprefix("classifier."): value for key, value in TENSORS.items() if key.startswith("classifier.")}


def recorded_flags() -> ADM:
    kwargs = {key: value for key, value in FACTS["classifier_kwargs"].items() if key != "pool"}
    return ADM(**{key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()})


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("class_conditional")


def guided(recorded: Recorded, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    classifier = classifier_of(STATE, recorded_flags()).to(dtype)
    options = {"classifier": classifier, "guidance_scale": FACTS["classifier_scale"]} | options
    return replace(recorded.model(dtype), **options)


# Recorded numbers


def test_logits_and_gradient(recorded: Recorded) -> None:
    classifier = classifier_of(STATE, recorded_flags())
    x, t, y = (recorded.tensors[key] for key in "xty")
    with torch.inference_mode():
        assert error(classifier(x, t), TENSORS["classifier_logits"]) < 1e-5
    at = x.clone().requires_grad_()
    classifier(at, t).log_softmax(-1)[range(2), y].sum().backward()
    assert at.grad is not None
    assert error(at.grad, TENSORS["classifier_grad"]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_guided_ddim(recorded: Recorded, dtype: torch.dtype) -> None:
    model = guided(recorded, dtype)
    plan = Plan.of("ddim", FACTS["timesteps"], solver_options={"clip": True})
    begun, cost = Beginnings(recorded.tensors["xT"].to(dtype), recorded.y), Cost()
    x = next(x for _, x in walk(model, [plan], range(2), 0, cost, begun=begun))
    assert error(x, TENSORS["ddim_clip_guided"]) < 1e-4
    assert error(x, recorded.tensors["ddim_clip"]) > 0.1  # and it is another sample than without
    assert cost.evaluations == 4 * 2  # the classifier is not counted


# The same classifier, written plainly


@pytest.mark.parametrize("other", [name for name, flags in OTHERS.items() if "num_head_channels" in flags])
def test_equals_the_plain_classifier(other: str) -> None:
    torch.manual_seed(0)
    flags = ADM(**(SMALL | OTHERS[other] | {"num_classes": None, "out_channels": 7, "use_new_attention_order": False}))
    plain = PlainClassifier(flags)
    classifier = classifier_of(plain.state_dict(), flags)
    x, t = torch.randn(2, flags.in_channels, 8, 8, dtype=torch.float64), torch.tensor([3.0, 912.5])
    with torch.inference_mode():
        theirs, ours = plain.double()(x, t), classifier.double()(x, t)
    assert theirs.std() > 0.01
    assert error(ours, theirs) < 1e-7


def test_shift_only_equals_the_plain_classifier() -> None:
    flags = ADM(**(SMALL | OTHERS["shift only"] | {"out_channels": 3, "num_head_channels": 16}))
    plain = PlainClassifier(flags)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([30, 500])
    with torch.inference_mode():
        assert error(classifier_of(plain.state_dict(), flags)(x, t), plain(x, t)) < 1e-5


def test_the_published_classifier() -> None:
    flags = PRESETS["imagenet64"].classifier()
    classifier = empty_classifier(flags)
    with torch.device("meta"):
        theirs = PlainClassifier(flags).state_dict()
    assert {key: value.shape for key, value in classifier.state_dict().items()} == {
        key: value.shape for key, value in theirs.items()
    }
    assert flags.channels == (128, 256, 384, 512)
    assert (flags.num_res_blocks, flags.attention_resolutions, flags.out_channels) == (4, (2, 4, 8), 1000)
    assert classifier.out[2].positional_embedding.shape == (512, 65)  # 8 x 8 places and their mean


@pytest.mark.parametrize("key", ["time_embed.0.weight", "input_blocks.3.1.qkv.weight", "out.2.positional_embedding"])
def test_every_key_of_a_classifier_is_used(key: str) -> None:
    for state in ({k: v for k, v in STATE.items() if k != key}, STATE | {key: STATE[key][None]}):
        with pytest.raises(MisfitError, match=f"^checkpoint: {key} is"):
            classifier_of(state, recorded_flags())
    with pytest.raises(MisfitError, match=r"out\.3\.bias is left over"):
        classifier_of(STATE | {"out.3.bias": torch.zeros(1)}, recorded_flags())


# What a model does with it


def test_the_shift_is_the_formula(recorded: Recorded) -> None:
    x, y = recorded.tensors["x"], recorded.tensors["y"]
    model, stronger = guided(recorded), guided(recorded, guidance_scale=4.0)
    with torch.inference_mode():
        shift = model.guide(x.clone(), 500.0, y.clone())  # tensors of inference mode, as in sampling
        doubled = stronger.guide(x, 500.0, y)
    assert shift is not None
    assert doubled is not None
    assert not shift.requires_grad
    at = x.clone().requires_grad_()
    assert callable(model.classifier)
    torch.nn.functional.cross_entropy(model.classifier(at, torch.full((2,), 500.0)), y, reduction="sum").backward()
    assert at.grad is not None
    torch.testing.assert_close(shift, model.schedule.sigma(500) * 2.0 * at.grad)
    torch.testing.assert_close(doubled, 2 * shift)
    assert guided(recorded, guidance_scale=0.0).guide(x, 500.0, y) is None
    assert recorded.model().guide(x, 500.0, y) is None


@pytest.mark.parametrize("solver", ["ddim", "plms"])
def test_samples_do_not_depend_on_the_batch(recorded: Recorded, solver: str) -> None:
    model = guided(recorded)
    plan = Plan.of(solver, [900, 500, 100], solver_options={"clip": True})

    def final(indices: list[int]) -> Tensor:
        return next(x for _, x in walk(model, [plan], indices, 7, Cost()))

    whole = final([0, 1, 2, 3, 4])
    for part in ([0], [3, 1], [4, 0, 2]):
        assert error(final(part), whole[part]) < 1e-4


def test_plans_that_begin_alike_share_what_the_classifier_said(recorded: Recorded) -> None:
    asked = 0
    whole = guided(recorded)

    def count(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        assert callable(whole.classifier)
        return whole.classifier(x, t)

    model = replace(whole, classifier=count)
    plans = [Plan.of("ddim", times, solver_options={"clip": True}) for times in ([900, 500, 100], [900, 500, 50])]
    together = dict(walk(model, plans, [0, 1], 7, Cost()))
    # the second goes on from what was said at 500, the prediction and the shift
    assert asked == 4
    for place, plan in enumerate(plans):
        alone = next(x for _, x in walk(model, [plan], [0, 1], 7, Cost()))
        assert torch.equal(alone, together[place])


# Real images, which come without labels


def test_real_images_are_of_the_class_that_the_classifier_sees(recorded: Recorded) -> None:
    """So that the bound of Table 2 can be had of ADM-G: its network has no null class."""
    model = guided(recorded, classifier=lambda x, t: x.flatten(1)[:, :5] - 9 * t[:, None])
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.manual_seed(5), dtype=torch.uint8)
    x0 = images.float() / 127.5 - 1
    seen = x0.flatten(1)[:, :5].argmax(1)
    assert len(set(seen.tolist())) > 1
    assert torch.equal(model.recognize(x0), seen)
    unlabelled = replace(model, classifier=None, guidance_scale=1.0)
    with pytest.raises(InputError, match="kl needs a null class or a classifier"):
        unlabelled.recognize(x0)
    assert replace(unlabelled, classes=None).recognize(x0) is None
    # the error at a time is that of the network which is told those classes
    features = Extractor(torch.nn.Flatten())
    kl = KL(Reference.of(features(images), "flat", images=images, name="six"))
    [(_, errors)] = Evaluator(model, features, batch_size=4).bounds([Plan.of("ddim", [600.0])], kl, 6, seed=1)
    alpha, sigma = model.schedule.alpha(600), model.schedule.sigma(600)
    x = alpha * x0 + sigma * model.noise(range(6), 1)
    with torch.inference_mode():
        told, wrong = (model.predict(x, 600.0, labels) for labels in (seen, (seen + 1) % 5))
    expected, other = (
        (((x - sigma * epsilon) / alpha).clamp(-1, 1) - x0).square().mean((1, 2, 3)) for epsilon in (told, wrong)
    )
    torch.testing.assert_close(torch.from_numpy(errors[0]).float(), expected, rtol=1e-3, atol=1e-5)
    assert float((expected - other).abs().max()) > 1e-3


# What a solver does with it

SCHEDULE = NoiseSchedule.cosine()


def test_the_shift_comes_after_the_clip() -> None:
    torch.manual_seed(0)
    x, shift = 3 * torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    epsilon, t = torch.randn(5, 3, dtype=torch.float64), 700.0
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    got, x0 = build("ddim", SCHEDULE, {"clip": True}).both(lambda *_: Guided(epsilon, shift), x, t)
    clipped = ((x - sigma * epsilon) / alpha).clamp(-1, 1)
    torch.testing.assert_close(x0, clipped - sigma / alpha * shift)
    torch.testing.assert_close(got, (x - alpha * clipped) / sigma + shift)
    assert float(x0.abs().max()) > 1.1  # not clipped again


@pytest.mark.parametrize("name", known("solvers"))
def test_without_clipping_guidance_is_another_prediction(name: str) -> None:
    # every solver takes what is guided; without a clip between, it is the sum
    solver, x = build(name, SCHEDULE), torch.randn(4, 3, generator=torch.manual_seed(2), dtype=torch.float64)
    times = [900.0, 600.0, 300.0, 40.0]

    def noise(i: int) -> Tensor:
        return torch.full_like(x, 0.1 * i)

    split = solve(solver, lambda x, t: Guided(torch.tanh(x), 0.3 * torch.cos(x + t)), x, times, noise=noise)
    whole = solve(solver, lambda x, t: torch.tanh(x) + 0.3 * torch.cos(x + t), x, times, noise=noise)
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-9)


# A classifier for a model of one's own


def test_an_own_classifier_moves_samples_to_its_class() -> None:
    # the data are one point of each class, -1/2 and 1/2; what the classifier says is exact
    schedule, labels = NoiseSchedule.linear(), torch.tensor([0, 1, 1, 0])

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha(float(t[0])), schedule.sigma(float(t[0]))
        return (x - alpha * 0.5 * torch.tanh(0.5 * alpha * x / sigma**2)) / sigma

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(float(t[0])), schedule.sigma(float(t[0]))
        means = torch.tensor([-0.5, 0.5]) * alpha
        return -((x.flatten(1) - means) ** 2) / (2 * sigma**2)

    model = Model(network, schedule, (1, 1, 1), classes=2, classifier=classifier)
    plan = Plan.of("ddim", list(range(999, -1, -50)), solver_options={"clip": True})
    begun = Beginnings(model.noise(range(4), 0), labels)
    x = next(x for _, x in walk(model, [plan], range(4), 0, Cost(), begun=begun)).flatten()
    torch.testing.assert_close(x, labels - 0.5, atol=0.05, rtol=0)


@pytest.mark.parametrize("options", [{"classes": None}, {"classes": 5, "null_class": 4}])
def test_a_classifier_needs_classes_and_nothing_else(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a classifier guides a model with classes"):
        Model(lambda x, t, y: x, SCHEDULE, (1, 2, 2), classifier=lambda x, t: x.flatten(1), **options)
