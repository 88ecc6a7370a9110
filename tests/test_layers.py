"""Layers: found in order, counted, and left out as if their branches were zero."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from conftest import Command
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from networks import found
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autodiffusion import InputError, Model, NoiseSchedule, Plan, Step
from autodiffusion._sampling.sampling import Cost, stretches, walk
from autodiffusion.layers import _base, register
from autodiffusion.layers.transformer import joined_streams

SCHEDULE = NoiseSchedule.linear(1000)


NETWORKS = found()
LAST = {cls: last for small in NETWORKS.values() for cls, last in small.last.items()}


@cache
def network(kind: str) -> nn.Module:
    """A network of this kind with random weights, which tests do not change."""
    torch.manual_seed(0)
    made: nn.Module = NETWORKS[kind].cls(**NETWORKS[kind].config)
    for parameter in made.parameters():  # weights that begin as zero would hide what leaving them out does
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    return made.eval().requires_grad_(False)


def model_of(kind: str, module: nn.Module | None = None, **options: Any) -> Model:
    """A model of the network of this kind, or of one that is called as it is."""
    module = module or network(kind)
    small = NETWORKS[kind]
    call = partial(small.call, module)
    return Model(call, SCHEDULE, small.shape, module=module, name="tiny", classes=small.classes, **options)


def predict(model: Model, t: float = 400.0, count: int = 2) -> Tensor:
    with torch.inference_mode():
        return model.predict(model.noise(range(count), seed=3), t, model.condition(range(count), seed=3))


def zero(whole: nn.Module, name: str) -> nn.Module:
    """A copy of a network in which nothing leaves the branches of the block ``name``."""
    copied = copy.deepcopy(whole)
    block = copied.get_submodule(name)
    for part in LAST[type(block).__name__](block):
        nn.init.zeros_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    return copied


# what leaving out does


def test_every_rule_is_tried_on_a_network() -> None:
    met = {
        _base.rule_for(network(kind).get_submodule(layer.name)) for kind in NETWORKS for layer in model_of(kind).layers
    }
    untried = {rule.cls for rule in _base._built_in() if rule not in met}
    assert not untried, "add a small network with such blocks to tests/networks"


@pytest.mark.parametrize("kind", NETWORKS)
def test_leaving_out_is_zeroing_the_branches(kind: str) -> None:
    model = model_of(kind)
    seen = [predict(model)]
    for layer in model.layers:
        with model.without(frozenset({layer.number})):
            found = predict(model)
        expected = predict(model_of(kind, zero(network(kind), layer.name)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert all((found - other).abs().max() > 1e-4 for other in seen), layer
        seen.append(found)
    assert torch.equal(predict(model), seen[0])


@pytest.mark.parametrize("kind", ["unet", "sd3"])
def test_sets_leave_out_all_their_layers(kind: str) -> None:
    model = model_of(kind)
    for skip in ({0, 1}, {1, 2}, set(range(len(model.layers)))):
        zeroed = network(kind)
        for number in skip:
            zeroed = zero(zeroed, model.layers[number].name)
        with model.without(frozenset(skip)):
            torch.testing.assert_close(predict(model), predict(model_of(kind, zeroed)), rtol=0, atol=1e-6)


def test_single_blocks_of_flux_may_get_one_stream() -> None:
    joined = torch.ones(1, 3, 2)  # as diffusers before 0.34 calls them
    assert joined_streams(nn.Identity(), hidden_states=joined, temb=None) is joined


def ddim(predict_at: Callable[[Tensor, float, int], Tensor], x: Tensor, times: list[float]) -> Tensor:
    """DDIM without clipping (Song et al. 2021, equation 12, eta 0), as a plain loop."""
    for i, t in enumerate(times):
        epsilon = predict_at(x, t, i)
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        clean = (x - sigma * epsilon) / alpha
        later = times[i + 1] if i + 1 < len(times) else None
        x = clean if later is None else SCHEDULE.alpha(later) * clean + SCHEDULE.sigma(later) * epsilon
    return x


def test_plans_that_leave_out_layers_are_walked_like_a_plain_loop() -> None:
    model = model_of("unet")
    times, skips = [900.0, 500.0, 100.0], [{1}, {4, 2}, set()]
    plans = [
        Plan(
            solver="ddim",
            solver_options={"clip": False},
            steps=tuple(Step(t=t, skip=frozenset(skip)) for t, skip in zip(times, sets, strict=True)),
        )
        for sets in (skips, [{1}, {4}, set()], [set(), set(), set()], [*skips[:2], {0}])
    ]
    cost = Cost()
    walked = dict(walk(model, plans, range(2), 5, cost))
    assert cost.saved == 2 * 3  # the first step of {1} and both of {1}, {4, 2} a second time
    for plan, x in zip(plans, map(walked.get, range(4)), strict=True):
        networks = [network("unet")] * 3
        for i, step in enumerate(plan.steps):
            for number in step.skip:
                networks[i] = zero(networks[i], model.layers[number].name)
        models = [model_of("unet", each) for each in networks]
        with torch.inference_mode():
            expected = ddim(lambda x, t, i: models[i].predict(x, t, None), model.noise(range(2), 5), times)  # noqa: B023
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)


# order and cost


def test_layers_are_numbered_in_execution_order() -> None:
    names = [layer.name for layer in model_of("unet").layers]
    assert names == [
        *["down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0"],
        *["down_blocks.1.resnets.0", "down_blocks.1.attentions.0"],
        *["down_blocks.1.resnets.1", "down_blocks.1.attentions.1"],
        *["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"],
        *[f"up_blocks.0.{kind}.{i}" for i in range(3) for kind in ("resnets", "attentions")],
        "up_blocks.0.upsamplers.0",
        *[f"up_blocks.1.resnets.{i}" for i in range(3)],
    ]
    assert [layer.number for layer in model_of("unet").layers] == list(range(len(names)))


def test_the_outermost_block_is_the_layer() -> None:
    layers = model_of("text_unet").layers
    assert [layer.name for layer in layers if layer.kind == "transformer"] == [
        "down_blocks.0.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
    ]
    assert {layer.kind for layer in layers} == {"resnet", "transformer"}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("dit", [f"transformer_blocks.{i}" for i in range(3)]),
        ("sd3", [f"transformer_blocks.{i}" for i in range(3)]),
        ("flux", [f"{group}.{i}" for group in ("transformer_blocks", "single_transformer_blocks") for i in range(2)]),
    ],
)
def test_layers_of_transformers_are_their_blocks(kind: str, names: list[str]) -> None:
    assert [(layer.name, layer.kind) for layer in model_of(kind).layers] == [(name, "transformer") for name in names]


def test_costs_are_the_closed_form() -> None:
    layers = {layer.name: layer.macs for layer in model_of("unet").layers}
    pixels, channels, embedding = 8 * 8, 8, 32
    same = 2 * 9 * channels**2 * pixels + 2 * channels * embedding  # two 3x3 convolutions; scale and shift
    assert layers["down_blocks.0.resnets.0"] == same
    # down to 4x4 at once, so both convolutions are there
    assert layers["down_blocks.0.downsamplers.0"] == 2 * 9 * channels**2 * 16 + 2 * channels * embedding
    # 8 to 16 channels at 4x4: the shortcut's convolution stays
    assert layers["down_blocks.1.resnets.0"] == 9 * (8 * 16 + 16 * 16) * 16 + 2 * 16 * embedding
    # queries, keys, values, output; keys times queries, weights times values
    assert layers["mid_block.attentions.0"] == 4 * 16**2 * 16 + 2 * 16**2 * 16


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_left_out_is_what_is_saved(kind: str) -> None:
    model = model_of(kind)
    numbers = range(len(model.layers))
    for skip in [set(), *({i} for i in numbers), set(numbers), set(numbers[::2])]:
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), model.without(frozenset(skip)), counter:
            predict(model, count=1)
        assert counter.get_total_flops() == 2 * (model.macs - sum(model.layers[i].macs for i in skip))


def test_rows_that_a_network_adds_are_not_counted() -> None:
    whole = model_of("dit")
    guided = replace(whole, null_class=3, guidance_scale=2.0)

    def padded(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return whole.network(x.repeat(4, 1, 1, 1), t.repeat(4), label.repeat(4))[: len(x)]

    for model in (guided, replace(whole, network=padded)):
        assert (model.macs, model.layers) == (whole.macs, whole.layers)


class Twice(nn.Module):
    """A network of my own with blocks that diffusers does not know; the first runs twice and last, one never."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, x: Tensor, *, scale: Tensor | float = 1.0) -> Tensor:
            return x + scale * self.linear(x)

    class Sub(Block):
        """Known by what it derives from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = self.Block(4), self.Sub(4), self.Block(4)
        self.again = nn.ModuleList([self.first])

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.first(self.second(self.first(x), scale=t.view(-1, 1, 1, 1) / 1000))


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "_registered", {})


@pytest.fixture
def own(rules: None) -> Model:
    register(Twice.Block, "mine", lambda module, x, scale=1.0: x)
    torch.manual_seed(0)
    return Model(Twice(), SCHEDULE, (1, 3, 4), name="own")


def test_a_rule_of_my_own(own: Model) -> None:
    assert [(layer.name, layer.kind) for layer in own.layers] == [("first", "mine"), ("second", "mine")]
    assert [layer.macs for layer in own.layers] == [2 * 3 * 4 * 4, 3 * 4 * 4]  # a layer that runs twice counts once
    assert own.macs == 3 * 3 * 4 * 4
    x = own.noise(range(2), seed=3)
    network: Any = own.network
    with own.without(frozenset({0})):
        scaled = 0.4 * (x @ network.second.linear.weight.T + network.second.linear.bias)
        torch.testing.assert_close(predict(own, t=400), x + scaled)
    with own.without(frozenset({0, 1})):
        assert torch.equal(predict(own), x)


def test_the_nearest_class_has_the_rule(own: Model) -> None:
    register(Twice.Sub, "sub", lambda module, x, scale: -x)
    model = replace(own)
    assert [layer.kind for layer in model.layers] == ["mine", "sub"]
    with model.without(frozenset({0, 1})):
        assert torch.equal(predict(model), -model.noise(range(2), seed=3))


# what remains


def traces(module: nn.Module) -> list[Any]:
    """Everything that a switch could leave behind, of each module."""
    found: list[Any] = []
    for each in module.modules():
        state = {key: len(value) if "hooks" in key else id(value) for key, value in vars(each).items()}
        found.append((type(each), state))
    return found


def test_nothing_remains() -> None:
    model = model_of("unet")
    assert model.module is not None
    before, whole = traces(model.module), predict(model)
    assert model.layers
    assert traces(model.module) == before
    with model.without(frozenset({0, 5})):
        predict(model)
        assert traces(model.module) != before
    assert traces(model.module) == before
    assert torch.equal(predict(model), whole)


class StopError(Exception):
    pass


def test_nothing_remains_after_an_exception() -> None:
    module = copy.deepcopy(network("unet"))
    model = model_of("unet", module)
    before, whole = traces(module), predict(model)
    with suppress(StopError), model.without(frozenset({0, 5})):
        raise StopError
    assert traces(module) == before

    def stop(*_: Any) -> None:
        raise StopError

    handle = module.get_submodule("mid_block").register_forward_hook(stop)
    with suppress(StopError), model.without(frozenset({0, 5})):
        predict(model)
    with pytest.raises(StopError):  # while layers are being found
        _ = replace(model).layers
    handle.remove()
    assert traces(module) == before
    assert torch.equal(predict(model), whole)


def test_two_models_do_not_disturb_each_other() -> None:
    first = model_of("unet")
    second = model_of("unet", copy.deepcopy(network("unet")))
    whole, lone = predict(second), {}
    for skip in (frozenset({1}), frozenset({3})):
        with first.without(skip):
            lone[skip] = predict(first)
    with first.without(frozenset({1})):
        assert torch.equal(predict(second), whole)
        with second.without(frozenset({3})):
            assert torch.equal(predict(first), lone[frozenset({1})])
            assert torch.equal(predict(second), lone[frozenset({3})])
        assert torch.equal(predict(second), whole)


def test_contexts_within_one_another_add_up() -> None:
    model = model_of("unet")
    with model.without(frozenset({1, 2})):
        both = predict(model)
    with model.without(frozenset({1})):
        one = predict(model)
        with model.without(frozenset({2, 1})):
            assert torch.equal(predict(model), both)
        with model.without(frozenset()):
            assert torch.equal(predict(model), one)
        assert torch.equal(predict(model), one)
        # a model that shares the module finds the whole of it, and leaves it as it was
        shared = replace(model)
        assert (shared.layers, shared.macs) == (model.layers, model.macs)
        assert torch.equal(predict(model), one)


def test_leaving_nothing_out_does_nothing() -> None:
    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise AssertionError("not even asked what its layers are")

    with Model(network, SCHEDULE, (1, 2, 2)).without(frozenset()):
        pass


def test_replacing_the_network_replaces_its_layers() -> None:
    first = Model(nn.Sequential(Twice.Block(4)), SCHEDULE, (1, 3, 4))
    model = replace(first, network=Twice())
    assert model.layers == ()
    assert model.macs == 3 * 3 * 4 * 4


# other ways to run


class Few(nn.Module):
    """A residual block that resamples, attention, and one more: compiled in a moment."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"temb_channels": None, "groups": 4}
        self.first = ResnetBlock2D(in_channels=4, out_channels=8, down=True, **sizes)
        self.second = Attention(8, heads=1, dim_head=8, norm_num_groups=4, residual_connection=True)
        self.third = ResnetBlock2D(in_channels=8, out_channels=4, up=True, **sizes)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        output: Tensor = self.third(self.second(self.first(x, None)), None)
        return output


def few() -> Model:
    torch.manual_seed(0)
    return Model(Few().eval().requires_grad_(False), SCHEDULE, (4, 8, 8))


@pytest.fixture
def graphs() -> Iterator[Callable[[], int]]:
    """Counts the graphs compiled so far."""
    torch._dynamo.reset()
    counters.clear()

    def count() -> int:
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"]

    yield count
    torch._dynamo.reset()


@pytest.mark.parametrize("wrapped", [True, False])
def test_compiled_networks_get_a_graph_for_each_set(graphs: Callable[[], int], wrapped: bool) -> None:
    eager = few()
    compiled: Any = torch.compile(eager.network, backend="eager", fullgraph=True, dynamic=False)
    model = replace(eager, network=compiled if wrapped else lambda x, t, label: compiled(x, t), module=None)
    model = model if wrapped else replace(model, module=eager.network)
    whole = predict(eager)
    assert torch.equal(predict(model), whole)
    assert [layer.name for layer in model.layers] == ["first", "second", "third"]
    assert model.layers == eager.layers
    assert torch.equal(predict(model), whole)
    assert graphs() == 1  # finding them compiles nothing, and what was compiled stays so
    for expected, skip in [(2, {1}), (3, {0, 2}), (3, {1}), (3, set()), (4, {0}), (4, {0, 2}), (4, {1}), (4, set())]:
        with model.without(frozenset(skip)):
            found = predict(model)
        assert graphs() == expected, skip
        with eager.without(frozenset(skip)), torch.compiler.set_stance("force_eager"):
            assert torch.equal(found, predict(eager))
        assert torch.equal(found, whole) == (not skip)


def test_blocks_that_are_compiled_by_themselves_are_left_out(graphs: Callable[[], int]) -> None:
    expected, model = few(), few()
    module: Any = model.network
    module.first.compile(backend="eager")
    module.second = torch.compile(module.second, backend="eager")
    assert model.layers == expected.layers
    for skip in ({0}, {1}, {0, 1}, set()):
        with model.without(frozenset(skip)), expected.without(frozenset(skip)):
            assert torch.equal(predict(model), predict(expected))
    assert graphs() > 1


def test_blocks_whose_forward_is_another_library_s_are_left_out() -> None:
    expected, model = few(), few()
    module: Any = model.network
    for block in (module.first, module.second):
        block.forward = partial(type(block).forward, block)  # as accelerate does
    before = traces(module)
    for skip in ({0}, {1}, {0, 1}, set()):
        with model.without(frozenset(skip)), expected.without(frozenset(skip)):
            assert torch.equal(predict(model), predict(expected))
    assert traces(module) == before


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_half_precision(kind: str) -> None:
    half = copy.deepcopy(network(kind)).to(torch.bfloat16)
    model = model_of(kind, half, dtype=torch.bfloat16)
    whole = predict(model)
    assert model.layers == model_of(kind).layers
    for layer in model.layers:
        with model.without(frozenset({layer.number})):
            found = predict(model)
        zeroed = model_of(kind, zero(half, layer.name), dtype=torch.bfloat16)
        torch.testing.assert_close(found, predict(zeroed), rtol=0, atol=1e-2)
    assert torch.equal(predict(model), whole)


# what cannot be


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        call()
    return str(caught.value)


def test_layers_that_do_not_exist() -> None:
    model = model_of("unet")
    last = len(model.layers) - 1
    told = f"layer 99 does not exist; tiny has layers 0 to {last}"
    assert refused(lambda: model.without(frozenset({1, 99, 100}))) == told
    assert "layer -1 does not exist" in refused(lambda: model.without(frozenset({-1, 99})))
    plan = Plan(solver="ddim", steps=(Step(t=50.0), Step(t=20.0, skip=frozenset({99}))))
    assert refused(lambda: stretches(plan, model)) == told  # before anything is sampled


def test_networks_without_known_layers(rules: None) -> None:
    unknown = Model(Twice(), SCHEDULE, (1, 3, 4), name="mine")
    assert unknown.layers == ()
    assert unknown.macs == 3 * 3 * 4 * 4
    told = refused(lambda: unknown.without(frozenset({0})))
    assert told.startswith("network of mine has no layer that is known; register a rule")
    function = Model(lambda x, t, label: x, SCHEDULE, (1, 3, 4), name="mine")
    assert "network of mine is a function; name the torch module" in refused(lambda: function.without(frozenset({0})))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ResnetBlock2D", "resnet", len), "'ResnetBlock2D' is not a class of torch modules"),
        ((dict, "resnet", len), "is not a class of torch modules"),
        ((nn.Linear, "", len), "layer rule for Linear: kind '' is not a name"),
        ((nn.Linear, "linear", None), "layer rule for Linear: the bypass None is not a function"),
    ],
)
def test_rules_that_are_none(rules: None, arguments: tuple[Any, ...], told: str) -> None:
    assert told in refused(lambda: register(*arguments))
    assert not _base._registered


def test_rules_that_do_not_fit_their_block(own: Model) -> None:
    register(Twice.Block, "mine", lambda module, x, scale=1.0: x[:, :, :2])
    told = refused(lambda: replace(own).layers)
    assert (
        told == "layer first: its bypass passes on [1, 1, 2, 4] where the block passes on [1, 1, 3, 4]; mend its rule"
    )
    register(Twice.Block, "mine", lambda module, x: x)
    assert "layer second: its bypass failed (TypeError" in refused(lambda: replace(own).layers)


# the command


def factory() -> Model:
    """A model for the command line."""
    return replace(few(), name="few")


def function() -> Model:
    """A model whose network is a function."""
    return Model(lambda x, t, label: x, SCHEDULE, (1, 3, 4))


def test_the_command_lists_layers(command: Command) -> None:
    status, out, err = command("layers test_layers:factory --json")
    assert (status, err) == (0, "")
    content = json.loads(out)
    assert (list(content), content["model"]) == (["model", "macs", "layers"], "few")
    # two 3x3 convolutions, at half the resolution already
    first = {"number": 0, "name": "first", "kind": "resnet", "macs": 9 * (4 * 8 + 8 * 8) * 16}
    assert content["layers"][0] == first
    assert [layer["kind"] for layer in content["layers"]] == ["resnet", "attention", "resnet"]
    status, table, err = command("layers test_layers:factory")
    assert (status, err) == (0, "")
    assert all(layer["name"] in table for layer in content["layers"])
    assert f"{content['macs']:,}" in table


def test_the_command_without_layers(command: Command) -> None:
    status, out, err = command("layers test_layers:function")
    assert (status, out) == (2, "")
    assert err.startswith("autodiffusion: network of test_layers:function is a function")
    assert err.count("\n") == 1
