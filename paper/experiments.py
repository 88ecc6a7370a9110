"""What the paper's tables and figures are made of, as the YAML files beside this one say it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autodiffusion._errors import InputError, nearest
from autodiffusion._study.settings import Settings, read_yaml

HERE = Path(__file__).parent
FILES = ("checkpoint", "classifier", "captions", "reference")
"""Options of a system that name files."""
ABOUT = ("title", "from", "final")
"""What is said of a system besides its options."""
OF_SEARCH = ("system", "evolution", "random", "uniform", "N_max", "whole", "assumed")
"""What is said of a search besides its settings."""
FEWEST = 8
"""Samples that no scale goes below."""


@dataclass(frozen=True)
class Row:
    """One line of a table, or one panel of a figure.

    Attributes:
        name: as it is shown.
        steps: numbers of steps that it has.
        search: whose settings are followed.
        found: what the search finds, else uniform time steps.
        plan: the published plan that stands in its place, if one does.
        system: the one on which plans are measured.
        published: FID and inception score, by the number of steps.
    """

    name: str
    steps: tuple[int, ...]
    search: str
    found: bool
    plan: str | None
    system: str
    published: dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of the paper.

    Attributes:
        name: of its file.
        source: where the published one is.
        kind: ``figures``, ``plans``, ``samples`` or ``occurrence``.
        count: images of each panel, of ``samples``.
        note: what the source leaves open.
    """

    name: str
    title: str
    source: str
    kind: str
    rows: tuple[Row, ...]
    count: int = 0
    note: str = ""

    @cached_property
    def steps(self) -> list[int]:
        """All numbers of steps, rising."""
        return sorted({steps for row in self.rows for steps in row.steps})

    @property
    def searches(self) -> list[tuple[str, int]]:
        """The searches that it needs, each once."""
        return list(dict.fromkeys((row.search, steps) for row in self.rows if row.found for steps in row.steps))

    def limited(self, counts: list[int]) -> Experiment | None:
        """With the searches of these numbers of steps only; ``None`` where none is left."""
        rows = []
        for row in self.rows:
            # a figure's uniform panels are of other numbers of steps than its found ones
            kept = row.steps if self.kind == "samples" and not row.found else [n for n in row.steps if n in counts]
            rows += [replace(row, steps=tuple(kept))] if kept else []
        return replace(self, rows=tuple(rows)) if any(row.found for row in rows) else None


@dataclass(frozen=True)
class Paper:
    """All experiments, and how big they are made.

    Attributes:
        systems, searches: as ``systems.yaml`` has them.
        every: what is replaced in every search.
        scale: by which numbers of samples are multiplied.
        files: folder of checkpoints, references and captions.
        running: settings that say how things run, such as ``device``.
    """

    systems: dict[str, dict[str, Any]]
    searches: dict[str, dict[str, Any]]
    every: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    files: Path = Path()
    running: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, instead: Path | None = None, **options: Any) -> Paper:
        """The paper, with other systems ``instead`` where a file names them.

        Raises:
            InputError: the file cannot be read, or names other things than systems and ``every``.
        """
        whole = read_yaml(HERE / "systems.yaml")
        other = read_yaml(instead) if instead else {}
        for key in other:
            if key not in ("systems", "every"):
                raise InputError(f"{instead}: '{key}' is unknown {nearest(key, ('systems', 'every'))}")
        for name in other.get("systems", {}):
            if name not in whole["systems"]:
                raise InputError(f"{instead}: system '{name}' is unknown {nearest(name, whole['systems'])}")
        systems = whole["systems"] | other.get("systems", {})
        return cls(systems, whole["searches"], other.get("every", {}), **options)

    def samples(self, count: int) -> int:
        """A number of samples at this scale."""
        return min(count, max(FEWEST, round(count * self.scale)))

    def final(self, system: str) -> int:
        """Samples of the figures in the tables."""
        return self.samples(self.systems[system]["final"])

    def options(self, system: str) -> dict[str, Any]:
        """What a system is loaded and compared with."""
        options = {key: value for key, value in self.systems[system].items() if key not in ABOUT}
        for key in FILES:
            if key in options and not str(options[key]).startswith("teacher:"):
                options[key] = str(self.files / options[key])
        return options

    def settings(self, search: str, steps: int, layers: int = 0) -> Settings:
        """The settings of a search.

        Args:
            layers: of the system's network, in which an N_max is counted.

        Raises:
            InputError: they do not fit together.
        """
        own = self.searches[search]
        given = {key: value for key, value in own.items() if key not in OF_SEARCH}
        given |= {key: value for key, value in self.every.items() if key not in OF_SEARCH}
        given |= self.options(own["system"]) | self.running | {"preset": "paper", "steps": steps}
        strategy = given.get("strategy", "evolution")
        given["strategy_options"] = own.get(strategy, {}) | self.every.get(strategy, {})
        if "N_max" in own:
            share = layers / own["whole"] if layers else 1
            given["max_cost"] = f"{round(own['N_max'][steps] * share)} layers"
        samples = Settings.of(search, **given).samples  # those of the preset, where nothing is said
        counts = {"samples": self.samples(samples), "confirm_samples": self.final(own["system"])}
        return Settings.of(search, **given | counts)

    def check(self, experiments: list[Experiment]) -> None:
        """Raises :class:`InputError` unless the files of the systems of these experiments are there."""
        searched = {self.searches[row.search]["system"] for e in experiments for row in e.rows if row.found}
        for name in sorted(searched | {row.system for e in experiments for row in e.rows}):
            system, options = self.systems[name], self.options(name)
            for key in FILES:
                file = str(options.get(key, "teacher:"))
                if not file.startswith("teacher:") and not Path(file).exists():
                    where = f"; see {system['from']}" if "from" in system else ""
                    raise InputError(
                        f"{system['title']}: there is no {file}, its {key}{where}, and give --files FOLDER"
                    )


def experiments(paper: Paper) -> dict[str, Experiment]:
    """All of them by name, tables first.

    Raises:
        InputError: a file has a key that no experiment has, or names a search or a system that there is not.
    """
    found = (_experiment(path, paper) for path in sorted((HERE / "experiments").glob("*.yaml")))
    order = {"table": 0, "figure": 1}
    return {e.name: e for e in sorted(found, key=lambda e: order.get(e.name.partition("_")[0], 2))}


def _experiment(path: Path, paper: Paper) -> Experiment:
    content = read_yaml(path)
    steps, rows = content.pop("steps", []), content.pop("rows", None) or content.pop("panels")
    known = {"name", "found", "uniform", "plan", "system", "steps", "published"}
    read = []
    for row in rows:
        search = row.get("found") or row.get("uniform")
        if set(row) - known or search not in paper.searches or ("found" in row) == ("uniform" in row):
            raise InputError(f"{path}: row {row} is not found or uniform of a search, with {', '.join(sorted(known))}")
        own = row.get("steps", steps)
        read.append(
            Row(
                row["name"],
                tuple(own) if isinstance(own, list) else (own,),
                search,
                "found" in row,
                row.get("plan"),
                row.get("system", paper.searches[search]["system"]),
                {count: tuple(values) for count, values in row.get("published", {}).items()},
            )
        )
    names = {f.name for f in fields(Experiment)} - {"name", "rows"}
    if unknown := set(content) - names:
        raise InputError(f"{path}: '{min(unknown)}' is unknown {nearest(min(unknown), names)}")
    return Experiment(name=path.stem, rows=tuple(read), **content)
