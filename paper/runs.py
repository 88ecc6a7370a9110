"""Searches, plans and figures in a folder: what is there is not made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from autodiffusion._errors import InputError, RunError
from autodiffusion._evaluation.confirm import confirm
from autodiffusion._evaluation.evaluate import Evaluator
from autodiffusion._plans.plan import Plan
from autodiffusion._references.reference import Reference
from autodiffusion._report.run import Run
from autodiffusion._sampling.sampling import sample
from autodiffusion._search.inputs import check_source, find_reference, plan_of, prepare
from autodiffusion._search.loop import explore
from autodiffusion._study.settings import OF_MODEL, Settings
from autodiffusion._study.study import stored_settings, write
from autodiffusion._views.progress import Quiet
from autodiffusion.models._load import load
from autodiffusion.models._model import Model
from paper.experiments import Paper, Row

METRICS = ("fid", "inception_score")
"""Of every figure in the paper."""
FIGURES = "figures.json"


class Runs:
    """What has been run of a paper, in a folder.

    Attributes:
        paper: which systems and searches, and how big.
        out: the folder: ``searches/NAME/STEPS``, ``plans/NAME-STEPS.json`` and ``figures.json``.
        seed: of the figures and pictures, and of every search.
        searching: make the searches that are not there; otherwise what they would find is left open.
    """

    def __init__(
        self, paper: Paper, out: Path, seed: int = 0, searching: bool = True, progress: Quiet | None = None
    ) -> None:
        self.paper, self.out, self.seed, self.searching = paper, out, seed, searching
        self.progress = progress or Quiet()
        self._loaded: tuple[str, Model] | None = None
        self._evaluator: tuple[str, Evaluator, Reference] | None = None
        self._figures = _kept(out / FIGURES)

    def model(self, system: str) -> Model:
        """The model of a system. The last one is kept: they are large."""
        if self._loaded is None or self._loaded[0] != system:
            self._loaded = self._evaluator = None
            options = self.paper.options(system) | self.paper.running
            name = options["model"]
            given = {key: value for key, value in options.items() if key in OF_MODEL}
            self._loaded = system, load(name, **given)
        return self._loaded[1]

    def settings(self, search: str, steps: int) -> Settings:
        """The settings of a search; N_max is the paper's share of the network's layers, where that has others."""
        own = self.paper.searches[search]
        layers = len(self.model(own["system"]).layers) if "N_max" in own else 0
        return self.paper.settings(search, steps, layers).model_copy(update={"seed": self.seed})

    def folder(self, search: str, steps: int) -> Path:
        """Where a search is kept."""
        return self.out / "searches" / search / str(steps)

    def found(self, search: str, steps: int) -> Path | None:
        """The file of the plan that a search finds, searched now if it is not there; ``None`` if it is not to be.

        The search ends with its candidates: figures on fresh noise are made of all plans alike.

        Raises:
            InputError: the search cannot be made, or has been made with other settings.
            RunError: no candidate has a score.
        """
        file = self.out / "plans" / f"{search}-{steps}.json"
        if not self.searching:
            return file if file.exists() else None
        if file.exists():
            self._check(search, steps)
            return file
        self.progress.part(f"{search}, {steps} steps")
        settings, folder = self.settings(search, steps), self.folder(search, steps)
        model = self.model(self.paper.searches[search]["system"])
        explore(settings, folder, 1.0, self.progress, model)
        ranked = Run.of(folder).ranked
        if not ranked:
            raise RunError(f"{folder}: no candidate has a score; its study.jsonl says why for each")
        plan = Plan.model_validate(ranked[0].plan)
        origin = {"model": settings.model, "guidance": model.guidance, "search": search, "samples": settings.samples}
        file.parent.mkdir(parents=True, exist_ok=True)
        plan.with_origin(**origin, value=ranked[0].value).save(file)
        return file

    def _check(self, search: str, steps: int) -> None:
        """Raises :class:`InputError` if the search that is there has other settings than the one that is wanted."""
        folder, wanted = self.folder(search, steps), self.paper.settings(search, steps)
        stored = stored_settings(folder)
        # N_max is in layers of a network that need not be loaded for this; what was left open has been filled in there
        left = {"max_cost": stored.max_cost, "seed": self.seed}
        left |= {name: getattr(stored, name) for name, value in wanted if value in (None, {})}
        if difference := wanted.model_copy(update=left).difference(stored):
            raise InputError(
                f"{folder}: holds a search with other settings ({difference}); give another folder with --out"
            )

    def uniform(self, search: str, steps: int, model: Model) -> Plan:
        """What stands for the paper's "without our method" of a search's solver."""
        own = self.paper.searches[search]
        how = {"grid": "uniform", "offset": 0, "end": None} | own.get("uniform", {})
        last = how["end"] == "last"
        plan = plan_of(f"{how['grid']}:{steps + last}", model, own["solver"])
        times = [t + how["offset"] for t in plan.times]
        end = times.pop() if last else how["end"]
        return Plan.of(own["solver"], times, end=end, solver_options=plan.solver_options)

    def plan(self, row: Row, steps: int) -> Plan | None:
        """The plan of a row for its system; ``None`` where it is to be found and is not.

        Raises:
            InputError: it does not fit the system's model.
        """
        if not row.found:
            return self.uniform(row.search, steps, self.model(row.system))
        file = self.found(row.search, steps)
        return None if file is None else plan_of(str(file), self.model(row.system))

    def figure(self, plan: Plan, system: str) -> dict[str, Any]:
        """FID and inception score of a plan on fresh noise, as ``autodiffusion evaluate --json`` has them."""
        samples = self.paper.final(system)
        about = {"system": self.paper.systems[system], "samples": samples, "seed": self.seed, "digest": plan.digest}
        kept = next((row for row in self._figures if row["of"] == about), None)
        if kept is None:
            evaluator, reference = self._comparison(system, samples)
            self.progress.phase("evaluate", len(plan.steps) * samples)
            [row] = confirm(evaluator, reference, {"plan": plan}, METRICS, samples, self.seed, self.progress.tick)
            kept = row.to_json() | {"of": about}
            self._figures.append(kept)
            self.out.mkdir(parents=True, exist_ok=True)
            write(self.out / FIGURES, "[\n" + ",\n".join(json.dumps(row) for row in self._figures) + "\n]\n")
        return kept

    def images(self, plan: Plan, system: str, count: int) -> Tensor:
        """Images of a plan, the same seeds in each."""
        batch = self.paper.running.get("batch_size", 128)
        self.progress.phase("sample", len(plan.steps) * count)
        return sample(self.model(system), plan, count, self.seed, batch, self.progress.tick)

    def _comparison(self, system: str, samples: int) -> tuple[Evaluator, Reference]:
        """What the images of a system are compared with, and by what."""
        model = self.model(system)
        if self._evaluator is None or self._evaluator[0] != system:
            options, batch = self.paper.options(system), self.paper.running.get("batch_size", 128)
            evaluator, source = prepare(model, options.get("features"), options.get("reference"), batch, samples)
            reference = check_source(source, evaluator, METRICS) or find_reference(source, evaluator, self.progress)
            self._evaluator = system, evaluator, reference
        return self._evaluator[1:]


def _kept(file: Path) -> list[dict[str, Any]]:
    """The figures that earlier runs made."""
    try:
        figures: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    except ValueError:
        raise InputError(
            f"{file}: is not what an earlier run left; restore it, or remove it to measure again"
        ) from None
    return figures
