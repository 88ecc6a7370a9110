"""Three ideas for finding time steps that the package does not use, measured: the evidence for "what did not help".

    .venv/bin/python -m bench.ideas [--models mixture,empirical] [--steps 4,6,10] [--seeds 3] [--again]

GITS        Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling" (ICML): one teacher
            trajectory on a fine grid, the error of every jump between two of its points, and dynamic programming over
            the jumps, where each later jump weighs gamma times as much: 1, or 1.15 as is the authors' code's default.
            A jump is one of DDIM, for the other solver too, as in that code; its error is the mean distance, where the
            code's default is a difference in distance from the trajectory's chord. No sample is ever scored.
gradient    Like LD3 (Tong et al. 2024, "Learning to Discretize Denoising Diffusion ODEs"): real times, moved by Adam on
            the squared distance between the few steps' sample and the teacher's of the same noise, through the solver;
            in pixels or in the features of the FID. DDIM only.
COBYQA      Ragonneau and Zhang 2024, SciPy's derivative-free trust region method, on the FID of 250 samples of common
            noise as a function of the real times, from the trailing grid or the best named one.

Beside them stand uniform steps and the best named grid. Every figure is the FID on noise that no idea has seen. Cost is
network evaluations times samples spent on finding the plan; a forward and backward pass counts as 3. The table goes to
standard output and ``bench/results/ideas.md``, its rows to ``ideas.json`` beside it; rows that are there are not made
again unless asked with ``--again``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, minimize
from torch import Tensor

from autodiffusion._evaluation.evaluate import Evaluator, derive_seed
from autodiffusion._plans.grids import NAMED, grid, spread
from autodiffusion._plans.plan import Plan
from autodiffusion._references.reference import load as load_reference
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics._build import build
from autodiffusion.models._model import Model
from autodiffusion.solvers import Solver
from autodiffusion.solvers._base import build as build_solver
from autodiffusion.solvers._base import solve
from bench import _rows, models
from bench._gradient import differentiable, falling
from bench.compare import FRESH

RESULTS = Path("bench/results")
SOLVERS = ("ddim", "dpm_solver++")
TEACHER = 100
"""Uniform DDIM steps of the gradient's teacher, whose FID the table gives too."""
FINE, PATHS = 80, 64
"""GITS: points of the teacher's grid, and trajectories that are averaged."""
POOL, BATCH, ITERATIONS, RATE = 200, 50, 100, 0.03
"""Gradient: the teacher's samples, those of one step of Adam, steps of Adam, and their rate."""
CANDIDATES, COMMON = 120, 250
"""COBYQA: FIDs that are taken at most, the grids' included, and samples of each."""

Times = Sequence[float]
Found = tuple[Times, int]
"""Times, and what finding them took in network evaluations times samples."""


@dataclass(frozen=True)
class Task:
    """What to find times for: a model, a solver and the number of steps."""

    evaluator: Evaluator
    fid: Any
    solver: str
    steps: int

    @property
    def model(self) -> Model:
        return self.evaluator.model

    @property
    def built(self) -> Solver:
        return build_solver(self.solver, self.model.schedule, {"clip": self.model.clip})

    def grid(self, name: str) -> tuple[float, ...]:
        return grid(name, self.steps, self.model.schedule, continuous=self.built.continuous)

    def draw(self, noise: Tensor, times: Times) -> Tensor:
        return solve(self.built, lambda x, t: self.model.predict(x, t, None), noise, times)

    def plan(self, times: Times) -> Plan:
        """The plan at these real times, whole where the solver needs that."""
        whole = times if self.built.continuous else spread(np.round(times), len(self.model.schedule))
        return Plan.of(self.solver, [float(t) for t in whole], solver_options={"clip": self.model.clip})

    def ordered(self, times: Times) -> tuple[float, ...]:
        """Real times in [0, T - 1], falling by at least 1."""
        falling = np.sort(np.asarray(times, dtype=np.float64))[::-1]
        return tuple(float(t) for t in spread(falling, len(self.model.schedule)))


def uniform(task: Task, seed: int) -> Found:
    return task.grid("uniform"), 0


def best_grid(task: Task, seed: int) -> Found:
    """The named grid with the lowest FID on 1,000 samples."""
    grids, samples = [task.grid(name) for name in NAMED], 1000
    plans = [task.plan(times) for times in grids]
    scores = task.evaluator.scores(plans, task.fid, samples, derive_seed(seed, "finalists"))
    return grids[int(np.argmin([score.value for score in scores]))], len(grids) * samples * task.steps


@torch.inference_mode()
def gits(task: Task, seed: int, gamma: float = 1.0) -> Found:
    """Dynamic programming over a teacher's trajectory from T - 1 to clean data.

    In z = x / alpha and s = sigma / alpha DDIM is Euler's method, dz = epsilon ds; distances are taken there.
    """
    schedule = task.model.schedule
    nodes = grid("linspace", FINE, schedule)
    levels = [schedule.sigma(t) / schedule.alpha(t) for t in nodes] + [0.0]
    points = [task.model.noise(range(PATHS), derive_seed(seed, "gits")) / schedule.alpha(nodes[0])]
    cost = np.full((FINE, FINE + 1), np.inf)
    slopes = []
    for i, t in enumerate(nodes):
        slopes.append(task.model.predict(points[i] * schedule.alpha(t), t, None))
        points.append(points[i] + (levels[i + 1] - levels[i]) * slopes[i])
    for i, j in combinations(range(FINE + 1), 2):
        jump = points[i] + (levels[j] - levels[i]) * slopes[i]
        cost[i, j] = float((jump - points[j]).flatten(1).norm(dim=1).mean())
    # the least cost from each node to clean data, with one jump, then with one more at a time
    least, onward = cost[:, -1], []
    for _ in range(task.steps - 1):
        total = cost[:, :-1] + gamma * least
        onward.append(total.argmin(1))
        least = total.min(1)
    way = [0]
    for choice in reversed(onward):
        way.append(int(choice[way[-1]]))
    return [nodes[i] for i in way], FINE * PATHS


def gradient(task: Task, seed: int, features: bool) -> Found:
    """Adam on the distance to the teacher's samples, of pixels or of features, from the named grid that has the least.

    The times are T - 1 times a falling cumulated softmax, so that they stay in order whatever Adam does. Those of the
    second half of the iterations are averaged: single samples with very large gradients throw Adam off.
    """
    module, last = task.evaluator.extractor.module.requires_grad_(False), len(task.model.schedule) - 1

    def look(x: Tensor) -> Tensor:
        seen = module(x) if features else x
        return seen[0] if isinstance(seen, tuple) else seen  # a classifier gives its logits too

    noise = task.model.noise(range(POOL), derive_seed(seed, "gradient"))
    with torch.no_grad():
        target = look(task.draw(noise, grid("uniform", TEACHER, task.model.schedule)))
        grids = [task.grid(name) for name in NAMED]
        start = min(grids, key=lambda times: float((look(task.draw(noise, times)) - target).square().mean()))
    gaps = -np.diff([last, *start, 0])
    logits = torch.tensor(np.log(np.maximum(gaps, 1)), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=RATE)
    order, mean = torch.Generator().manual_seed(seed), torch.zeros(task.steps, dtype=torch.float64)
    for iteration in range(ITERATIONS):
        batch = torch.randperm(POOL, generator=order)[:BATCH]
        drawn = differentiable(task.model, noise[batch], falling(logits, last))
        adam.zero_grad()
        (look(drawn) - target[batch]).square().mean().backward()
        adam.step()
        if iteration >= ITERATIONS // 2:
            mean += falling(logits.detach(), last) / (ITERATIONS - ITERATIONS // 2)
    spent = POOL * (TEACHER + len(NAMED) * task.steps) + 3 * ITERATIONS * BATCH * task.steps
    return task.ordered(mean.tolist()), spent


def cobyqa(task: Task, seed: int, starts: Sequence[str]) -> Found:
    """COBYQA from the best of the named grids; the best times that it looked at."""
    noise, last = task.model.noise(range(COMMON), derive_seed(seed, "search")), len(task.model.schedule) - 1
    seen: list[tuple[float, Times]] = []

    @torch.inference_mode()
    def score(times: Times) -> float:
        ordered = task.ordered(times)
        images = task.model.decode(task.draw(noise, ordered))
        seen.append((task.fid.value(task.evaluator.extractor(images)), ordered))
        return seen[-1][0]

    start = min((task.grid(name) for name in starts), key=score)
    apart = LinearConstraint(np.eye(task.steps)[:-1] - np.eye(task.steps)[1:], 1, np.inf)
    options = {"maxfev": CANDIDATES - len(seen), "initial_tr_radius": last / 20, "final_tr_radius": 0.5}
    minimize(score, start, method="COBYQA", bounds=Bounds(0, last), constraints=apart, options=options)
    return min(seen)[1], len(seen) * COMMON * task.steps


IDEAS: dict[str, Callable[[Task, int], Found]] = {
    "uniform": uniform,
    "best named grid": best_grid,
    "GITS": gits,
    "GITS, gamma 1.15": partial(gits, gamma=1.15),
    "gradient, pixels": partial(gradient, features=False),
    "gradient, features": partial(gradient, features=True),
    "COBYQA from trailing": partial(cobyqa, starts=("trailing",)),
    "COBYQA from the best grid": partial(cobyqa, starts=tuple(NAMED)),
}
ONCE = ("uniform", "best named grid")
"""What the ideas are compared with, made with seed 0 only."""


def make(task: Task, ideas: Sequence[str], seeds: int, rows: list[dict[str, Any]]) -> None:
    """Adds to ``rows`` what is missing there."""
    made = []
    for idea in ideas:
        for seed in range(1 if idea in ONCE else seeds):
            key = {"model": task.model.name, "solver": task.solver, "steps": task.steps, "idea": idea, "seed": seed}
            if not any(key.items() <= row.items() for row in rows):
                times, spent = IDEAS[idea](task, seed)
                made.append((key, task.plan(times), spent))
    plans, samples = [plan for _, plan, _ in made], FRESH[task.model.name]
    scores = task.evaluator.scores(plans, task.fid, samples, derive_seed(0, "confirm"))
    for (key, plan, spent), score in zip(made, scores, strict=True):
        rows.append(key | {"evaluations": spent, "samples": samples, "fid": score.value, "times": plan.times})


def table(rows: list[dict[str, Any]], name: str, solver: str, steps: list[int]) -> str:
    """Markdown: one idea a line, one number of steps a column."""
    [many] = [row for row in rows if (row["model"], row["steps"]) == (name, TEACHER)]
    title = f"{name}, {solver}, {many['samples']:,} samples; {TEACHER} uniform DDIM steps have {many['fid']:.3g}\n"
    lines = [title, f"| | {' | '.join(f'{count} steps' for count in steps)} |", "| --- |" + " --- |" * len(steps)]
    for idea in IDEAS:
        found = [row for row in rows if (row["model"], row["solver"], row["idea"]) == (name, solver, idea)]
        cells = [cell([row for row in found if row["steps"] == count]) for count in steps]
        if any(cells):
            lines.append(f"| {idea} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def cell(rows: list[dict[str, Any]]) -> str:
    """The mean over seeds, the least and the greatest, and the cost; empty without rows."""
    fids, spent = [row["fid"] for row in rows], np.mean([row["evaluations"] for row in rows] or [0]) / 1000
    span = f" [{min(fids):.3g}, {max(fids):.3g}]" if len(fids) > 1 else ""
    return f"{np.mean(fids):.3g}{span}" + (f" ({spent:,.0f}k)" if spent else "") if fids else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mixture,empirical")
    parser.add_argument("--steps", default="4,6,10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="make the rows in the results again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names, steps = args.models.split(","), [int(text) for text in args.steps.split(",")]
    file = RESULTS / "ideas.json"
    rows = _rows.load(file, args.again)
    for name in names:
        model: Model = models.EXACT[name]().model()
        evaluator = Evaluator(model, load_features(model.features), batch_size=500)
        fid = build("fid", load_reference(models.reference_of(name), evaluator.extractor))
        make(Task(evaluator, fid, "ddim", TEACHER), ["uniform"], 1, rows)
        for solver, count in product(SOLVERS, steps):
            ideas = [idea for idea in IDEAS if solver == "ddim" or not idea.startswith("gradient")]
            make(Task(evaluator, fid, solver, count), ideas, args.seeds, rows)
            _rows.save(file, rows)
    title = f"FID, mean over {args.seeds} seeds [least, greatest] (cost of finding the plan)\n"
    text = "\n".join(
        [title, models.ABOUT + "\n", *(table(rows, name, solver, steps) for name, solver in product(names, SOLVERS))]
    )
    (RESULTS / "ideas.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
