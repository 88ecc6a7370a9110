"""Settings of a search: every option with its default, its range and its preset."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autodiffusion._errors import InputError, nearest, one_line
from autodiffusion._plans.grids import NAMED
from autodiffusion._plans.plan import Option
from autodiffusion._plans.published import published
from autodiffusion._spaces.costs import MaxCost

MAX_BYTES, MAX_DEPTH = 64 * 2**10, 20
"""The largest and the most deeply nested configuration that is read."""
Count = Annotated[int, Field(ge=1)]

OPENING = (
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
)
CLOSING = (yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken, yaml.BlockEndToken)
"""Tokens with which a nest of YAML begins and ends."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "strategy": "ladder",
        "samples": 500,
        "noise": "common",
        "starts": list(NAMED),
        "finalists": 4,
        "confirm_samples": 2000,
        "evolution": {"population": 18, "generations": 9, "parents": 6, "mutations": 13, "crossovers": 5}
        | {"mutation_probability": 0.5, "initial_mutations": 0, "mutation_scale": 0.08},
    },
    "paper": {
        "strategy": "evolution",
        "samples": 5000,
        "noise": "fresh",
        "starts": ["uniform"],
        "finalists": 1,
        "confirm_samples": 50_000,
        "evolution": {},
    },
}
"""What is filled in where nothing is said. ``paper``: Algorithm 1 as released for ImageNet 64, whose numbers are also
the defaults of the strategy itself."""

WITH_LAYERS: dict[str, dict[str, Any]] = {
    "default": {"strategy": "prune", "evolution": {}},
    "paper": {"samples": 1000, "evolution": {"generations": 15, "crossovers": 10}},
}
"""What a preset has otherwise where layers are left out; ``paper`` as released for ImageNet 64."""

OF_LAYERS = ("max_cost", "min_steps", "max_steps")
"""Settings that only a search with ``layers`` has."""

OF_MODEL = {"device", "dtype", "guidance_scale", "classes", "null_class", "schedule"} | {
    "checkpoint",
    "classifier",
    "captions",
    "model_options",
}
"""Settings that a model is loaded with, besides its name."""

RUNNING = ("batch_size", "device", "threads", "cache_mb", "workers", "ray_address", "timeout")
"""Settings that say how a search runs, not what it finds; a resumed search may change them."""

SHOWING = ("tensorboard",)
"""Settings that say what is shown of a search while it runs; likewise."""


class _Loader(yaml.SafeLoader):
    """Reads 1e5 and 1e-1 as numbers, as YAML 1.2 has them; YAML 1.1 takes them for text without a decimal point."""


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that :class:`_Loader` would read as numbers."""


EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("!exponent", EXPONENT, list("-+0123456789"))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value = float(str(node.value))
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_Loader.add_constructor("!exponent", _number)


def read_value(text: str) -> Any:
    """What YAML makes of a text, :class:`_Loader`'s."""
    return yaml.load(text, _Loader)  # noqa: S506


class Settings(BaseModel):
    """A search, completely described; :meth:`of` makes one. ``config.yaml`` of a run holds one, resolved.

    Attributes:
        model: ``mnist``, ``adm/imagenet64`` and the like, a folder or hub name of a diffusers UNet or Stable Diffusion
            pipeline, a single file of one, or ``package.module:factory``.
        steps: number of steps of the plans.
        preset: ``default`` or ``paper``, :data:`PRESETS`: what is filled in where nothing is said.
        solver: its name; ``solver_options`` its options, of which ``clip`` is the model's where it is not given.
        free_end: search the time at which the solver stops as well; by default with a continuous solver.
        free_numbers: search what the solver leaves open for each step as well; by default with solvers such as ``gls``.
        gap: smallest distance between two steps, in the space's time steps.
        layers: search which layers of the network to leave out at each step as well.
        max_cost: of a plan that leaves out layers: ``60%`` of the multiply-accumulates of ``steps`` whole steps,
            ``232 layers`` kept over all network evaluations (the paper's N_max), ``1.5 GMACs`` of one sample, or
            ``35 ms``, measured for one sample of a batch. By default as many layers as ``steps`` whole steps keep.
        min_steps: fewest steps of such a plan; by default as many whole ones as that pays for, at most ``steps``.
        max_steps: most steps of such a plan; by default half as many again as that pays for, at least ``steps``.
        metric: what is searched for; ``features`` and ``reference`` are the model's own where they are not given.
        samples: for each candidate's score; with common noise a strategy may use fewer for a first look.
        noise: ``common`` for all candidates, or ``fresh`` for each, as in the paper.
        seed: of everything random.
        strategy: its name; ``strategy_options`` its options.
        starts: what the search begins with: named grids, and plans (published, or ``.json`` files), resampled to
            ``steps``. Where nothing is said, all named grids that fit the model's noise schedule.
        budget: network evaluations times samples after which no further candidate is begun, confirmation excluded. An
            evaluation counts as one whatever layers are left out of it.
        finalists: how many of the best are scored again on fresh noise to choose the plan.
        confirm_samples: for that choice and, on other fresh noise again, for the figures reported.
        teacher: steps of a many-step row in the final table, 0 for none.
        guidance_scale, classes, null_class, schedule: of the model, where its files do not say.
        checkpoint, classifier, captions, model_options: files and options of a model that takes such.
        batch_size, device, dtype, threads: how it runs; ``threads`` 0 leaves it to torch.
        cache_mb: memory for what candidates have in common from one round to the next, on the device.
        workers: processes that sample, each with the model; by default one for each GPU where the device is ``cuda``,
            as many as a cluster has room for, and otherwise this process alone.
        ray_address: of a running Ray cluster that they are on: ``auto`` or ``host:6379``.
        timeout: seconds that a plan may take on a block of noise; then it has no score, and its worker is replaced.
        tensorboard: write scalars, and now and then samples of the best plan, into ``tensorboard`` in the run's folder.
            The samples cost network evaluations that are not counted, 16 at a time, and at most 2 % of the time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    steps: int
    preset: Literal["default", "paper"] = "default"
    solver: str = "ddim"
    solver_options: dict[str, Option] = {}
    free_end: bool | None = None
    free_numbers: bool | None = None
    gap: Count = 1
    layers: bool = False
    max_cost: str | None = None
    min_steps: Count | None = None
    max_steps: Count | None = None
    metric: str = "fid"
    features: str | None = None
    reference: str | None = None
    samples: Annotated[int, Field(ge=2)]
    noise: Literal["common", "fresh"]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    strategy: str
    strategy_options: dict[str, Option] = {}
    starts: list[str]
    budget: Count | None = None
    finalists: Count
    confirm_samples: Annotated[int, Field(ge=2)]
    teacher: Annotated[int, Field(ge=0)] = 0
    guidance_scale: float | None = None
    classes: Count | None = None
    null_class: Annotated[int, Field(ge=0)] | None = None
    schedule: str | None = None
    checkpoint: str | None = None
    classifier: str | None = None
    captions: str | None = None
    model_options: dict[str, Option] = {}
    batch_size: Count = 128
    cache_mb: Annotated[int, Field(ge=0)] = 1024
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    threads: Annotated[int, Field(ge=0)] = 0
    workers: Count | None = None
    ray_address: str | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    tensorboard: bool = False

    @classmethod
    def of(cls, where: str = "settings", /, **given: Any) -> Settings:
        """Settings from what was given, the rest from the preset; ``None`` counts as not given.

        Raises:
            InputError: an unknown key, a value of another type or out of range, an unknown grid among the starts, or
                what is for layers only without ``layers``.
        """
        given = {key: _text(value) for key, value in given.items() if value is not None}
        preset = given.get("preset", "default")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise InputError(f"{where}: preset '{preset}' is unknown {nearest(str(preset), PRESETS)}")
        filled, evolution = PRESETS[preset], PRESETS[preset]["evolution"]
        if given.get("layers") is True:
            filled, evolution = filled | WITH_LAYERS[preset], evolution | WITH_LAYERS[preset]["evolution"]
        filled = {key: value for key, value in filled.items() if key != "evolution"}
        if (filled | given)["strategy"] == "evolution":
            own = given.get("strategy_options", {})
            given["strategy_options"] = evolution | own if isinstance(own, dict) else own
        try:
            settings = cls.model_validate(filled | given)
        except ValidationError as error:
            raise one_line(error, where, cls.model_fields) from None
        if "," in settings.metric:
            raise InputError(f"{where}: metric: '{settings.metric}' are several; a search has one, evaluate takes more")
        for name in settings.starts:
            if name not in NAMED and name not in published() and not name.endswith(".json"):
                raise InputError(
                    f"{where}: starts: grid '{name}' is unknown {nearest(name, NAMED)}; a plan's file "
                    "ends in .json, and autodiffusion plans lists published ones"
                )
        _check_layers(settings, where)
        return settings

    def dump(self) -> str:
        """The settings as YAML, in the order of the fields."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)

    def difference(self, other: Settings) -> str | None:
        """The first setting in which ``other`` is another search: ``samples: 250 there, 500 here``, if any."""
        for name in type(self).model_fields:
            before, now = getattr(other, name), getattr(self, name)
            if name not in (*RUNNING, *SHOWING) and before != now:
                return f"{name}: {before} there, {now} here"
        return None


def _text(value: Any) -> Any:
    """Paths, alone or in a list, as the texts that they are in a file."""
    if isinstance(value, list | tuple):
        return [_text(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_layers(settings: Settings, where: str) -> None:
    """Raises :class:`InputError` where what is said about layers does not fit together."""
    given = {name: value for name in OF_LAYERS if (value := getattr(settings, name)) is not None}
    if given and not settings.layers:
        raise InputError(
            f"{where}: {next(iter(given))} is for a search that leaves out layers; give layers (--layers) too"
        )
    if settings.max_cost is not None:
        MaxCost.parse(settings.max_cost, f"{where}: max_cost")
    if settings.min_steps is not None and settings.min_steps > settings.steps:
        raise InputError(
            f"{where}: min_steps = {settings.min_steps} is above steps = {settings.steps}; give at most that"
        )
    if settings.max_steps is not None and settings.max_steps < settings.steps:
        raise InputError(
            f"{where}: max_steps = {settings.max_steps} is below steps = {settings.steps}; give at least that"
        )


def _check_yaml(text: str, path: Path) -> None:
    """Raises :class:`InputError` for what may take more than its size says: references, and deep nests."""
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise InputError(f"{path}: has references, such as *this, which are not taken; write it out")
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MAX_DEPTH:
            raise InputError(f"{path}: is nested too deeply for a configuration")


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        InputError: it cannot be read, or is not a mapping of names to values.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: is larger than {MAX_BYTES >> 10} KiB and cannot be a configuration")
        text = path.read_text(encoding="utf-8")
        _check_yaml(text, path)
        content = read_value(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})") from None
    except ValueError as error:  # of a number or a date, such as the 30th of February
        raise InputError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: is not a mapping of option names to values")
    return content
