"""What a report says in words, and its tables as texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autodiffusion._evaluation.confirm import alike, figure
from autodiffusion._evaluation.evaluate import describe
from autodiffusion._plans.plan import Plan
from autodiffusion._report.run import Run
from autodiffusion._spaces.costs import priced

SHORT = 20
"""Steps above which a plan is said by their number."""
REASONS = 3
"""Why candidates have no score, of which the headline names so many."""
FASTER = 1.1
"""Ratio of two measured times below which nothing is said of it: it may be other work on the machine."""


def named(row: Mapping[str, Any]) -> str:
    """A row's name in a sentence."""
    name, _, more = str(row["name"]).partition(" (")
    if "best grid" in more:
        return f"the best named grid ({name})"
    if name == "uniform":
        return f"uniform steps ({more}" if more else "uniform steps"
    return f"the {row['name']}"


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan in one line."""
    if len(plan["steps"]) > SHORT:
        return f"{plan['solver']} at {len(plan['steps'])} steps"
    return describe(Plan.model_validate(plan))


def headline(run: Run) -> list[str]:
    """What was found, in a few sentences."""
    found, metric = run.row("found"), run.settings.metric
    if found is None:
        return _unfinished(run)
    score = found["scores"].get(metric)
    if score is None or score["value"] is None:
        return [f"The plan found has no {metric} on fresh noise: {found['problem'] or 'it is not finite'}."]
    others = [row for row in run.rows if row is not found and row["scores"].get(metric, {}).get("value") is not None]
    against = _listed([f"{row['scores'][metric]['value']:.4g} of {named(row)}" for row in others])
    count = found["nfe"]
    said = (
        f"With {count} network evaluation{'s' * (count > 1)} a sample the plan found has {metric} {score['value']:.4g}"
    )
    first = f"{said}{' against ' * bool(others)}{against}."
    return [first, *_verdict(run, found, others), *_cheaper(found, others), *_faster(run, found)]


def _unfinished(run: Run) -> list[str]:
    settings, groups = run.settings, problems(run)
    if groups and not any(candidate.problem is None for candidate in run.candidates):
        parts = [f"{problem}, for {len(plans)}" for problem, plans in groups.items()]
        parts = parts[:REASONS] + [f"{len(parts) - REASONS} more reasons"] * (len(parts) > REASONS)
        one = next(iter(groups)) if len(groups) == 1 else ""
        why = f"{one}, for all {run.plans}" if one else f"{'; '.join(parts)}, of {run.plans}"
        said = [f"No candidate could be scored: {why}."]
    else:
        said = [f"The search is not finished: {run.plans} candidates are scored, none is confirmed on fresh noise yet."]
    if run.ranked:
        best = run.ranked[0]
        said.append(
            f"Best in the search so far: {plan_text(best.plan)}, {settings.metric} {best.value:.4g} on "
            f"{best.samples:,} samples of the search's own noise, which flatters it."
        )
    of = f" of {settings.budget:,}" if settings.budget else ""
    return [*said, f"Spent so far: {run.spent:,}{of} network evaluations times samples."]


def problems(run: Run) -> dict[str, list[str]]:
    """Why candidates have no score, and which have none for that reason."""
    found: dict[str, dict[str, None]] = {}
    for candidate in run.candidates:
        if candidate.problem:
            found.setdefault(candidate.problem, {})[plan_text(candidate.plan)] = None
    return {problem: list(plans) for problem, plans in found.items()}


def _verdict(run: Run, found: Mapping[str, Any], others: list[dict[str, Any]]) -> list[str]:
    """How the plan found stands to the others with as many evaluations or more, said no stronger than it is."""
    metric = run.settings.metric
    if same := alike(others, Plan.model_validate(found["plan"])):
        return [f"It is the plan of {named(same[0])}: nothing that was searched did better on fresh noise."]
    ours = found["scores"][metric]
    over = [named(row) for row in others if _overlap(ours, row["scores"][metric])]
    if not over:
        return []
    return [f"Its interval overlaps with that of {_listed(over)}: so these samples alone do not tell them apart."]


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def _cheaper(found: Mapping[str, Any], others: list[dict[str, Any]]) -> list[str]:
    """What the plan found saves in network evaluations."""
    return [
        f"{_capital(named(row))}: {row['nfe'] / found['nfe']:.3g} times as many network evaluations."
        for row in others
        if row["nfe"] > found["nfe"]
    ]


def _faster(run: Run, found: Mapping[str, Any]) -> list[str]:
    """What the plan found saves in time where it was measured, beside what has more to do and clearly takes longer.

    Plans of as many evaluations of the whole network do the same work; where they differ, the machine did.
    """
    if not run.times or "found" not in run.times.ms:
        return []
    _, ours, high = run.times.ms["found"]
    partial = any(step.get("skip") for step in found["plan"]["steps"])
    longer = {row["name"] for row in run.rows if partial or row["nfe"] > found["nfe"]}
    said = [
        f"{theirs / ours:.3g} times as fast as {named({'name': name})}"
        for name, (low, theirs, _) in run.times.ms.items()
        if name in longer and low > high and theirs >= FASTER * ours
    ]
    where = f"on {run.times.device} in batches of {run.times.batch_size}"
    return [f"A sample takes {ours:.3g} ms {where}{': ' * bool(said)}{_listed(said)}."]


def _listed(parts: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def printed(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the final table as text."""
    ms = run.times.ms.get(row["name"]) if run.times else None
    return {
        "name": row["name"],
        "nfe": row["nfe"],
        "found": row["name"] == "found",
        "scores": {name: figure(score) for name, score in row["scores"].items()},
        "problem": row["problem"],
        "plan": plan_text(row["plan"]),
        "cost": priced(row.get("cost", {})),
        "ms": f"{ms[1]:.3g} [{ms[0]:.3g}, {ms[2]:.3g}]" if ms else "",
    }


def left_out(run: Run) -> list[dict[str, Any]]:
    """Each step of the plan found: its time, how many layers it keeps and which it leaves out; none without layers."""
    known, found = run.start.get("layers"), run.row("found")
    if not known or not found:
        return []
    return [
        {
            "t": step["t"],
            "kept": f"{len(known) - len(step['skip'])} of {len(known)}",
            "skip": ", ".join(f"{number} ({known[number]['name']})" for number in step["skip"]) or "none",
        }
        for step in found["plan"]["steps"]
    ]


def free_numbers(run: Run) -> list[list[str]]:
    """A table of the free numbers in the plan found, the names first, then each step; none where all are plain."""
    found = run.row("found")
    steps = found["plan"]["steps"] if found else []
    params = [step.get("params", {}) for step in steps]
    names = sorted({name for said in params for name in said})
    if not names:
        return []
    table = [["step", "time step", *names]]
    for i, (step, said) in enumerate(zip(steps, params, strict=True), 1):
        table.append([str(i), str(step["t"]), *(f"{said[name]:g}" if name in said else "plain" for name in names)])
    return table


def spent(run: Run) -> list[tuple[str, str]]:
    """What the search spent and saved, in network evaluations times samples."""
    rows = [
        ("candidates", f"{run.plans:,}"),
        ("scores, some of them with few samples", f"{len(run.candidates):,}"),
        ("network evaluations times samples for them", f"{run.spent:,}"),
        ("saved by sharing beginnings", f"{run.saved:,}"),
    ]
    if run.raced > 0:
        rows.append(("saved by racing: candidates that were out with fewer samples", f"{run.raced:,}"))
    if run.confirmed:
        rows.append(("choice and confirmation on fresh noise", f"{run.confirmed['evaluations']:,}"))
    return rows


def identity(run: Run) -> list[tuple[str, str]]:
    """Versions and hashes: what the search ran with, and what it found."""
    rows = [("model", run.settings.model)]
    if version := run.start.get("autodiffusion"):
        rows.append(("autodiffusion", version))
    rows += [(f"SHA-256 of the {name}", value) for name, value in run.start.get("hashes", {}).items()]
    if found := run.row("found"):
        rows.append(("SHA-256 of the plan found", Plan.model_validate(found["plan"]).digest))
    return rows
