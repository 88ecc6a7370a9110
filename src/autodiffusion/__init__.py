"""autodiffusion finds, without training, at which few time steps to sample a diffusion model.

from autodiffusion import Settings, search
result = search(Settings.of(model="mnist", steps=4), Path("run"))
print(result.plan.times)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autodiffusion._errors import InputError, RunError
    from autodiffusion._evaluation.confirm import Row
    from autodiffusion._evaluation.evaluate import Evaluator, Score
    from autodiffusion._evaluation.timing import Timing, layer_times, plan_times
    from autodiffusion._pipelines.check import Following, check
    from autodiffusion._pipelines.pipeline import Applied, apply
    from autodiffusion._plans.plan import Plan, Step
    from autodiffusion._plans.schedule import NoiseSchedule
    from autodiffusion._references.reference import Reference
    from autodiffusion._report import report
    from autodiffusion._sampling.sampling import sample
    from autodiffusion._search.figures import evaluate
    from autodiffusion._search.inputs import plan_of as load_plan
    from autodiffusion._search.loop import Result, search
    from autodiffusion._spaces.space import SearchSpace
    from autodiffusion._study.settings import Settings
    from autodiffusion._study.study import Study
    from autodiffusion._views.progress import Progress
    from autodiffusion.models._load import load as load_model
    from autodiffusion.models._model import Model

__version__ = "0.1.0"

# imported when first used: `import autodiffusion` costs nothing, and no part pulls in what another part needs
_HOMES = {
    "Applied": ("_pipelines.pipeline", "Applied"),
    "Evaluator": ("_evaluation.evaluate", "Evaluator"),
    "Following": ("_pipelines.check", "Following"),
    "InputError": ("_errors", "InputError"),
    "Model": ("models._model", "Model"),
    "NoiseSchedule": ("_plans.schedule", "NoiseSchedule"),
    "Plan": ("_plans.plan", "Plan"),
    "Reference": ("_references.reference", "Reference"),
    "Result": ("_search.loop", "Result"),
    "Row": ("_evaluation.confirm", "Row"),
    "RunError": ("_errors", "RunError"),
    "Score": ("_evaluation.evaluate", "Score"),
    "SearchSpace": ("_spaces.space", "SearchSpace"),
    "Settings": ("_study.settings", "Settings"),
    "Progress": ("_views.progress", "Progress"),
    "Step": ("_plans.plan", "Step"),
    "Study": ("_study.study", "Study"),
    "Timing": ("_evaluation.timing", "Timing"),
    "apply": ("_pipelines.pipeline", "apply"),
    "check": ("_pipelines.check", "check"),
    "evaluate": ("_search.figures", "evaluate"),
    "layer_times": ("_evaluation.timing", "layer_times"),
    "load_model": ("models._load", "load"),
    "load_plan": ("_search.inputs", "plan_of"),
    "plan_times": ("_evaluation.timing", "plan_times"),
    "report": ("_report", "report"),
    "sample": ("_sampling.sampling", "sample"),
    "search": ("_search.loop", "search"),
}

__all__ = [
    "Applied",
    "Evaluator",
    "Following",
    "InputError",
    "Model",
    "NoiseSchedule",
    "Plan",
    "Progress",
    "Reference",
    "Result",
    "Row",
    "RunError",
    "Score",
    "SearchSpace",
    "Settings",
    "Step",
    "Study",
    "Timing",
    "apply",
    "check",
    "evaluate",
    "layer_times",
    "load_model",
    "load_plan",
    "plan_times",
    "report",
    "sample",
    "search",
]


if not TYPE_CHECKING:  # or a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'autodiffusion' has no attribute '{name}'")
        module, attribute = _HOMES[name]
        value = getattr(import_module(f"autodiffusion.{module}"), attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]
