"""Plans found on one model, used on another: what fits, what does not, and what is said of the guidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from conftest import Command

from autodiffusion import Model, Plan
from autodiffusion._plans.plan import Step
from autodiffusion._search.inputs import found_elsewhere
from autodiffusion.models._load import load

FEW = "--population 4 --generations 2 --parents 2 --mutations 1 --crossovers 1 --initial-mutations 1"


@pytest.mark.usefixtures("plain")
def test_a_plan_found_on_one_model_is_evaluated_on_another(command: Command, real_images: Path) -> None:
    """Found on the small exact model, used on it behind layers: another network, and the same data."""
    search = f"search small:model --steps 3 --strategy evolution {FEW} --samples 30 --confirm-samples 60"
    assert command(f"{search} --reference {real_images} --out run").status == 0
    plan = Plan.load("run/plan.json")
    assert plan.origin["guidance"] == "none"
    done = command(f"evaluate run/plan.json --model small:layered_model --reference {real_images} --samples 60 --json")
    assert (done.status, done.err) == (0, "autodiffusion: the plan was found on small:model, not on layered\n")
    found = json.loads(done.out)
    assert found["plan"]["steps"] == json.loads(Path("run/plan.json").read_text())["steps"]
    # the layers whole change nothing, so that the figure is that of the model it was found on
    assert found["scores"]["fid"]["value"] == pytest.approx(plan.origin["value"], rel=1e-3)


@pytest.mark.parametrize(
    ("plan", "model", "told"),
    [
        (Plan.of("ddim", [926.0, 153.0]), "small:model", "t = 926 lies outside the time steps of small, 0 to 99"),
        (
            Plan(solver="ddim", steps=(Step(t=50), Step(t=10, skip=frozenset({2, 55})))),
            "small:layered_model",
            "layer 55 does not exist; layered has layers 0 to 4",
        ),
        (
            Plan(solver="ddim", steps=(Step(t=50, skip=frozenset({1})),)),
            "small:model",
            "network of small is a function",
        ),
        (Plan.of("ddim", [50.5]), "small:model", "t = 50.5 is not whole"),
    ],
)
def test_a_plan_that_does_not_fit_says_so_in_a_line(command: Command, plan: Plan, model: str, told: str) -> None:
    plan.with_origin(model="adm/imagenet64").save("plan.json")
    for line in (f"evaluate plan.json --model {model}", f"sample plan.json --model {model} --out a.png"):
        status, out, err = command(line)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert told in err
        assert err.startswith("autodiffusion: plan 'plan.json', found on adm/imagenet64, does not fit ")
        assert err.endswith("; give a plan of a model of its kind, or search one for it\n")
    assert not Path("a.png").exists()


def guided(**options: Any) -> Model:
    return Model(lambda x, t, y: x, small.model().schedule, small.SHAPE, classes=3, name="other", **options)


def classify(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("model", "guidance"),
    [
        (guided(), "none"),
        (guided(null_class=2), "none"),
        (guided(null_class=2, guidance_scale=7.5), "classifier-free, scale 7.5"),
        (guided(classifier=classify), "classifier, scale 1.0"),
        (guided(classifier=classify, guidance_scale=0), "none"),
    ],
)
def test_guidance_in_words(model: Model, guidance: str) -> None:
    assert model.guidance == guidance
    same = Plan.of("ddim", [50.0], origin={"model": "other", "guidance": guidance})
    assert found_elsewhere(same, model) is None
    assert found_elsewhere(Plan.of("ddim", [50.0]), model) is None  # nobody knows
    assert found_elsewhere(same.with_origin(model="first"), model) == "the plan was found on first, not on other"
    assert found_elsewhere(same.with_origin(model="first"), model, "first") is None
    other = same.with_origin(model="first", guidance="classifier, scale 4.0")
    assert found_elsewhere(other, model) == (
        f"the plan was found on first with guidance classifier, scale 4.0; other has {guidance}"
    )


def test_published_plans_have_the_words_of_models(command: Command) -> None:
    from autodiffusion._plans.published import published

    words = {plan.origin["guidance"] for plan in published().values() if "guidance" in plan.origin}
    assert words == {guided(classifier=classify).guidance, guided(null_class=0, guidance_scale=7.5).guidance}
    done = command("evaluate adm-g/imagenet64/4 --model mnist --samples 8 --json")
    assert done.status == 0
    assert done.err == (
        "autodiffusion: the plan was found on ADM-G with guidance classifier, scale 1.0; mnist has none\n"
    )
    assert load("mnist").guidance == "none"
