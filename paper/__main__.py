"""AutoDiffusion's tables and figures, run on the published systems and laid beside what was published.

    .venv/bin/python -m paper [EXPERIMENT ...] [--scale 0.1] [--files FOLDER] [--device cuda] [--dtype float16]

Without names all of them: ``table_1`` to ``table_6``, ``figure_1`` to ``figure_5``, ``lsun``, ``transfer`` and
``transfer_lsun``. Each leaves ``NAME.md`` in ``--out``, and a picture where it has one. Experiments share their
searches, which go on where they stopped when the command is run again. ``--list`` says what there is and what it costs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodiffusion._errors import InputError, RunError, nearest
from autodiffusion._study.study import write
from autodiffusion._views.progress import Progress
from autodiffusion.strategies.evolution import Evolution
from autodiffusion.strategies.random import Random
from paper import pictures, tables
from paper.experiments import Experiment, Paper, experiments
from paper.runs import Runs


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="names; all where none is given")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies numbers of samples, above 0 to 1 [1]")
    parser.add_argument("--steps", help="only searches of these numbers of steps, by commas")
    parser.add_argument("--no-search", action="store_true", help="measure what is there already and what was published")
    parser.add_argument("--files", type=Path, default=Path(), help="folder of checkpoints, references and captions [.]")
    parser.add_argument("--systems", type=Path, help="YAML file of other systems, such as paper/bundled.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of what comes out [runs/paper]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16")
    parser.add_argument("--batch-size", type=int)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    try:
        return run(args)
    except (InputError, RunError) as error:
        print(f"paper: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("paper: interrupted; the same command goes on", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """Runs what was asked for, and gives the exit status."""
    if not 0 < args.scale <= 1:
        raise InputError(f"--scale {args.scale:g}: is not above 0 and at most 1")
    running: dict[str, Any] = {"device": args.device, "dtype": args.dtype, "batch_size": args.batch_size}
    running = {key: value for key, value in running.items() if value is not None}
    paper = Paper.read(args.systems, scale=args.scale, files=args.files, running=running)
    chosen = select(experiments(paper), args.experiments, args.steps)
    if args.list:
        print(overview(chosen, paper), end="")
        return 0
    paper.check(chosen)
    args.out.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        runs = Runs(paper, args.out, args.seed, not args.no_search, progress)
        for experiment in chosen:
            text = outcome(experiment, runs)
            write(args.out / f"{experiment.name}.md", text)
            print(f"{text}\n{args.out / experiment.name}.md\n", flush=True)
    return 0


def select(every: dict[str, Experiment], names: Sequence[str], steps: str | None) -> list[Experiment]:
    """The experiments of these names, with the searches of these numbers of steps."""
    for name in names:
        if name not in every:
            raise InputError(f"experiment '{name}' is unknown {nearest(name, every)}")
    chosen = [every[name] for name in names] or list(every.values())
    if steps is None:
        return chosen
    if not all(text.strip().isdecimal() for text in steps.split(",")):
        raise InputError(f"--steps {steps}: is not a whole number, nor several by commas such as 4,6,10")
    counts = [int(text) for text in steps.split(",")]
    limited = [kept for experiment in chosen if (kept := experiment.limited(counts)) is not None]
    if not limited:
        raise InputError(f"--steps {steps}: none of these experiments has a search of so many steps")
    return limited


def outcome(experiment: Experiment, runs: Runs) -> str:
    """Runs one experiment, draws its picture into the folder and gives its page."""
    path = runs.out / f"{experiment.name}.png"
    path.unlink(missing_ok=True)
    parts = [f"# {experiment.name.replace('_', ' ').capitalize()}: {experiment.title}\n"]
    if experiment.kind in ("figures", "plans"):
        cells = {(row.name, steps): tables.cell(runs, row, steps) for row in experiment.rows for steps in row.steps}
        if experiment.kind == "figures":
            parts.append(tables.of_figures(experiment, cells))
            drawn = pictures.curves(experiment, cells, path)
        else:
            theirs = {row.name: tables.published_cell(runs, row) for row in experiment.rows}
            parts.append(tables.of_plans(experiment, cells, theirs))
            drawn = False
    else:
        draw = {"samples": pictures.samples, "occurrence": pictures.occurrences}[experiment.kind]
        drawn = draw(experiment, runs, path)
        if not drawn:
            parts.append("Not drawn: its searches have not been made.\n")
    parts += [f"![{experiment.title}]({path.name})\n"] if drawn else []
    return "\n".join([*parts, *(f"- {note}" for note in tables.notes(experiment, runs))]) + "\n"


def overview(chosen: Sequence[Experiment], paper: Paper) -> str:
    """The experiments, and the network evaluations that searches and figures take at most."""
    lines, counted = [], set[tuple[str, int]]()
    for experiment in chosen:
        searches = [each for each in experiment.searches if each not in counted]
        counted.update(searches)
        searched = sum(cost(*each, paper) for each in searches)
        figures = 0
        if experiment.kind in ("figures", "plans"):
            figures = sum(steps * paper.final(row.system) for row in experiment.rows for steps in row.steps)
        new = f"{len(searches)} of {len(experiment.searches)}"
        lines.append([experiment.name, experiment.title, new, f"{searched / 1e6:,.1f}", f"{figures / 1e6:,.1f}"])
    head = ["experiment", "what", "searches, less those above", "million evaluations to search", "and for the figures"]
    return tables.markdown(head, lines)


def cost(search: str, steps: int, paper: Paper) -> int:
    """Network evaluations times samples that a search takes, about."""
    settings = paper.settings(search, steps)
    options: Any = settings.strategy_options
    if settings.strategy == "random":
        candidates = options.get("candidates", Random.candidates)
    else:
        sizes = [options.get(name, getattr(Evolution, name)) for name in ("population", "generations")]
        candidates = sizes[0] * sizes[1]
    return int(candidates * settings.samples * steps)


if __name__ == "__main__":
    sys.exit(main())
