"""The published plans: as printed, with the meaning that the reference gave them, and wherever a plan is asked for."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import Command
from diffusers.schedulers import AysSchedules
from safetensors.torch import load_file
from test_adm import Plain, Residual, SelfAttention

from autodiffusion import InputError, NoiseSchedule, Plan, Settings
from autodiffusion._plans.published import published, read
from autodiffusion._search.job import Job
from autodiffusion.layers._find import find
from autodiffusion.models._adm.network import ADM, empty_adm_unet
from autodiffusion.solvers._base import build, solve

# The lines of the appendix's text, and of the released scripts, as they stand there

TABLE_4 = """\
ADM-G + DDIM\tImageNet 64×64\t[926, 690, 424, 153]
Stable Diffusion + PLMS\tCOCO\t[848, 598, 251, 21]
Stable Diffusion + DPM-Solver\tCOCO\t[0.9261, 0.7183, 0.5005, 0.2857, 0.0150]
"""  # noqa: RUF001
TABLE_5 = """\
ADM-G + DDIM\tImageNet 64×64\t[123, 207, 390, 622, 830, 948]
Stable Diffusion + PLMS\tCOCO\t[19, 130, 335, 519, 695, 931]
Stable Diffusion + DPM-Solver\tCOCO\t[0.9261, 0.6670, 0.5005, 0.3340, 0.1548, 0.0150, 0.0120]
"""  # noqa: RUF001
TABLE_6 = """\
{[], [], [], [55]}\t4\t232
{[], [], [], [], [52]}\t6\t350
{[], [], [], [], [], [30, 10, 39, 4, 15, 46, 49, 54, 8], [], [], []}\t10\t580
"""
SCRIPTS = {
    "adm-g/imagenet64/6/random": "[94, 834, 217, 944, 574, 354]",
    "adm-g/imagenet64/10/layers": "[744, 137, 647, 856, 305, 441, 676, 572, 971, 85]",
}
ALIGNED = {"ays/sd/10": "StableDiffusionTimesteps", "ays/sdxl/10": "StableDiffusionXLTimesteps"}
"""Plans of diffusers' collection, and the lists there."""
NAMES = {
    "ADM-G + DDIM": "adm-g/imagenet64/{}",
    "Stable Diffusion + PLMS": "sd-v1-4/coco/{}/plms",
    "Stable Diffusion + DPM-Solver": "sd-v1-4/coco/{}/dpm_solver++",
}
ROWS = [
    (NAMES[line.split("\t")[0]].format(steps), f"Table {table}, row {row}", line.split("\t")[2])
    for table, steps, text in ((4, 4, TABLE_4), (5, 6, TABLE_5))
    for row, line in enumerate(text.splitlines(), 1)
]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", text)]


@pytest.mark.parametrize(("name", "row", "printed"), ROWS)
def test_times_are_those_printed(name: str, row: str, printed: str) -> None:
    plan, expected = published()[name], numbers(printed)
    assert plan.origin["source"] == f"appendix, {row}"
    assert len(plan.steps) == int(name.split("/")[2])
    assert not any(step.skip for step in plan.steps)
    if "dpm" in name:  # times in (0, 1], the last of them the end
        nodes = [(t + 1) / 1000 for t in (*plan.times, plan.end)]
        assert nodes == pytest.approx(expected, abs=1e-12)
    else:
        assert list(plan.times) == sorted(expected, reverse=True)
        assert plan.end == (0 if "plms" in name else None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_times_of_the_scripts_are_those_printed(name: str) -> None:
    assert list(published()[name].times) == sorted(numbers(SCRIPTS[name]), reverse=True)
    assert published()[name].origin["source"].startswith("script")


@pytest.mark.parametrize("name", ALIGNED)
def test_times_of_align_your_steps_are_those_of_diffusers(name: str) -> None:
    plan = published()[name]
    assert list(plan.times) == AysSchedules[ALIGNED[name]]
    assert plan.origin["source"].endswith(f", {ALIGNED[name]}")
    assert "names no solver" in plan.origin["assumed"]
    assert plan.end is None


@pytest.mark.parametrize("line", TABLE_6.splitlines())
def test_layers_are_those_printed(line: str) -> None:
    sets, steps, n_max = line.split("\t")
    plan = published()[f"adm-g/imagenet64/{steps}/layers"]
    printed = [numbers(found) for found in re.findall(r"\[(.*?)\]", sets)]
    ascending = [step.skip for step in reversed(plan.steps)]
    # rows 2 and 3 print one set too few
    missing = len(ascending) - len(printed)
    assert missing == (0 if steps == "4" else 1)
    assert ascending == [frozenset()] * missing + [frozenset(map(int, found)) for found in printed]
    # "we constrain the sum of model layers at each time step to be less than N_max"; of 58 in the whole network
    assert sum(58 - len(skip) for skip in ascending) < int(n_max)
    # what the table leaves open is told
    assert ("assumed" in plan.origin) == (steps != "10")
    if steps != "10":
        assert plan.times == published()[f"adm-g/imagenet64/{steps}"].times


def test_the_nine_layers_leave_at_676() -> None:
    plan = published()["adm-g/imagenet64/10/layers"]
    assert [(step.t, len(step.skip)) for step in plan.steps if step.skip] == [(676, 9)]


def test_every_plan_is_of_a_row_or_a_script() -> None:
    layered = [f"adm-g/imagenet64/{line.split(chr(9))[1]}/layers" for line in TABLE_6.splitlines()]
    assert sorted(published()) == sorted({*(name for name, _, _ in ROWS), *SCRIPTS, *layered, *ALIGNED})
    for name, plan in published().items():
        assert plan.origin["published"] == name
        assert Plan.from_json(plan.to_json()) == plan
        assert plan.solver_options["clip"] == name.startswith("adm-g")


# What they mean: numbers recorded from the reference implementations on the same lists


@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize(
    ("solver", "case", "tolerance"), [("plms", "plms", 1e-9), ("dpm_solver++", "dpmsolver++.order2", 1e-6)]
)
def test_recorded_results_of_the_published_lists(steps: int, solver: str, case: str, tolerance: float) -> None:
    tensors = load_file(Path(__file__).parent / "golden" / "solvers.safetensors")
    schedule = NoiseSchedule(tensors["scaled_linear.alphas_cumprod"].numpy())
    plan = published()[f"sd-v1-4/coco/{steps}/{solver}"]
    made = build(plan.solver, schedule, plan.solver_options)
    x = tensors["scaled_linear.xT"]
    found = solve(made, lambda x, t: torch.tanh(0.9 * x + 0.4 * math.cos(t / 250)), x, plan.times, plan.end)
    expected = tensors[f"scaled_linear.{case}.K{steps}"]
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_layer_numbers_of_the_imagenet_network_are_the_references() -> None:
    """All residual and attention blocks of guided-diffusion's network, in the order in which they are called."""
    flags = ADM(
        64, 192, 3, (1, 2, 3, 4), (2, 4, 8), num_classes=1000, num_head_channels=64, use_new_attention_order=True
    )
    unet = empty_adm_unet(flags)
    with torch.device("meta"):
        plain = Plain(flags)
        x, t, y = torch.zeros(1, 3, 64, 64), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        layers = find(unet, lambda: unet(x, t, class_labels=y)).layers
    theirs = [module for module in plain.modules() if isinstance(module, Residual | SelfAttention)]
    assert [layer.number for layer in layers] == list(range(len(theirs))) == list(range(58))
    for layer, block in zip(layers, theirs, strict=True):
        here = unet.get_submodule(layer.name)
        if isinstance(block, Residual):
            convolution = block.in_layers[2]
            assert layer.kind == "resnet"
            assert (here.in_channels, here.out_channels) == (convolution.in_channels, convolution.out_channels)
            assert (here.upsample is not None, here.downsample is not None) == (block.scale > 1, block.scale < 1)
        else:
            assert layer.kind == "attention"
            assert (here.to_q.in_features, here.heads) == (block.qkv.in_channels, block.heads)


# Wherever a plan is asked for


def test_plans_lists_them(command: Command) -> None:
    status, out, err = command("plans")
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == list(published())
    assert rows[0] == ["adm-g/imagenet64/4", "ddim", "4", "0", "appendix, Table 4, row 1"]
    assert rows[3] == ["adm-g/imagenet64/4/layers", "ddim", "4", "1", "appendix, Table 6, row 1; in part assumed"]
    docs = (Path(__file__).parents[1] / "docs" / "published.md").read_text(encoding="utf-8")
    table = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in docs.splitlines() if "/" in line[:20]]
    assert [row for row in table if len(row) == 5] == rows


def test_plans_lists_them_as_json(command: Command) -> None:
    status, out, _ = command("plans --json")
    assert status == 0
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert {name: Plan.model_validate(entry["plan"]) for name, entry in entries.items()} == published()
    assert all(entry["source"] == published()[name].origin for name, entry in entries.items())


def test_plans_shows_one(command: Command) -> None:
    status, out, _ = command("plans adm-g/imagenet64/10/layers")
    first, second, *origin = out.splitlines()
    assert status == 0
    assert first == "ddim at 971, 856, 744, 676, 647, 572, 441, 305, 137, 85"
    assert second == "at 676 without layers 4, 8, 10, 15, 30, 39, 46, 49, 54"
    known = published()["adm-g/imagenet64/10/layers"].origin
    assert origin == [f"{name}: {value}" for name, value in known.items()]


def test_a_published_plan_is_resampled(command: Command) -> None:
    assert command("plans sd-v1-4/coco/4/dpm_solver++ --resample 6 --out six.json")[0] == 0
    assert command("plans ays/sdxl/10 --out ays.json").out.startswith("ays.json: dpm_solver++ at 999, ")
    assert Plan.load("ays.json") == published()["ays/sdxl/10"]
    assert len(Plan.load("six.json").steps) == 6


@pytest.mark.parametrize(
    "name", ["adm-g/imagenet64/4", "sd-v1-4/coco/4/plms", "sd-v1-4/coco/4/dpm_solver++", "ays/sd/10"]
)
def test_evaluate_takes_a_name(command: Command, name: str) -> None:
    status, out, _ = command(f"evaluate {name} --model mnist --samples 8 --json")
    found = json.loads(out)
    assert (status, Plan.model_validate(found["plan"])) == (0, published()[name])
    assert found["nfe"] == (5 if "plms" in name else len(published()[name].steps))


def test_sample_takes_names(command: Command) -> None:
    line = "sample ays_sdxl:4 --model mnist -n 4 --compare sd-v1-4/coco/4/plms --out grid.png"
    assert command(line) == (0, "grid.png\n", "")


def test_a_search_starts_from_names() -> None:
    names = ["adm-g/imagenet64/4", "sd-v1-4/coco/6/plms", "adm-g/imagenet64/10/layers", "ays/sd/10"]
    job = Job.of(Settings.of(model="mnist", steps=4, budget=100_000, starts=["uniform", *names]))
    assert job.starts[names[0]].times == published()[names[0]].times
    assert all(len(plan.steps) == 4 for plan in job.starts.values())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("plans adm-g/imagenet64/5", "neither a file nor published (did you mean 'adm-g/imagenet64/"),
        (f"plans {'a' * 5000}", "neither a file nor published"),
        ("plans --resample 4", "are for one plan"),
        ("plans --sigmas --schedule linear", "are for one plan"),
        ("plans ays/sd/10 --sigmas", "depend on the noise schedule; give --model, or --schedule linear"),
        ("plans ays/sd/10 --sigmas --schedule linaer", "schedule 'linaer' is unknown (did you mean 'linear'?"),
        ("plans ays/sd/10 --schedule linear", "give --sigmas too"),
        ("plans ays/sd/10 --sigmas --model mnist --schedule linear", "model 'mnist' takes no --schedule"),
        ("plans ays_sd --sigmas --schedule linear", "has no number of steps; write ays_sd:4"),
        ("plans ays_svd:10 --sigmas --schedule scaled_linear", "does not fit a noise schedule of 14.61"),
        ("evaluate ays_sdd:4 --model mnist", "did you mean 'ays_sd'?"),
        ("evaluate adm-g/imagenet64/5 --model mnist", "no published plan (see autodiffusion plans)"),
        ("evaluate adm-g/imagenet64/4/layers --model mnist", "layer 55 does not exist"),
        ("search mnist --steps 4 --starts adm-g/imagenet64/5 --out run", "is unknown"),
    ],
)
def test_what_is_unknown_is_one_line(command: Command, line: str, told: str) -> None:
    status, out, err = command(line)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_read_takes_files_too(tmp_path: Path) -> None:
    plan = Plan.of("ddim", [5])
    plan.save(tmp_path / "own.json")
    assert read(str(tmp_path / "own.json")) == plan
    with pytest.raises(InputError, match="neither a file nor published"):
        read(str(tmp_path / "none"))
