"""The report of a search: tables become pictures, pictures one HTML file. Reads the study's files, nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from autodiffusion.confirm import figure
from autodiffusion.costs import priced
from autodiffusion.errors import InputError
from autodiffusion.evaluate import describe
from autodiffusion.plan import Plan
from autodiffusion.study import CONFIG, LEDGER, read_events, stored_settings, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID, REPORT = "grid.png", "report.html"
Events = list[dict[str, Any]]


def report(folder: Path) -> Path:
    """Writes ``report.html`` of the study in ``folder``, finished or not, and gives its path.

    Raises:
        InputError: no study there, or the folder cannot be written.
    """
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder}: holds no search; give the folder that search --out wrote")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    settings, events = stored_settings(folder), read_events(folder / LEDGER)
    confirmed = next((event for event in events if event["event"] == "confirm"), None)
    scored = [event for event in events if event["event"] == "scores"]
    rows = confirmed["rows"] if confirmed else []
    found = next((row["plan"] for row in rows if row["name"] == "found"), None)
    picture_file = folder / GRID
    page = Environment(loader=PackageLoader("autodiffusion"), autoescape=True, undefined=StrictUndefined)
    html = page.get_template("report.html").render(
        settings=settings,
        count=len(found["steps"]) if found else settings.steps,
        solver=found["solver"] if found else settings.solver,
        config=settings.dump(),
        version=next((event["autodiffusion"] for event in events if event["event"] == "start"), None),
        rows=[_printed(row) for row in rows],
        costs=any("cost" in row for row in rows) and settings.layers,
        layers=_left_out(events, found),
        numbers=_free_numbers(found),
        metrics=list(dict.fromkeys(name for row in rows for name in row["scores"])),  # a failed row has none
        spent=sum(event["evaluations"] for event in scored),
        saved=sum(event["saved"] for event in scored),
        candidates=len({json.dumps(score["plan"], sort_keys=True) for event in scored for score in event["scores"]}),
        confirmed=confirmed,
        problems=[
            (describe(Plan.model_validate(s["plan"])), s["problem"])
            for e in scored
            for s in e["scores"]
            if s["problem"]
        ],
        convergence=_svg(convergence(events, settings.metric, settings.samples)),
        steps=_svg(steps(events)),
        grid=_data_url(picture_file.read_bytes(), "image/png") if picture_file.exists() else None,
    )
    try:
        write(folder / REPORT, html)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder / REPORT


def _printed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the final table as text."""
    scores = {name: figure(score) for name, score in row["scores"].items()}
    plan = describe(Plan.model_validate(row["plan"]))
    return row | {
        "scores": scores,
        "plan": plan,
        "found": row["name"] == "found",
        "cost": priced(row.get("cost", {})),
    }


def _left_out(events: Events, found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Each step of the plan found: its time, how many layers it keeps and which it leaves out; none without layers."""
    layers = next((event.get("layers") for event in events if event["event"] == "start"), None)
    if not layers or not found:
        return []
    return [
        {
            "t": step["t"],
            "kept": f"{len(layers) - len(step['skip'])} of {len(layers)}",
            "skip": ", ".join(f"{number} ({layers[number]['name']})" for number in step["skip"]),
        }
        for step in found["steps"]
    ]


def _free_numbers(found: dict[str, Any] | None) -> list[list[str]]:
    """A table of the free numbers in the plan found, the names first, then each step; none where all are plain."""
    steps = found["steps"] if found else []
    params = [step.get("params", {}) for step in steps]
    names = sorted({name for said in params for name in said})
    if not names:
        return []
    table = [["step", "time step", *names]]
    for i, (step, said) in enumerate(zip(steps, params, strict=True), 1):
        table.append([str(i), str(step["t"]), *(f"{said[name]:g}" if name in said else "plain" for name in names)])
    return table


def convergence(events: Events, metric: str, samples: int) -> Figure | None:
    """Every full score in the search over the network evaluations spent, and the best so far.

    What a race scored with fewer samples costs as well, but is no score of this kind and is not drawn; nor are plans
    that cost more than may be found.
    """
    scored = [event for event in events if event["event"] == "scores"]
    places, values, spent = [], [], 0
    for event in scored:
        ends = spent + event["evaluations"] * np.arange(1, len(event["scores"]) + 1) / len(event["scores"])
        for place, score in zip(ends, event["scores"], strict=True):
            if (
                score["value"] is not None
                and event["samples"] == samples
                and event.get("anchor") is None
                and score.get("allowed", True)
            ):
                places.append(place)
                values.append(score["value"])
        spent += event["evaluations"]
    if not values:
        return None
    from autodiffusion.names import resolve

    best = np.maximum if resolve("metrics", metric).better == "higher" else np.minimum
    drawing, axes = _axes()
    axes.plot(places, values, ".", color="0.6", markersize=4, label="candidates")
    axes.step(places, best.accumulate(values), where="post", color="C0", label="best so far")
    if min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("network evaluations x samples")
    axes.set_ylabel(f"{metric} in the search ({samples} samples)")
    axes.legend(frameon=False)
    return drawing


def steps(events: Events) -> Figure | None:
    """The time steps of each plan in the final table on the noise schedule."""
    start = next((event for event in events if event["event"] == "start"), None)
    confirmed = next((event for event in events if event["event"] == "confirm"), None)
    if start is None or confirmed is None:
        return None
    shown = [row for row in confirmed["rows"] if len(row["plan"]["steps"]) <= 20]
    if not shown:
        return None
    drawing, (curve, lanes) = _axes(lanes=len(shown))
    curve.plot(start["times"], start["log_snr"], color="0.7")
    curve.set_ylabel("log(alpha / sigma)")
    for lane, row in enumerate(shown):
        times = [step["t"] for step in row["plan"]["steps"]]
        colour = "C0" if row["name"] == "found" else "0.5"
        lanes.plot(times, [lane] * len(times), "o", color=colour)
        curve.plot(
            times, np.interp(times, start["times"], start["log_snr"]), "o" if colour == "C0" else "|", color=colour
        )
    lanes.set_yticks(range(len(shown)), [row["name"] for row in shown])
    lanes.set_ylim(-0.6, len(shown) - 0.4)
    lanes.grid(axis="x", color="0.9")
    lanes.set_xlabel("time step")
    return drawing


def picture(images: Mapping[str, Tensor], path: Path, columns: int | None = None) -> None:
    """Writes one PNG with a titled square of images for each name, the same seeds at the same places.

    Args:
        images: uint8 ``[N, C, H, W]``, of equal N; three channels are colours, one is grey, and of other numbers the
            first three or the first one are shown.
    """
    drawing, axes = _axes(len(images))
    for axis, (name, batch) in zip(np.atleast_1d(axes), images.items(), strict=True):
        tiles = mosaic(batch, columns)
        shown = tiles[..., :3] if tiles.shape[-1] >= 3 else tiles[..., 0]
        axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(name, fontsize=9, parse_math=False)
        axis.set_axis_off()
    drawing.savefig(path, dpi=110, format="png")


def mosaic(images: Tensor, columns: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images ``[N, C, H, W]`` as one, ``[H', W', C]``, row by row, one pixel apart; as square as they go by default."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.zeros((rows * (height + 1), columns * (width + 1), channels), dtype=np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        tiles[top : top + height, left : left + width] = image
    return tiles[:-1, :-1]


def _axes(panels: int = 0, lanes: int = 0) -> tuple[Figure, Any]:
    """A figure with one axis, with panels for images beside each other, or with a curve above so many lanes."""
    from matplotlib.figure import Figure

    if panels:
        drawing = Figure(figsize=(3.2 * panels, 3.4), layout="constrained")
        return drawing, drawing.subplots(1, panels)
    drawing = Figure(figsize=(7, 3.6 + 0.25 * lanes), layout="constrained")
    axes = drawing.subplots(2, 1, sharex=True, height_ratios=(3.2, 0.3 * lanes)) if lanes else drawing.subplots()
    for axis in drawing.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _svg(drawing: Figure | None) -> str | None:
    if drawing is None:
        return None
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="svg")
    return _data_url(buffer.getvalue(), "image/svg+xml")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
