"""A search as the one command that does it again."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import yaml

from autodiffusion._study.settings import Settings

SWITCHES = {
    "free_end": ("--free-end", "--no-free-end"),
    "free_numbers": ("--free-numbers", "--no-free-numbers"),
}
"""Options that are on or off or left to the solver: what says which."""
WIDTH = 72
"""Columns of a command above which each of its options gets a line."""


def command(settings: Settings) -> str:
    """``autodiffusion search mnist --steps 4 ... --out RUN``: all that differs from what the preset fills in.

    A long one has an option a line, as shells take it, so that no page breaks it within an option.
    """
    words = _words(settings)
    if len(whole := shlex.join(words)) <= WIDTH:
        return whole
    options = [place for place, word in enumerate(words) if word.startswith("--")]
    ends = zip([0, *options[1:]], [*options[1:], len(words)], strict=True)
    return " \\\n    ".join(shlex.join(words[start:end]) for start, end in ends)


def _words(settings: Settings) -> list[str]:
    said = {name: getattr(settings, name) for name in ("model", "steps", "preset", "strategy", "layers")}
    usual = Settings.of("report", **said)
    words = ["autodiffusion", "search", settings.model, "--steps", str(settings.steps)]
    strategy = Settings.of("report", **{name: said[name] for name in said if name != "strategy"}).strategy
    for name in type(settings).model_fields:
        value, other = getattr(settings, name), getattr(usual, name)
        flag = f"--{name.replace('_', '-')}"
        if name in ("model", "steps") or value is None:
            continue
        if name == "strategy":
            words += [flag, value] if value != strategy else []
        elif name == "preset":
            words += [flag, value] if value != "default" else []
        elif name in SWITCHES:
            words.append(SWITCHES[name][not value])
        elif isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, dict):
            for key, own in value.items():
                if other.get(key) != own:
                    words += [flag.removesuffix("s"), f"{key}={_text(own)}"]
        elif value != other:
            words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
    return [*words, "--out", "RUN"]


def _text(value: Any) -> str:
    """An option's value as the command line reads it, which is as YAML."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w./:-]*", value) and yaml.safe_load(value) == value
        return value if plain else json.dumps(value)
    return yaml.safe_dump(value).split("\n")[0]
