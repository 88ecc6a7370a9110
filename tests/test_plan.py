"""Plans: what they refuse, when they are equal, and that what is written is what is read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autodiffusion._errors import InputError
from autodiffusion._plans import plan as module
from autodiffusion._plans.plan import MAX_STEPS, Option, Plan, Step

OPTIONS: dict[str, Option] = {"eta": 0.5, "clip": True, "order": 2, "method": "multistep"}
DIGEST = "6e9dbc7e7fa6f11fa4df8b2a7af99b5d7f91480090377604dd903743f990bb2c"


def example() -> Plan:
    """A plan with something in every field."""
    steps = (Step(t=926), Step(t=690.5, skip=frozenset({7, 3, 12})), Step(t=153))
    return Plan(solver="ddim", solver_options=OPTIONS, steps=steps, end=0.25, origin={"model": "mnist", "fid": 3.5})


WRITTEN = """{
  "format": "autodiffusion.plan/1",
  "solver": "ddim",
  "solver_options": {
    "clip": true,
    "eta": 0.5,
    "method": "multistep",
    "order": 2
  },
  "steps": [
    {
      "t": 926,
      "skip": []
    },
    {
      "t": 690.5,
      "skip": [
        3,
        7,
        12
      ]
    },
    {
      "t": 153,
      "skip": []
    }
  ],
  "end": 0.25,
  "origin": {
    "model": "mnist",
    "fid": 3.5
  }
}
"""

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=8).filter(lambda text: ":" not in text)  # package.module:attribute is code, and not taken
options = st.dictionaries(st.text(max_size=8), st.booleans() | st.integers() | finite | names, max_size=4)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    real = st.floats(0, allow_infinity=False) | st.integers(0, 1000).map(float)
    times = sorted(draw(st.sets(real, min_size=1, max_size=8)), reverse=True)
    end = times.pop() if len(times) > 1 and draw(st.booleans()) else None
    steps = tuple(Step(t=t, skip=draw(st.frozensets(st.integers(0, 60), max_size=5))) for t in times)
    origin = draw(st.dictionaries(st.text(max_size=8), plain, max_size=3))
    return Plan(solver=draw(names), solver_options=draw(options), steps=steps, end=end, origin=origin)


# JSON


@given(plans())
def test_what_is_written_is_read(plan: Plan) -> None:
    read = Plan.from_json(plan.to_json())
    assert read == plan
    assert read.model_dump() == plan.model_dump()  # to the last field, origin too
    assert [type(value) for value in read.solver_options.values()] == [
        type(value) for value in plan.solver_options.values()
    ]
    assert read.to_json() == plan.to_json()
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan  # as the ledger of a search keeps it


def test_the_bytes_are_these() -> None:
    assert example().to_json() == WRITTEN
    assert Plan.from_json(WRITTEN) == example()


def test_what_is_left_out_has_defaults() -> None:
    plan = Plan.from_json('{"solver": "plms", "steps": [{"t": 5}]}')
    assert plan == Plan.of("plms", [5.0])
    assert (plan.end, plan.solver_options, plan.origin, plan.steps[0].skip) == (None, {}, {}, frozenset())


# identity


@given(plans(), st.dictionaries(st.text(max_size=8), plain, max_size=3))
def test_origin_is_not_identity(plan: Plan, origin: dict[str, Any]) -> None:
    other = plan.with_origin(**origin)
    assert other.origin == origin
    assert (other, hash(other), other.digest) == (plan, hash(plan), plan.digest)


@pytest.mark.parametrize("origin", ['{"value": NaN}', '{"a": [1, {"b": -Infinity}]}', '{"value": 1e999}'])
def test_origins_are_plain_json(origin: str) -> None:
    text = json.dumps(Plan.of("ddim", [5.0]).model_dump(mode="json")).replace('"origin": {}', f'"origin": {origin}')
    with pytest.raises(
        InputError, match=r"^plan.json: origin: is not JSON with finite numbers .*; mend it or leave it"
    ):
        Plan.from_json(text, "plan.json")
    found = Plan.from_json(text.replace(origin, '{"a": [1, null, "x", {"b": 2.5}]}')).origin
    assert found == {"a": [1, None, "x", {"b": 2.5}]}


def test_equal_numbers_are_equal() -> None:
    whole = Plan.from_json('{"solver": "ddim", "steps": [{"t": 926}], "end": 3, "solver_options": {"eta": 1}}')
    point = Plan.from_json('{"solver": "ddim", "steps": [{"t": 926.0}], "end": 3.0, "solver_options": {"eta": 1.0}}')
    assert (whole, hash(whole)) == (point, hash(point))
    assert Plan.of("ddim", [0.0]).digest == Plan.of("ddim", [-0.0]).digest


def test_the_order_of_layers_and_options_is_nothing() -> None:
    first = Plan.from_json(
        '{"solver": "a", "steps": [{"t": 1, "skip": [9, 4, 33]}], "solver_options": {"a": 1, "b": 2}}'
    )
    other = Plan.from_json(
        '{"solver": "a", "steps": [{"skip": [33, 9, 4], "t": 1}], "solver_options": {"b": 2, "a": 1}}'
    )
    assert (first, hash(first), first.to_json()) == (other, hash(other), other.to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"solver": "plms"},
        {"solver_options": {}},
        {"solver_options": OPTIONS | {"eta": 0.25}},
        {"end": None},
        {"end": 0.5},
        {"steps": (Step(t=926), Step(t=690.5), Step(t=153))},
        {"steps": (Step(t=926), Step(t=690.5, skip=frozenset({7, 3, 12})), Step(t=153.001))},
        {"steps": (Step(t=926), Step(t=690.5, skip=frozenset({7, 3, 12})))},
    ],
)
def test_everything_else_is_identity(change: dict[str, Any]) -> None:
    other = Plan(**{**dict(example()), **change})
    assert other != example()
    assert other.digest != example().digest


def test_a_copy_that_differs_has_a_digest_of_its_own() -> None:
    plan = example()
    digest, steps = plan.digest, plan.steps
    for changed in (plan.model_copy(update={"solver": "plms"}), plan.tuned([{"a": 0.5}] * len(steps)), plan.leaving()):
        assert changed.digest == Plan.from_json(changed.to_json()).digest != digest
    assert plan.with_origin(model="m").digest == plan.digest == digest


def test_not_equal_to_other_things() -> None:
    assert example() != example().digest
    assert example() != example().model_dump()


@pytest.mark.parametrize("salt", ["0", "4711"])
def test_digest_is_the_same_everywhere(salt: str) -> None:
    assert example().digest == DIGEST
    code = (
        "from autodiffusion._plans.plan import Plan; import sys\n"
        "plan = Plan.from_json(sys.stdin.read()); print(plan.digest, hash(plan))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=WRITTEN,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": salt},
    )
    assert done.stdout.split() == [DIGEST, str(hash(example()))]


def test_times_that_are_no_plan_are_told_in_a_line() -> None:
    with pytest.raises(InputError, match=r"^plan: steps\[1\].t = 500 is not below steps\[0\].t = 100"):
        Plan.of("ddim", [100, 500])
    with pytest.raises(InputError, match=r"steps\[0\].t|t: -1"):
        Plan.of("ddim", [-1])


def test_plans_do_not_change() -> None:
    plan, given_options = example(), dict(OPTIONS)
    for thing, name in ((plan, "solver"), (plan, "steps"), (plan, "origin"), (plan.steps[0], "t"), (plan, "new")):
        with pytest.raises(ValidationError):
            setattr(thing, name, 1)
        with pytest.raises(ValidationError):
            delattr(thing, name)
    assert isinstance(plan.steps, tuple)
    assert isinstance(plan.steps[0].skip, frozenset)
    plan = Plan.of("ddim", [3, 2], solver_options=given_options)
    before = plan.digest
    given_options["eta"] = 0.75
    assert plan.digest == before
    assert plan.with_origin(fid=1.0) is not plan
    assert plan.origin == {}


# faults


def changed(**change: Any) -> str:
    return json.dumps({**json.loads(WRITTEN), **change})


STEP = {"t": 500, "skip": []}
FAULTS = [
    ("", "plan: is not a complete JSON file"),
    ("steps: [4, 3]", "plan: is not a complete JSON file"),
    ("[]", "plan: Input should be an object"),
    ("null", "plan: Input should be an object"),
    (changed(format="autodiffusion.plan/2"), "plan: format: 'autodiffusion.plan/2' should be 'autodiffusion.plan/1'"),
    (changed(format=None), "plan: format: Input should be 'autodiffusion.plan/1'"),
    (changed(solvr="ddim"), "plan: solvr: unknown key (did you mean 'solver'?"),
    (changed(steps=[{"t": 5, "skp": [1]}]), "plan: steps[0].skp: unknown key (did you mean 'skip'?"),
    ('{"solver": "ddim"}', "plan: steps: is missing; give it"),
    ('{"steps": [{"t": 4}]}', "plan: solver: is missing; give it"),
    (changed(solver=3), "plan: solver: 3 should be a valid string"),
    (changed(solver_options=[1]), "plan: solver_options: Input should be "),
    (changed(solver_options={"eta": [1]}), "plan: solver_options.eta: [1] is not true or false, a number or a text"),
    (changed(solver_options={"eta": None}), "plan: solver_options.eta: None is not true or false, a number or a text"),
    (changed(solver_options={"eta": math.nan}), "plan: solver_options.eta: nan is not a finite number"),
    (changed(solver_options={"eta": -math.inf}), "plan: solver_options.eta: -inf is not a finite number"),
    (changed(steps=[]), "plan: steps: Tuple should have at least 1 item"),
    (changed(steps=[4]), "plan: steps[0]: 4 should be an object"),
    (changed(steps=[{}]), "plan: steps[0].t: is missing; give it"),
    (changed(steps=[STEP, {"t": -1}]), "plan: steps[1].t: -1 should be at least 0"),
    (changed(steps=[STEP, {"t": math.nan}]), "plan: steps[1].t: nan should be a finite number"),
    (changed(steps=[{"t": math.inf}]), "plan: steps[0].t: inf should be a finite number"),
    (changed(steps=[{"t": "soon"}]), "plan: steps[0].t: 'soon' should be a valid number"),
    (changed(steps=[{"t": 5, "skip": [1, -2]}]), "plan: steps[0].skip[1]: -2 should be at least 0"),
    (changed(steps=[{"t": 5, "skip": [1.5]}]), "plan: steps[0].skip[0]: 1.5 should be a valid integer"),
    (changed(steps=[{"t": 5, "skip": 3}]), "plan: steps[0].skip: 3 should be a valid array"),
    (
        changed(steps=[{"t": 926}, {"t": 424}, {"t": 430}]),
        "plan: steps[2].t = 430 is not below steps[1].t = 424; time steps must strictly decrease",
    ),
    (
        changed(steps=[{"t": 7.5}, {"t": 7.5}]),
        "plan: steps[1].t = 7.5 is not below steps[0].t = 7.5; time steps must strictly decrease",
    ),
    (changed(end=153), "plan: end = 153 is not below the last step's t = 153"),
    (changed(end=200.5), "plan: end = 200.5 is not below the last step's t = 153"),
    (changed(end=-1), "plan: end: -1 should be at least 0"),
    (changed(end=math.nan), "plan: end: nan should be a finite number"),
    (
        changed(steps=[{"t": MAX_STEPS - i} for i in range(MAX_STEPS + 1)]),
        "plan: steps: Tuple should have at most 10000 items",
    ),
]


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        Plan.from_json(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message[6:40] for _, message in FAULTS])
def test_faults_are_named(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_cut_off_anywhere() -> None:
    whole = WRITTEN.rstrip()
    for length in range(len(whole)):
        assert refused(whole[:length]).startswith("plan: is not a complete JSON file")


@given(st.binary(max_size=60))
def test_noise_is_refused_in_one_line(data: bytes) -> None:
    refused(data.decode("latin-1"))


# files


def test_saved_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    for plan in (example(), example().with_origin(name="größer")):  # the second replaces the first
        plan.save(file)
        assert Plan.load(file) == plan
        assert Plan.load(str(file)).origin == plan.origin
        assert file.read_text(encoding="utf-8") == plan.to_json()
        assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.json"
    example().save(file)

    def fail(source: Path, target: Path) -> None:
        assert Plan.load(source).solver == "plms"  # complete before it takes the place of the other
        raise OSError("as if killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="as if killed here"):
        Plan.of("plms", [3]).save(file)
    assert Plan.load(file) == example()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary, large, torn = (tmp_path / name for name in ("binary.json", "large.json", "torn.json"))
    binary.write_bytes(b"\x89PNG\xff\xfe\x00")
    with large.open("wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    torn.write_text(WRITTEN[:100])
    for path, reason in [
        (tmp_path / "missing.json", "cannot be read (No such file or directory)"),
        (tmp_path, "cannot be read (Is a directory)"),
        (binary, "cannot be read (not a text file)"),
        (large, f"is larger than {module.MAX_BYTES} bytes and cannot be a plan"),
        (torn, "is not a complete JSON file"),
    ]:
        with pytest.raises(InputError) as caught:
            Plan.load(path)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(caught.value)
