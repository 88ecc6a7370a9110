"""autodiffusion finds, without training, at which few time steps to sample a diffusion model.

from autodiffusion import Settings, search
result = search(Settings.of(model="mnist", steps=4), Path("run"))
print(result.plan.times)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autodiffusion.errors import InputError, RunError
    from autodiffusion.evaluate import Evaluator, Score
    from autodiffusion.loop import Result, search
    from autodiffusion.models import Model
    from autodiffusion.models import load as load_model
    from autodiffusion.pipeline import Applied, apply
    from autodiffusion.plan import Plan, Step
    from autodiffusion.sampling import sample
    from autodiffusion.schedule import NoiseSchedule
    from autodiffusion.settings import Settings
    from autodiffusion.space import SearchSpace
    from autodiffusion.study import Study

__version__ = "0.1.0.dev0"

# imported when first used: `import autodiffusion` costs nothing, and no part pulls in what another part needs
_HOMES = {
    "Applied": ("pipeline", "Applied"),
    "Evaluator": ("evaluate", "Evaluator"),
    "InputError": ("errors", "InputError"),
    "Model": ("models", "Model"),
    "NoiseSchedule": ("schedule", "NoiseSchedule"),
    "Plan": ("plan", "Plan"),
    "Result": ("loop", "Result"),
    "RunError": ("errors", "RunError"),
    "Score": ("evaluate", "Score"),
    "SearchSpace": ("space", "SearchSpace"),
    "Settings": ("settings", "Settings"),
    "Step": ("plan", "Step"),
    "Study": ("study", "Study"),
    "apply": ("pipeline", "apply"),
    "load_model": ("models", "load"),
    "sample": ("sampling", "sample"),
    "search": ("loop", "search"),
}

__all__ = [
    "Applied",
    "Evaluator",
    "InputError",
    "Model",
    "NoiseSchedule",
    "Plan",
    "Result",
    "RunError",
    "Score",
    "SearchSpace",
    "Settings",
    "Step",
    "Study",
    "apply",
    "load_model",
    "sample",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autodiffusion' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    value = getattr(import_module(f"autodiffusion.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
