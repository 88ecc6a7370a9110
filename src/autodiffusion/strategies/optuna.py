"""Any sampler of Optuna that a seed alone makes, such as TPE, a Gaussian process or CMA-ES, behind ask and tell."""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from autodiffusion._errors import InputError, nearest
from autodiffusion._plans.plan import Plan
from autodiffusion._spaces.space import SearchSpace
from autodiffusion.strategies._base import Strategy

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

TRIES = 10
"""How often a sampler is asked for a plan that is new, before one is drawn evenly instead."""

ARGUMENTS = {
    # its defaults from Optuna 5 on: all numbers together, and other plans of the same population count as bad ones
    "TPESampler": {"multivariate": True, "constant_liar": True},
    # without, every seed gives the same sequence
    "QMCSampler": {"scramble": True},
}
"""What a sampler is given besides its seed."""

UNUSABLE = ("BruteForceSampler",)
"""Made from a seed alone, but not for real parameters: it counts all values of discrete ones."""


@dataclass
class Optuna(Strategy):
    """The starts, then what a sampler of Optuna (Akiba et al. 2019) proposes from the losses so far.

    ``optuna:GPSampler`` is this strategy with ``sampler=GPSampler``. A sampler sees a plan as the numbers of
    :func:`encode`. Plans that failed are told as failed trials. A proposal that is a plan asked for before counts as
    another trial with that plan's loss and takes nothing from the candidates.

    GPSampler computes with torch, whose sums may differ in the last digit between machines and numbers of threads:
    there, a search that is resumed elsewhere may go on with other plans than it would have tried here.

    Attributes:
        sampler: name of a class in ``optuna.samplers``.
        candidates: how many plans are tried in all.
        population: how many of them at once. The sampler learns nothing between two plans of a population.

    Raises:
        InputError: Optuna is not installed, an unknown sampler, or a number below 1.
    """

    colon: ClassVar[str] = "sampler"

    sampler: str = "TPESampler"
    candidates: int = 150
    population: int = 10
    known: dict[Plan, float] = field(default_factory=dict, init=False)
    """What it was told."""
    pending: dict[Plan, list[Trial]] = field(default_factory=dict, init=False)
    """Optuna's trials of the plans whose loss it was not told yet."""
    study: Study = field(init=False)

    def __post_init__(self) -> None:
        self.check(1, "candidates", "population")
        _need("optuna")
        import optuna

        with _quiet():
            self.study = optuna.create_study(sampler=make(self.sampler, self.seed))

    @property
    def planned(self) -> int:
        return self.candidates

    def propose(self, rng: np.random.Generator) -> list[Plan]:
        with _quiet():
            self._forget()
            count = max(0, min(self.population, self.candidates - len(self.seen)))
            plans = [plan for plan in dict.fromkeys(self.starts) if plan not in self.seen][:count]
            for plan in plans:
                self._enter(plan)
            while len(plans) < count and (another := self._next(plans, rng)) is not None:
                plans.append(another)
            return plans

    def tell(self, losses: Sequence[tuple[Plan, float]], errors: Mapping[Plan, float] | None = None) -> None:
        with _quiet():
            for plan, loss in losses:
                if plan in self.seen and plan in self.pending:
                    self.known[plan] = loss
                    for trial in self.pending.pop(plan):
                        self._finish(trial, loss)

    def _next(self, plans: list[Plan], rng: np.random.Generator) -> Plan | None:
        """A plan that is neither seen nor in ``plans``; ``None`` where the space seems to have no other."""
        for _ in range(TRIES):
            plan = self._proposal()
            if plan not in self.seen and plan not in plans:
                return plan
        drawn: list[Plan] = [*plans]
        self.new(drawn, lambda: self.space.sample(rng), 1)
        if len(drawn) == len(plans):
            return None
        self._enter(drawn[-1])
        return drawn[-1]

    def _proposal(self) -> Plan:
        """The plan of the sampler's next trial, which is finished at once where the plan's loss is known."""
        trial = self._trial()
        plan = decode(np.array([trial.params[name] for name in self._names()]), self.space)
        if plan in self.known:
            self._finish(trial, self.known[plan])
        else:
            self.pending.setdefault(plan, []).append(trial)
        return plan

    def _enter(self, plan: Plan) -> None:
        """Makes a trial of a plan that is not the sampler's."""
        self.study.enqueue_trial(dict(zip(self._names(), encode(plan, self.space).tolist(), strict=True)))
        self.pending.setdefault(plan, []).append(self._trial())

    def _trial(self) -> Trial:
        from optuna.distributions import FloatDistribution

        return self.study.ask({name: FloatDistribution(0, 1) for name in self._names()})

    def _names(self) -> list[str]:
        return [f"node {i}" for i in range(self.space.nodes)] + [f"{n.name} {i}" for i, n in self.space.numbers]

    def _finish(self, trial: Trial, loss: float) -> None:
        from optuna.trial import TrialState

        if math.isfinite(loss):
            self.study.tell(trial, loss)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _forget(self) -> None:
        """Gives up the trials of plans that were proposed and not asked for, because only some could be afforded."""
        for plan in [plan for plan in self.pending if plan not in self.seen]:
            for trial in self.pending.pop(plan):
                self._finish(trial, math.inf)


def encode(plan: Plan, space: SearchSpace) -> NDArray[np.float64]:
    """A member of the space as numbers in [0, 1], one a node and one a free number, ``[nodes + len(numbers)]``.

    Number *i* says where node *i* lies between the earliest time and the node before it: their ratio, to the power of
    how many nodes are left. That is the distribution function of the largest of so many even draws, so even numbers
    give evenly drawn plans, as :meth:`SearchSpace.sample` does; without the power the last nodes would crowd at the
    clean end. Every plan has one place in the cube, where sorting K numbers would give it K factorial, of which a
    model of the loss knows nothing; and a small change of a number is a small change of the plan. A free number is its
    place between its bounds.
    """
    places, above = _places(space)
    # the middle of the cell whose points decode to this plan
    levels = (space.positions(plan) - above + 0.5) / places
    ratios = levels / np.array([1.0, *levels[:-1]])
    low, width = space.bounds
    return np.append(ratios ** np.arange(space.nodes, 0, -1), (space.values(plan) - low) / width)


def decode(numbers: NDArray[np.float64], space: SearchSpace) -> Plan:
    """The member of the space that ``numbers`` in [0, 1] stand for; of :func:`encode` the same plan."""
    places, above = _places(space)
    nodes, free = np.split(numbers, [space.nodes])
    levels = np.cumprod(nodes ** (1 / np.arange(space.nodes, 0, -1)))
    low, width = space.bounds
    return space.plan(np.minimum(np.floor(levels * places), places - 1) + above, low + free * width)


def _places(space: SearchSpace) -> tuple[int, NDArray[np.int64]]:
    """How many positions each node has above the lowest that leaves room for the later ones, and that lowest one."""
    above = np.arange(space.nodes)[::-1] * space.gap
    return len(space.times) - int(above[0]), above


def make(name: str, seed: int) -> BaseSampler:
    """The sampler of this name.

    Raises:
        InputError: an unknown name, or a package that it needs is not installed.
    """
    samplers = usable()
    if name not in samplers:
        raise InputError(f"strategy optuna: sampler '{name}' is unknown {nearest(name, samplers)}")
    if name == "CmaEsSampler":
        _need("cmaes")
    # numpy's RandomState, which they draw from, takes 32 bits
    derived = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return samplers[name](seed=derived, **ARGUMENTS.get(name, {}))  # type: ignore[call-arg]


def usable() -> dict[str, type[BaseSampler]]:
    """The samplers of the installed Optuna that need no argument but a seed."""
    from optuna import samplers

    found: dict[str, type[BaseSampler]] = {}
    for name in samplers.__all__:
        cls = getattr(samplers, name)
        if not (isinstance(cls, type) and issubclass(cls, samplers.BaseSampler)) or inspect.isabstract(cls):
            continue
        parameters = inspect.signature(cls).parameters
        required = [p for p in parameters.values() if p.default is p.empty]
        if "seed" in parameters and not required and name not in UNUSABLE:
            found[name] = cls
    return found


def _need(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"strategy optuna: {error}; install its packages with: pip install 'autodiffusion[optuna]'"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's log, and its warnings that a sampler is experimental, from a user who asked for plans."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


strategy = Optuna
