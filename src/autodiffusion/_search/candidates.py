"""Candidates: ask, evaluate, tell, until the strategy or the budget is done; every score goes into the ledger."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autodiffusion._errors import InputError
from autodiffusion._evaluation.evaluate import Score, derive_seed
from autodiffusion._interrupts import checkpoint
from autodiffusion._plans.plan import Plan
from autodiffusion._sampling.sampling import Cost
from autodiffusion._search.job import Job
from autodiffusion._search.racing import Anchor, Race
from autodiffusion._study.study import LEDGER, Study
from autodiffusion._views.progress import Quiet
from autodiffusion.metrics import Metric
from autodiffusion.metrics.kl import KL
from autodiffusion.strategies._base import WIDER


def score_candidates(job: Job, metric: Metric | KL, study: Study, progress: Quiet, share: float = 1.0) -> None:
    """Asks, evaluates and tells until the strategy or the budget is done; what the ledger holds is not done again.

    Args:
        share: of the budget, or else of what the strategy spends at most or is expected to spend, after which it stops;
            the candidates until then are those of a search that goes on. Without a budget the first round always is.

    Raises:
        InputError: the ledger holds another search's scores.
    """
    settings, strategy = job.settings, job.strategy
    price = sum(job.evaluations(settings.steps)) * settings.samples
    budget = min(strategy.most * price, settings.budget or math.inf)
    most = budget if budget < math.inf else strategy.planned * price
    stop = share * most if share < 1 else math.inf
    progress.phase("search", int(min(most, stop)))
    progress.before(sum(event["evaluations"] for event in study.of_kind("scores")))
    race, ledger = _race(job, metric), _Ledger(study)
    spent = 0
    for generation in itertools.count():
        checkpoint()
        left = budget - spent
        plans = strategy.ask(left / price)
        samples = race.samples(strategy.share) if race else settings.samples
        if race:
            while plans and _price(plans, race, samples, job) > left:
                plans.pop()
        else:
            plans = _affordable(plans, left, generation, job, ledger)
        if not plans:
            return
        if stop < math.inf and (spent or settings.budget) and spent + _price(plans, race, samples, job) > stop:
            return
        if race:
            entries = _lap(race, plans, samples, generation, job, ledger, progress)
        else:
            entries = _each(plans, metric, generation, job, ledger, progress)
        spent += sum(event["evaluations"] for event in ledger.of_round(generation))
        told = [(plan, _loss(entries[plan], metric)) for plan in plans]
        strategy.tell(told, {plan: e for plan in plans if (e := entries[plan].get("error")) is not None})


class _Ledger:
    """The scores in a study, by round and by plan; each event is read once, however often it is asked."""

    def __init__(self, study: Study) -> None:
        self.study, self._read = study, 0
        self._rounds: dict[int, list[dict[str, Any]]] = {}
        self._plans: dict[Plan, tuple[int, dict[str, Any]]] = {}

    def of_round(self, generation: int) -> list[dict[str, Any]]:
        """The events of a round."""
        self._look()
        return self._rounds.get(generation, [])

    def entry(self, plan: Plan) -> tuple[int, dict[str, Any]] | None:
        """The round in which a plan was scored last, and what is known of it since."""
        self._look()
        return self._plans.get(plan)

    def _look(self) -> None:
        for event in self.study.events[self._read :]:
            if event["event"] == "scores":
                generation = event["generation"]
                self._rounds.setdefault(generation, []).append(event)
                entries = {Plan.model_validate(entry["plan"]): (generation, entry) for entry in event["scores"]}
                self._plans |= entries
        self._read = len(self.study.events)


def _price(plans: list[Plan], race: Race | None, samples: int, job: Job) -> int:
    """Network evaluations that a round costs at most."""
    if race is None:
        return sum(job.nfe(plan) for plan in plans) * samples
    return race.price(plans, samples, _anchor(race, job), job.nfe)


def _race(job: Job, metric: Metric | KL) -> Race | None:
    """The race that the candidates take part in; ``None`` where their scores do not stand on the same samples."""
    settings = job.settings
    if isinstance(metric, KL) or settings.noise == "fresh":
        return None
    seed = derive_seed(settings.seed, "search")
    return Race(job.evaluator, metric, settings.samples, seed, settings.cache_mb * 2**20, WIDER)


def _anchor(race: Race, job: Job) -> Anchor | None:
    """The strategy's anchor, with the number of samples that it was scored on."""
    strategy = job.strategy
    return None if strategy.anchor is None else (strategy.anchor, race.samples(strategy.whole))


def _lap(
    race: Race, plans: list[Plan], samples: int, generation: int, job: Job, ledger: _Ledger, progress: Quiet
) -> dict[Plan, dict[str, Any]]:
    """The entries of a round in the ledger, scored now if they are not there.

    Raises:
        InputError: others are there.
    """
    anchor = _anchor(race, job)
    study = ledger.study
    event = next(iter(ledger.of_round(generation)), None)
    if event:
        race.skip(plans, samples, anchor)
    else:
        before = replace(job.evaluator.cost)
        first_look = anchor is None and samples < job.settings.samples
        lap = race.lap(plans, samples, anchor, progress.tick, first_look)
        event = _event(generation, plans, lap.scores, samples, job, job.evaluator.cost - before)
        event["anchor"] = anchor[0].digest if anchor and samples < anchor[1] else None
        event["extrapolated"] = first_look
        for entry, error in zip(event["scores"], lap.errors, strict=True):
            entry["error"] = error if math.isfinite(error) else None
        study.record(event)
    entries = {Plan.model_validate(entry["plan"]): entry for entry in event["scores"]}
    if entries.keys() != set(plans):
        raise InputError(
            f"{study.folder / LEDGER}: round {generation} scores other plans than this search asks for; it was made by "
            "another version or changed: restore it, or give another folder"
        )
    return entries


def _affordable(plans: list[Plan], left: float, generation: int, job: Job, ledger: _Ledger) -> list[Plan]:
    """The first of the plans whose scores are known from earlier rounds or can be paid in full."""
    kept: list[Plan] = []
    for plan in plans:
        known = ledger.entry(plan)
        left -= 0 if known and known[0] < generation else job.nfe(plan) * job.settings.samples
        if left < 0:
            break
        kept.append(plan)
    return kept


def _each(
    plans: list[Plan], metric: Metric | KL, generation: int, job: Job, ledger: _Ledger, progress: Quiet
) -> dict[Plan, dict[str, Any]]:
    """The entries of plans that are scored in full, on noise of their own each with ``noise: fresh``."""
    settings, evaluator = job.settings, job.evaluator
    left = [plan for plan in dict.fromkeys(plans) if ledger.entry(plan) is None]
    for batch in [left] if settings.noise == "common" and left else [[plan] for plan in left]:
        fresh = settings.noise == "fresh"
        seed = derive_seed(settings.seed, batch[0].digest if fresh else "search")
        before = replace(evaluator.cost)
        scores = evaluator.scores(batch, metric, settings.samples, seed, progress.tick)
        event = _event(generation, batch, scores, settings.samples, job, evaluator.cost - before)
        ledger.study.record(event)
    return {plan: known[1] for plan in plans if (known := ledger.entry(plan))}


def _event(
    generation: int, plans: list[Plan], scores: list[Score], samples: int, job: Job, spent: Cost
) -> dict[str, Any]:
    """What the ledger keeps of a batch of plans; with layers also what each costs and whether it may be found."""

    def priced(plan: Plan) -> dict[str, Any]:
        return {} if job.layers is None else {"cost": job.pricing.plan(plan), "allowed": job.allows(plan)}

    return {
        "event": "scores",
        "generation": generation,
        "evaluations": spent.evaluations,
        "saved": spent.saved,
        "samples": samples,
        "scores": [
            {
                "plan": plan.model_dump(mode="json", exclude={"origin"}),
                "value": score.value if score.problem is None else None,
                "problem": score.problem,
                **priced(plan),
            }
            for plan, score in zip(plans, scores, strict=True)
        ],
    }


def _loss(entry: dict[str, Any], metric: Metric | KL) -> float:
    """Lower is better, infinity for a plan that failed."""
    if entry["value"] is None:
        return math.inf
    return float(-entry["value"] if metric.better == "higher" else entry["value"])


def standings(events: Sequence[dict[str, Any]], metric: Metric | KL) -> dict[Plan, tuple[int, float]]:
    """The plans of a ledger that have a score of their own, best first: the most samples of one, and its loss then.

    What was estimated as a difference from an anchor only is not among them. More samples come before lower losses,
    since a race drops its worse plans early.
    """
    found: dict[Plan, tuple[int, float]] = {}
    for event in events:
        if event["event"] == "scores" and event.get("anchor") is None:
            for entry in event["scores"]:
                plan, loss = Plan.model_validate(entry["plan"]), _loss(entry, metric)
                if loss < math.inf and event["samples"] >= found.get(plan, (0, 0.0))[0]:
                    found[plan] = (event["samples"], loss)
    return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[1][1])))
