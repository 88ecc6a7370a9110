"""A network's layers: found, numbered and counted in one pass through it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autodiffusion._errors import InputError
from autodiffusion.layers._base import Layer, Rule, rule_for
from autodiffusion.layers._switch import left_out, put_back


@dataclass(frozen=True)
class Network:
    """What can be left out of a network.

    Attributes:
        layers: in execution order.
        macs: multiply-accumulates of the whole network for one sample.
        blocks: the module of each layer and its bypass.
    """

    layers: tuple[Layer, ...]
    macs: int
    blocks: tuple[tuple[nn.Module, Callable[..., Any]], ...] = field(repr=False)

    def without(self, skip: frozenset[int]) -> AbstractContextManager[None]:
        """A context in which the layers of these numbers, which must exist, are left out of the network."""
        return left_out([self.blocks[number] for number in sorted(skip)])


@dataclass
class _Block:
    """A block that a rule knows, and what was seen of it while the network ran: flops of its calls and bypasses."""

    name: str
    module: nn.Module
    rule: Rule
    flops: int = 0
    bypass_flops: int = 0
    order: int = -1


def find(module: nn.Module | None, run: Callable[[], object]) -> Network:
    """The layers of ``module`` that take part in ``run()``, which passes one sample through it.

    The outermost block that a rule knows is a layer; what lies within it is part of it. A layer that is called more
    than once counts once, with the cost of all its calls. Costs are those of one row of the network's batch, so that a
    network that pads its batch or guides within it counts once. The network itself is put back as it was, and never
    compiled.

    Args:
        module: the network, or ``None`` to count the cost of ``run`` alone.
        run: is called once, without gradients.

    Raises:
        InputError: a rule's bypass passes on something else than its block.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    seen: list[_Block] = []
    rows = 0

    def before(block: _Block) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if block.order < 0:
                block.order = len(seen)
                seen.append(block)
            block.flops -= counter.get_total_flops()

        return hook

    def after(block: _Block) -> Callable[..., None]:
        def hook(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            total = counter.get_total_flops()
            block.flops += total
            try:
                passed = block.rule.bypass(called, *args, **kwargs)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise InputError(f"layer {block.name}: its bypass failed ({reason}); mend its rule") from error
            if _form(passed) != _form(output):
                raise InputError(
                    f"layer {block.name}: its bypass passes on {_form(passed)} where the block passes on "
                    f"{_form(output)}; mend its rule"
                )
            block.bypass_flops += counter.get_total_flops() - total

        return hook

    def count_rows(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal rows
        rows += next((len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim), 0)

    with ExitStack() as stack:
        if module is not None:
            module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
            stack.enter_context(put_back(module))
            stack.callback(module.register_forward_pre_hook(count_rows, with_kwargs=True).remove)
            for block in _known(module):
                stack.callback(block.module.register_forward_pre_hook(before(block)).remove)
                stack.callback(block.module.register_forward_hook(after(block), with_kwargs=True).remove)
        if hasattr(torch.compiler, "set_stance"):  # torch 2.6: what is compiled runs as it was written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # the other kernels do the same work, but the one for the CPU is none that is counted
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        stack.enter_context(warnings.catch_warnings())
        # the counter's hooks do not outlast this
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)
        run()

    def macs(flops: int) -> int:
        return flops // 2 // max(rows, 1)

    bypasses = sum(block.bypass_flops for block in seen)
    return Network(
        tuple(
            Layer(block.order, block.name, block.rule.kind, macs(block.flops - block.bypass_flops)) for block in seen
        ),
        macs(counter.get_total_flops() - bypasses),
        tuple((block.module, block.rule.bypass) for block in seen),
    )


def _known(network: nn.Module) -> Iterator[_Block]:
    """The outermost blocks within ``network`` that a rule knows, each once."""
    met: set[nn.Module] = set()

    def below(parent: nn.Module, path: tuple[str, ...]) -> Iterator[_Block]:
        for name, child in parent.named_children():
            if child in met:
                continue
            met.add(child)
            here = path if name == "_orig_mod" else (*path, name)
            rule = rule_for(child)
            if rule is not None:
                yield _Block(".".join(here), child, rule)
            else:
                yield from below(child, here)

    return below(network, ())


def _form(output: object) -> object:
    """What must agree between a block's output and its bypass's: the shapes, as they are nested."""
    if isinstance(output, Tensor):
        return list(output.shape)
    if isinstance(output, dict):
        return {key: _form(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return tuple(_form(value) for value in output)
    return type(output).__name__
