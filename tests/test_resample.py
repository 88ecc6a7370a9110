"""A plan at another number of steps: lines and parabolas in closed form, what must stay, and the verb ``plans``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from hypothesis import assume, given
from hypothesis import strategies as st

from autodiffusion import Model
from autodiffusion._errors import InputError
from autodiffusion._plans.grids import fitting, grid
from autodiffusion._plans.plan import MAX_STEPS, Plan, Step
from autodiffusion._plans.resample import resample
from autodiffusion._plans.schedule import NoiseSchedule
from autodiffusion._sampling.sampling import stretches
from autodiffusion.solvers._base import build

FOUND = Plan.of(
    "ddim", [965, 717, 552, 243], solver_options={"clip": True}, origin={"model": "mnist", "metric": "fid", "value": 12}
)


@st.composite
def plans(draw: st.DrawFn, unit: int = 1, lowest: int = 0) -> Plan:
    """Plans of times in multiples of 1 / ``unit``, with and without an end."""
    drawn = draw(st.sets(st.integers(lowest * unit, 999 * unit), min_size=1, max_size=12))
    times = [t / unit for t in sorted(drawn, reverse=True)]
    end = times.pop() if len(times) > 1 and draw(st.booleans()) else None
    return Plan.of("ddim", times, end=end)


# in closed form


@pytest.mark.parametrize(
    ("times", "end", "steps", "expected"),
    [
        # times on a line stay on it: clean data is time 0
        ([900, 600, 300], None, 6, [900, 750, 600, 450, 300, 150]),
        ([900, 600, 300], None, 9, [900, 800, 700, 600, 500, 400, 300, 200, 100]),
        ([900, 600, 300], None, 2, [900, 450]),
        ([900, 600, 300], None, 1, [900]),
        ([500], None, 4, [500, 375, 250, 125]),
        ([900, 600], 300, 3, [900, 700, 500]),
        ([900, 600], 300, 4, [900, 750, 600, 450]),
        # a step at time 0 is a line's last point itself
        ([999, 666, 333, 0], None, 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ([999, 666, 333, 0], None, 2, [999, 0]),
        ([999, 666, 333, 0], None, 1, [999]),
        # an end at time 0 is an end
        ([900, 600, 300], 0, 2, [900, 450]),
        # whole times that rounding makes equal are moved apart
        ([3], None, 4, [3, 2, 1, 0]),
        ([10, 9, 8], 7, 3, [10, 9, 8]),
        ([6, 5], 2, 4, [6, 5, 4, 3]),
        # real times are not rounded
        ([90.5], None, 4, [90.5, 67.875, 45.25, 22.625]),
        ([3, 2.5], 2, 8, [3, 2.875, 2.75, 2.625, 2.5, 2.375, 2.25, 2.125]),
    ],
)
def test_a_line_stays_a_line(times: list[float], end: float | None, steps: int, expected: list[float]) -> None:
    found = resample(Plan.of("ddim", times, end=end), steps)
    assert found.times == pytest.approx(expected, abs=1e-9)
    assert found.end == end


def test_what_a_model_has_no_time_for_is_not_asked() -> None:
    """Flow matching has no time below 1: clean data counts as that, and a last step there stays."""
    assert resample(Plan.of("euler", [991, 661, 331, 1]), 7, 1.0).times == (991, 826, 661, 496, 331, 166, 1)
    assert resample(Plan.of("euler", [901, 601, 301]), 6, 1.0).times == (901, 751, 601, 451, 301, 151)
    assert resample(Plan.of("ddim", [999, 666, 333, 0]), 10, 1.0).times[-2:] == (111, 0)  # it was there before
    for shift, steps in itertools.product((1.0, 3.0), (6, 16, 20)):
        flow = NoiseSchedule.flow(1000, shift)
        for times in fitting(lambda name, flow=flow: grid(name, 4, flow, continuous=True)).values():  # type: ignore[misc]
            found = resample(Plan.of("euler", list(times)), steps, flow.first)
            assert found.times[-1] >= flow.first
            stretches(
                found, Model(lambda x, t, label: x, flow, (1, 2, 2), prediction="sample")
            )  # refuses what lies outside


@pytest.mark.parametrize(("steps", "end"), [(8, None), (13, 0.0), (37, None), (50, 0.0)])
def test_a_curve_stays_a_curve(steps: int, end: float | None) -> None:
    def curve(count: int) -> np.ndarray:
        return np.array(900.5 * (1 - np.arange(count) / count) ** 2)

    found = resample(Plan.of("ddim", list(curve(20)), end=end), steps)
    # by straight lines between the old steps it would be off by up to 0.56
    assert np.abs(np.array(found.times) - curve(steps))[: -(steps // 10) or None].max() < 0.1


# what must stay


@given(plans(), st.integers(1, 60))
def test_whole_times(plan: Plan, steps: int) -> None:
    lowest = 0 if plan.end is None else int(plan.end) + 1
    if steps != len(plan.steps) and steps > plan.times[0] - lowest + 1:
        with pytest.raises(InputError, match=f"steps = {steps} do not fit; from {plan.times[0]:.0f} down to {lowest}"):
            resample(plan, steps)
        return
    found = resample(plan, steps)
    assert len(found.steps) == steps
    assert all(t.is_integer() for t in found.times)
    assert (found.times[0], found.end) == (plan.times[0], plan.end)
    assert found.times[-1] >= lowest
    # what was built without checks passes them
    assert Plan.model_validate(found.model_dump()) == found


@given(plans(unit=1000), st.integers(1, 60))
def test_real_times(plan: Plan, steps: int) -> None:
    assume(not all(t.is_integer() for t in plan.times))
    found = resample(plan, steps)
    assert len(found.steps) == steps
    assert (found.times[0], found.end) == (plan.times[0], plan.end)
    assert Plan.model_validate(found.model_dump()) == found


@given(plans() | plans(unit=1000))
def test_the_same_number_gives_the_same_plan(plan: Plan) -> None:
    found = resample(plan, len(plan.steps))
    assert found.model_dump() == plan.model_dump()


@given(plans(unit=1000), st.integers(2, 5))
def test_a_multiple_keeps_the_old_times_and_leads_back(plan: Plan, factor: int) -> None:
    assume(not all(t.is_integer() for t in plan.times))
    # with a last step at time 0 there are as many stretches as steps before it
    at_zero = plan.times[-1] == 0
    steps = factor * (len(plan.steps) - at_zero) + at_zero
    found = resample(plan, steps)
    assert found.times[::factor] == plan.times
    if not all(t.is_integer() for t in found.times):
        assert resample(found, len(plan.steps)).times == pytest.approx(plan.times, abs=1e-9)


@given(st.sets(st.integers(1, 99), min_size=1, max_size=8), st.booleans())
def test_twice_as_many_whole_steps_keep_the_old_ones(tens: set[int], ended: bool) -> None:
    # a monotone cubic is in the middle no nearer to either side than an eighth of the way
    times = [10.0 * t for t in sorted(tens, reverse=True)]
    plan = Plan.of("ddim", times, end=0.0 if ended else None)
    assert resample(plan, 2 * len(times)).times[::2] == plan.times


def test_solver_options_and_layers_stay() -> None:
    steps = (Step(t=900, skip=frozenset({1})), Step(t=600, skip=frozenset({2, 3})), Step(t=300))
    plan = Plan(solver="dpm_solver", solver_options={"order": 2}, steps=steps, end=3, origin={"value": 1.5})
    one, two, none = {1}, {2, 3}, set[int]()
    for count, expected in {
        1: [one],
        2: [one, two],  # at u = 0 and 1/2; the old are at 0, 1/3 and 2/3, and of two as near the earlier counts
        6: [one, one, two, two, none, none],
        7: [one, one, two, two, none, none, none],
    }.items():
        found = resample(plan, count)
        assert [step.skip for step in found.steps] == expected
        assert (found.solver, found.solver_options, found.end) == ("dpm_solver", {"order": 2}, 3)
        assert found.origin == {"resampled": {"from": plan.digest, "steps": 3}}


# free numbers


@st.composite
def tuned(draw: st.DrawFn) -> Plan:
    """Plans with any of the numbers that their solver leaves open, anywhere in their range."""
    solver, options = draw(
        st.sampled_from(
            [
                ("pfdiff", {}),
                ("ddim", {"eta": 0.5}),
                ("gls", {}),
                ("gls", {"memory": 3, "scale": True}),
                ("gls", {"plain": "plms", "memory": 2}),
                ("gls", {"plain": "dpm_solver++", "order": 3, "memory": 9}),
            ]
        )
    )
    plan = Plan.of(solver, draw(plans(lowest=1)).times, end=draw(st.sampled_from([None, 0.0])), solver_options=options)
    free = build(solver, NoiseSchedule.linear(), options).free(len(plan.steps), plan.end is None)
    numbers = [{n.name: draw(st.floats(n.low, n.high)) for n in step if draw(st.booleans())} for step in free]
    return plan.tuned(numbers)


@given(tuned(), st.integers(1, 30))
def test_a_resampled_plan_has_numbers_that_its_solver_knows(plan: Plan, steps: int) -> None:
    assume(steps <= plan.times[0])
    found = resample(plan, steps)
    solver = build(found.solver, NoiseSchedule.linear(), found.solver_options)
    solver.path(found.times, found.end, found.params)  # refuses what it does not know
    assert Plan.model_validate(found.model_dump()) == found
    assert {value for said in found.params for value in said.values()} <= {
        value for said in plan.params for value in said.values()
    }
    assert found.times == resample(plan.tuned([{}] * len(plan.steps)), steps).times


def test_each_number_is_that_of_the_nearest_step_where_it_is_open() -> None:
    said: list[dict[str, float]] = [
        {"noise": 0.1},
        {"data1": 1.0, "noise": 1.1},
        {"data1": 2.0, "data2": -1.0, "noise": 2.1},
        {"data1": 3.0, "data2": -2.0},
    ]
    plan = Plan.of("gls", [800, 600, 400, 200], solver_options={"memory": 2}).tuned(said)
    noise, data, older = [d.get("noise") for d in said], [d.get("data1") for d in said], [d.get("data2") for d in said]
    for count, expected in {
        1: [{}],
        # at u = 0 and 1/2; the last step ends in clean data and has no noise, the second no prediction before the last
        2: [{"noise": noise[0]}, {"data1": data[2]}],
        # at u = 0, 1/3 and 2/3; the old are at 0, 1/4, 1/2 and 3/4
        3: [{"noise": noise[0]}, {"data1": data[1], "noise": noise[1]}, {"data1": data[3], "data2": older[3]}],
        # at multiples of 1/8; of two as near the earlier counts
        8: [
            {"noise": noise[0]},
            {"data1": data[1], "noise": noise[0]},
            {"data1": data[1], "data2": older[2], "noise": noise[1]},
            {"data1": data[1], "data2": older[2], "noise": noise[1]},
            {"data1": data[2], "data2": older[2], "noise": noise[2]},
            {"data1": data[2], "data2": older[2], "noise": noise[2]},
            {"data1": data[3], "data2": older[3], "noise": noise[2]},
            {"data1": data[3], "data2": older[3]},
        ],
    }.items():
        found = resample(plan, count)
        assert list(found.params) == expected
        assert found.origin == {"resampled": {"from": plan.digest, "steps": 4}}
    # with an end the last step has noise as well
    ended = Plan.of("gls", [800, 600], end=0).tuned([{"noise": 1.0}, {"noise": 2.0}])
    assert list(resample(ended, 4).params) == [{"noise": 1.0}, {"noise": 1.0}, {"noise": 2.0}, {"noise": 2.0}]
    # plain steps are plain
    assert not any(resample(Plan.of("gls", [800, 600]), 9).params)
    assert resample(Plan.of("gls", [800, 600]).tuned([{}, {"data1": 1.0}]), 1).params == ({},)


def test_layers_and_numbers_stay_together() -> None:
    steps = (Step(t=900, skip=frozenset({1})), Step(t=600, params={"ask": 0.25}))
    found = resample(Plan(solver="pfdiff", steps=steps), 4)
    assert [(step.skip, step.params) for step in found.steps] == [
        ({1}, {}),
        ({1}, {"ask": 0.25}),
        (set(), {"ask": 0.25}),
        (set(), {"ask": 0.25}),
    ]


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (Plan.of("gls", [900, 600]).tuned([{"data1": 1.0}, {}]), r"steps\[0\].params: 'data1' is unknown"),
        (Plan.of("gls", [900, 600]).tuned([{"noize": 1.0}, {}]), "'noize' is unknown .did you mean 'noise'"),
        (Plan.of("gls", [900, 600]).tuned([{"noise": 9.0}, {}]), r"steps\[0\].params.noise = 9.0 lies outside"),
        (Plan.of("plms", [900, 600]).tuned([{}, {"eta": 1.0}]), "leaves nothing open for this step"),
        (Plan.of("glz", [900, 600]).tuned([{}, {"eta": 1.0}]), "solver 'glz' is unknown"),
    ],
)
def test_numbers_that_the_plan_cannot_have_are_told(plan: Plan, told: str) -> None:
    with pytest.raises(InputError, match=told):
        resample(plan, 5)


@pytest.mark.parametrize(
    ("plan", "steps", "told"),
    [
        (FOUND, 0, "steps = 0 is out of range; a plan has 1 to 10000 steps"),
        (FOUND, -3, "steps = -3 is out of range"),
        (FOUND, MAX_STEPS + 1, "steps = 10001 is out of range"),
        (FOUND, 967, "steps = 967 do not fit; from 965 down to 0 there are 966 whole times"),
        (Plan.of("ddim", [20], end=12.5), 9, "from 20 down to 13 there are 8 whole times"),
        (Plan.of("ddim", [0]), 2, "from 0 down to 0 there are 1 whole times"),
        (Plan.of("ddim", [2.5 + 4e-16], end=2.5), 8, "so close together"),
        (Plan.of("ddim", [2.0**60 + 2**9], end=2.0**60), 300, "so close together"),
    ],
)
def test_what_does_not_fit(plan: Plan, steps: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        resample(plan, steps)


def test_all_that_fit() -> None:
    assert resample(FOUND, 966).times == tuple(float(t) for t in range(965, -1, -1))
    assert resample(Plan.of("ddim", [20], end=12.5), 8).times == tuple(float(t) for t in range(20, 12, -1))


# the verb


@pytest.fixture
def run(command: Command) -> Command:
    """Runs ``autodiffusion`` with these arguments beside found.json."""
    FOUND.save("found.json")
    return command


def test_plans_prints_a_plan_and_where_it_came_from(run: Command) -> None:
    assert run("plans found.json") == (
        0,
        "ddim at 965, 717, 552, 243\nmodel: mnist\nmetric: fid\nvalue: 12\n",
        "",
    )
    Plan.of("plms", [5]).save("bare.json")
    assert run("plans bare.json") == (0, "plms at 5\n", "")


def test_plans_as_json_is_a_list(run: Command) -> None:
    status, out, err = run("plans found.json --json")
    assert (status, out.count("\n"), err) == (0, 1, "")
    [entry] = json.loads(out)
    assert entry == {"name": "found.json", "source": FOUND.origin, "plan": FOUND.model_dump(mode="json")}


def test_plans_resamples(run: Command, tmp_path: Path) -> None:
    expected = resample(FOUND, 8)
    assert run("plans found.json --resample 8 --out plan8.json") == (
        0,
        "plan8.json: ddim at 965, 830, 717, 637, 552, 405, 243, 114\n",
        "",
    )
    written = Plan.load("plan8.json")
    assert written.model_dump() == expected.model_dump()
    assert written.origin == {"resampled": {"from": FOUND.digest, "steps": 4}}
    assert run("plans found.json --resample 8") == (0, (tmp_path / "plan8.json").read_text(), "")
    status, out, err = run("plans found.json --resample 8 --json")
    assert (status, out.count("\n"), err) == (0, 1, "")
    assert json.loads(out) == {"plan": expected.model_dump(mode="json")}
    # both at once
    assert run("plans found.json --resample 8 --json --out again.json") == (0, out, "")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "plan8.json").read_text()


def test_a_resampled_plan_runs(run: Command, real_images: Path) -> None:
    Plan.of("dpm_solver++", [98.5, 40.25, 20.0], end=0.5).save("three.json")
    assert run("plans three.json --resample 5 --out five.json")[0] == 0
    line = f"evaluate five.json --model small:model --reference {real_images} --samples 20 --json"
    status, out, _ = run(line)
    assert (status, json.loads(out)["nfe"]) == (0, 5)


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("end", [None, 5.0])
def test_a_resampled_plan_with_numbers_runs(run: Command, real_images: Path, steps: int, end: float | None) -> None:
    last = {"data1": 0.5, "data2": 0.2} | ({} if end is None else {"noise": 0.4})
    plan = Plan.of("gls", [98, 70, 40, 20], end=end, solver_options={"memory": 2})
    plan.tuned([{"noise": 1.0}, {"data1": 1.0}, {"data1": 0.5, "data2": -0.1, "noise": 1.0}, last]).save("four.json")
    assert run(f"plans four.json --resample {steps} --out new.json")[0] == 0
    status, out, _ = run(f"evaluate new.json --model small:model --reference {real_images} --samples 20 --json")
    assert (status, json.loads(out)["nfe"]) == (0, steps)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("plans none.json --resample 8 --out new.json", "none.json: cannot be read"),
        ("plans torn.json --resample 8 --out new.json", "torn.json: is not a complete JSON file"),
        ("plans found.json --resample 0 --out new.json", "'--resample'"),
        ("plans found.json --resample many --out new.json", "'--resample'"),
        ("plans found.json --resample 967 --out new.json", "steps = 967 do not fit"),
        ("plans found.json --resample 10001", "steps = 10001 is out of range"),
        ("plans found.json --resample 8 --out none/new.json", "none/new.json: cannot be written"),
        ("plans found.json --resample 8 --out .", "is a folder"),
    ],
)
def test_what_cannot_be_done_writes_nothing(run: Command, tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "torn.json").write_text(FOUND.to_json()[:60])
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(line)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("autodiffusion: ")
    assert told in err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_names_the_verb(run: Command) -> None:
    assert "plans" in run("--help")[1]
    assert "--resample" in run("plans --help")[1]
