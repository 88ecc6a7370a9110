"""Evaluation: what plans share, what it costs, whose noise it is, and scores against direct computations."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from conftest import Command
from frechet import frechet_distance
from torch import Tensor, nn

from autodiffusion import Evaluator, InputError, Model, NoiseSchedule, Plan, evaluate, sample
from autodiffusion._cli._options import load_plan
from autodiffusion._evaluation.confirm import confirm, figure
from autodiffusion._evaluation.evaluate import derive_seed, describe
from autodiffusion._evaluation.pool import Pool
from autodiffusion._names import known
from autodiffusion._plans.grids import grid
from autodiffusion._plans.plan import Step
from autodiffusion._references.reference import Reference
from autodiffusion._references.reference import load as load_reference
from autodiffusion._sampling.blocks import Sampler
from autodiffusion._sampling.errands import Here
from autodiffusion._sampling.sampling import Beginnings, Cost, begin, blocks, nfe, stretches, walk
from autodiffusion._search.inputs import check_source, find_reference, parse_teacher, plan_of, prepare, teacher_plan
from autodiffusion.features import Extractor, Features
from autodiffusion.features._base import load as load_features
from autodiffusion.metrics._build import build
from autodiffusion.metrics.kl import KL
from autodiffusion.solvers._base import build as build_solver
from autodiffusion.solvers._base import solve

SEED = 11
SOLVERS: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {"clip": True}),
    ("ddim", {"clip": True, "eta": 1.0}),
    ("plms", {"clip": False}),
    ("dpm_solver", {"order": 2}),
    ("dpm_solver", {"order": 3, "method": "singlestep", "lower_order_final": False}),
    ("dpm_solver++", {"order": 3, "clip": True}),
]
NAMES = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in SOLVERS]


def linear_model(shape: tuple[int, ...] = (1, 4, 4)) -> Model:
    """A network without sums, so that no batch size and no order of work changes a bit of what it says."""

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return x * (0.9 - 0.002 * float(t[0])) + 0.05 * math.cos(float(t[0]))

    return Model(network, NoiseSchedule.cosine(100), shape, features="small:features", name="linear")


class Counting:
    """A network that counts the samples it is asked about, and what of its answers is still alive."""

    def __init__(self, model: Model) -> None:
        self.model, self.asked = model, 0
        self.answers: list[weakref.ref[Tensor]] = []
        predict = model.predict

        def counted(x: Tensor, t: float, condition: Tensor | None) -> Tensor:
            self.asked += len(x)
            answer = predict(x, t, condition)
            self.answers.append(weakref.ref(answer))
            return answer

        model.predict = counted  # type: ignore[method-assign]

    @property
    def alive(self) -> int:
        return sum(answer() is not None for answer in self.answers)


def population(solver: str, options: dict[str, Any], count: int = 24) -> list[Plan]:
    """Random plans of 1 to 5 steps; few times to choose from, so that many begin alike."""
    rng = np.random.default_rng(4)
    plans = []
    for _ in range(count):
        times = sorted(rng.choice([5.0, 20.0, 40.0, 60.0, 80.0, 95.0], rng.integers(1, 6), replace=False))[::-1]
        end = None if rng.random() < 0.6 else times[-1] - float(rng.integers(1, 3))
        plans.append(Plan.of(solver, times, end=end, solver_options=options))
    return [*plans, plans[0]]  # the same twice


def alone(model: Model, plan: Plan, indices: Sequence[int], seed: int = SEED) -> Tensor:
    [(_, x)] = walk(model, [plan], indices, seed, Cost())
    return x


# what plans share


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=NAMES)
def test_a_plan_gives_the_same_samples_alone_and_in_company(solver: str, options: dict[str, Any]) -> None:
    model, plans = small.model(), population(solver, options)
    company = dict(walk(model, plans, range(3), SEED, Cost()))
    assert sorted(company) == list(range(len(plans)))
    for place, plan in enumerate(plans):
        assert torch.equal(company[place], alone(model, plan, range(3))), plan.times
    assert len({tuple(x.flatten().tolist()) for x in company.values()}) == len(set(plans))


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=NAMES)
def test_walk_is_the_plain_loop(solver: str, options: dict[str, Any]) -> None:
    model = small.model()
    for plan in population(solver, options, 6):
        walked = alone(model, plan, range(2))
        plain = solve(
            build_solver(solver, model.schedule, options),
            lambda x, t: model.predict(x, t, None),
            model.noise(range(2), SEED),
            plan.times,
            plan.end,
            lambda number: model.noise(range(2), SEED, stream=2 + number),
        )
        assert torch.equal(walked, plain)


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=NAMES)
def test_cost_is_what_the_network_was_asked(solver: str, options: dict[str, Any]) -> None:
    model, plans, ticks = small.model(), population(solver, options), []
    counting, cost = Counting(model), Cost()
    for _ in walk(model, plans, range(3), SEED, cost, ticks.append):
        pass
    assert cost.evaluations == counting.asked == sum(ticks)
    assert cost.evaluations + cost.saved == 3 * sum(nfe(plan, model) for plan in plans)
    prefixes = {plan.times[:k] for plan in plans for k in range(1, len(plan.times) + 1)}
    if solver == "plms":  # its first step asks twice, the second time where the next step begins
        doubles = {(*plan.times, plan.end)[:2] for plan in plans}
        assert cost.evaluations == 3 * (len(prefixes) + len(doubles))
    elif solver == "ddim":
        assert cost.evaluations == 3 * len(prefixes)
    assert cost.saved > 0


def test_plms_asks_twice_at_its_first_step() -> None:
    model = small.model()
    counting = Counting(model)
    alone(model, Plan.of("plms", [80.0, 50.0, 20.0]), range(2))
    assert counting.asked == 2 * 4 == 2 * nfe(Plan.of("plms", [80.0, 50.0, 20.0]), model)


def test_plans_of_several_solvers_share_only_the_first_answer() -> None:
    model, times = small.model(), [90.0, 50.0, 10.0]
    plans = [Plan.of("ddim", times), Plan.of("ddim", times, solver_options={"eta": 1.0}), Plan.of("dpm_solver", times)]
    cost = Cost()
    company = dict(walk(model, plans, range(2), SEED, cost))
    for place, plan in enumerate(plans):
        assert torch.equal(company[place], alone(model, plan, range(2)))
    assert cost == Cost(2 * (1 + 3 * 2), 2 * 2)


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=NAMES)
def test_one_state_a_step_is_kept(solver: str, options: dict[str, Any]) -> None:
    model = linear_model()
    plans = population(solver, options, 60)
    counting, most = Counting(model), 0
    for _, x in walk(model, plans, range(2), SEED, Cost()):
        most = max(most, counting.alive)
        del x
    longest = max(len(plan.steps) for plan in plans)
    assert len(counting.answers) > 30
    assert most <= longest + 1  # the answers on the current plan; PLMS's second one besides
    assert counting.alive <= longest + 1


# what is kept from one walk to the next


def ways(model: Model, plans: Sequence[Plan]) -> list[Any]:
    return [tuple(stretch.key for stretch in stretches(plan, model)) for plan in plans]


def held(begun: Beginnings) -> int:
    """Bytes of the different tensors that the states of solvers and the network's answers take."""
    tensors = []
    for point in begun._points.values():
        tensors += [point.state.x, *(prediction for _, prediction in point.state.history)]
        tensors += [point.state.start] if point.state.start is not None else []
        tensors += [point.said[2]] if point.said else []
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


KNOWN = [*SOLVERS, *((name, {}) for name in known("solvers"))]


@pytest.mark.parametrize("limit", [0, 3000, 2**30])
@pytest.mark.parametrize(("solver", "options"), KNOWN, ids=[*NAMES, *known("solvers")])
def test_what_earlier_walks_left_changes_no_sample(solver: str, options: dict[str, Any], limit: int) -> None:
    model, plans = small.model(), population(solver, options)
    counting, cost, ticks = Counting(model), Cost(), []
    begun = begin(model, range(3), SEED, limit)
    for some in (plans[:8], plans[4:12], plans[12:], plans):
        for place, x in walk(model, some, range(3), SEED, cost, ticks.append, begun):
            assert torch.equal(x, alone(small.model(), some[place], range(3)))
    walked = [*plans[:8], *plans[4:12], *plans[12:], *plans]
    assert cost.evaluations == counting.asked == sum(ticks)
    assert cost.evaluations + cost.saved == 3 * sum(nfe(plan, model) for plan in walked)
    apart = Cost()
    for some in (plans[:8], plans[4:12], plans[12:], plans):
        for _ in walk(model, some, range(3), SEED, apart):
            pass
    assert cost.evaluations <= apart.evaluations
    assert limit < 2**30 or cost.evaluations < apart.evaluations


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=NAMES)
def test_states_keep_within_their_limit(solver: str, options: dict[str, Any]) -> None:
    model, plans = linear_model(), population(solver, options, 60)
    # the noise and 4 of 5 moves, each with x, the solver's view of the network's last answer, and the next answer
    way = model.noise(range(4), SEED).nbytes * (2 + 4 * 3)
    stay, peak = {}, {}
    for limit in (0, 6000, 2**30):
        begun = begin(model, range(4), SEED, limit)
        during: list[int] = []

        def network(
            x: Tensor, t: Tensor, c: Tensor | None, begun: Beginnings = begun, during: list[int] = during
        ) -> Tensor:
            during.append(held(begun))
            return model.network(x, t, c)

        watched = replace(model, network=network)
        after = [held(begun) for _ in range(2) for _ in walk(watched, plans, range(4), SEED, Cost(), begun=begun)]
        stay[limit], peak[limit] = max(after), max(during)
        assert stay[limit] <= max(limit, way)
        assert peak[limit] <= max(limit, way) + way
    assert stay[0] < stay[6000] <= 6000 < stay[2**30]
    assert peak[6000] < peak[2**30]


def test_without_a_limit_the_last_way_is_kept_alone() -> None:
    model, begun = small.model(), begin(small.model(), range(2), SEED)
    first, second = (Plan.of("ddim", times) for times in ([80.0, 50.0, 20.0], [60.0, 40.0, 10.0]))

    def price(plan: Plan) -> int:
        cost = Cost()
        list(walk(model, [plan], range(2), SEED, cost, begun=begun))
        return cost.evaluations

    assert [price(plan) for plan in (first, second, second, first, second)] == [6, 6, 0, 6, 6]
    assert price(Plan.of("ddim", [60.0, 40.0, 5.0])) == 2  # from 40 it goes elsewhere, where nothing is known


def test_what_is_not_to_be_kept_is_forgotten() -> None:
    plans = [Plan.of("ddim", times) for times in ([80.0, 50.0, 20.0], [80.0, 50.0, 10.0], [60.0, 40.0, 10.0])]
    for kept in range(3):
        model = small.model()
        begun = begin(model, range(2), SEED, 2**30)
        list(walk(model, plans, range(2), SEED, Cost(), begun=begun))
        before = held(begun)
        begun.keep_only(ways(model, [plans[kept]]))
        assert held(begun) < before
        costs = []
        for plan in (plans[kept], plans[2 if kept < 2 else 0]):
            cost = Cost()
            [(_, x)] = walk(model, [plan], range(2), SEED, cost, begun=begun)
            assert torch.equal(x, alone(model, plan, range(2)))
            costs.append(cost.evaluations)
        # where the way ends the network is asked again; of the other plan nothing is left
        assert costs == [2, 6]
        begun.keep_only([])
        assert len(begun._points) == 1


# features for growing numbers of samples


def vectors(found: Features | str) -> Tensor:
    assert isinstance(found, Features)
    return found.vectors


def pool_of(model: Model, counts: Sequence[int], batch_size: int = 16, limit: int = 0) -> Pool:
    return Pool(Evaluator(model, load_features("small:features"), batch_size), SEED, counts, limit)


COUNTS = (8, 20, 50)


@pytest.mark.parametrize("limit", [0, 4000, 2**30])
@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=NAMES)
def test_a_pool_that_grows_is_one_made_at_once(solver: str, options: dict[str, Any], limit: int) -> None:
    plans = population(solver, options, 8)
    grown, whole = (pool_of(small.model(), COUNTS, limit=limit) for _ in range(2))
    wanted = whole.grow(plans, 50)
    for some, count in ((plans[:3], 8), (plans[:5], 20), (plans[2:], 8), (plans, 50), (plans[3:5], 20)):
        for plan, found in zip(some, grown.grow(some, count), strict=True):
            assert torch.equal(vectors(found), vectors(wanted[plans.index(plan)])[:count])
    for found, expected in zip(grown.grow(plans, 50), wanted, strict=True):
        assert isinstance(found, Features)
        assert isinstance(expected, Features)
        assert found.logits is not None
        assert expected.logits is not None
        assert torch.equal(found.vectors, expected.vectors)
        assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("size", [1, 7, 13, 64])
def test_a_pool_is_the_same_for_any_batch_size(size: int) -> None:
    plans = population("ddim", {"clip": True, "eta": 1.0}, 5)
    pool = pool_of(linear_model(), COUNTS, size)
    assert list(itertools.chain(*pool.blocks)) == list(range(50))
    assert max(map(len, pool.blocks)) <= size
    assert set(COUNTS) <= {block.stop for block in pool.blocks}
    for count in COUNTS:
        found = pool.grow(plans, count)
        for features, plan in zip(found, plans, strict=True):
            images = linear_model().decode(alone(linear_model(), plan, range(count)))
            direct = small.Projection()(images.float() / 127.5 - 1)[0]
            torch.testing.assert_close(vectors(features), direct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_pool_computes_nothing_twice(limit: int) -> None:
    model = small.model()
    counting, pool = Counting(model), pool_of(model, COUNTS, limit=limit)
    plans = [Plan.of("ddim", times) for times in ([90.0, 50.0], [80.0, 40.0], [70.0, 30.0, 5.0])]  # nothing in common
    for some, count, asked in [
        (plans[:2], 8, 4 * 8),
        ([*plans[:2], plans[0]], 8, 0),
        (plans[:2], 20, 4 * 12),
        (plans, 8, 3 * 8),
        (plans, 50, 4 * 30 + 3 * 42),
        (plans, 20, 0),
    ]:
        before = counting.asked
        pool.grow(some, count)
        assert counting.asked - before == asked
    assert pool.evaluator.cost == Cost(counting.asked, 0) == Cost(7 * 50, 0)


def test_a_plan_that_breaks_is_not_tried_again() -> None:
    model = linear_model()
    broken, whole = Plan.of("ddim", [90.0, 40.0]), Plan.of("ddim", [80.0, 40.0])
    thirteenth = model.noise([12], SEED)

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        bad = (float(t[0]) == 90) & (x == thirteenth).flatten(1).all(1)
        return torch.where(bad.view(-1, 1, 1, 1), math.nan, model.network(x, t, label))

    pool = pool_of(replace(model, network=network), COUNTS)
    expected = pool_of(model, COUNTS).grow([broken, whole], 8)
    for found, right in zip(pool.grow([broken, whole], 8), expected, strict=True):
        assert torch.equal(vectors(found), vectors(right))
    told = "1 of samples 8 to 19 are not finite"
    for count, asked in ((20, 2 * 2 * 12), (20, 0), (50, 2 * 30), (8, 0)):
        before = pool.evaluator.cost.evaluations
        failed, fine = pool.grow([broken, whole], count)
        assert failed == told
        assert len(vectors(fine)) == count
        assert pool.evaluator.cost.evaluations - before == asked


def sampler_of(pool: Pool) -> Sampler:
    """Who samples for a pool, in this process."""
    workers = pool.evaluator.workers
    assert isinstance(workers, Here)
    return workers.sampler


def points(pool: Pool) -> int:
    """How many states there are, the first noise included."""
    return sum(len(begun._points) for kept in sampler_of(pool)._kept.values() for _, begun in kept.parts)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_pool_keeps_what_it_is_told_to(limit: int) -> None:
    first, second = Plan.of("ddim", [90.0, 50.0, 20.0]), Plan.of("ddim", [80.0, 40.0, 20.0])
    pool = pool_of(small.model(), COUNTS, limit=limit)
    features = [vectors(found) for found in pool.grow([first, second], 50)]
    pool.keep({second: 50})
    assert torch.equal(vectors(pool.grow([second], 50)[0]), features[1])
    assert pool.evaluator.cost.evaluations == 2 * 3 * 50
    assert torch.equal(vectors(pool.grow([first], 20)[0]), features[0][:20])
    assert pool.evaluator.cost.evaluations == 2 * 3 * 50 + 3 * 20
    gone = weakref.ref(pool._parts[first][0].vectors)
    pool.keep({})
    assert gone() is None
    pool.grow([Plan.of("ddim", [90.0])], 50)  # which passes no state but the first
    assert points(pool) == (len(pool.blocks) if limit else 0)
    states = sampler_of(pool)
    del pool
    gc.collect()
    assert not states._kept


def test_states_help_plans_that_begin_like_those_before() -> None:
    first, second = Plan.of("ddim", [90.0, 50.0, 20.0]), Plan.of("ddim", [90.0, 50.0, 10.0])
    for limit, asked in ((0, 3 * 20), (2**30, 2 * 20)):  # the state at 50 is kept, what the network said there is not
        pool = pool_of(small.model(), COUNTS, limit=limit)
        pool.grow([first], 20)
        assert pool.evaluator.cost.evaluations == 3 * 20
        pool.keep({first: 20})
        pool.grow([second], 20)
        assert pool.evaluator.cost.evaluations == 3 * 20 + asked


# whose noise it is


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=NAMES)
def test_samples_do_not_depend_on_the_batch(solver: str, options: dict[str, Any]) -> None:
    model, plan = linear_model(), Plan.of(solver, [90.0, 60.0, 30.0], solver_options=options)
    whole = alone(model, plan, range(64))
    for size in (1, 7):
        parts = [alone(model, plan, block) for block in blocks(64, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(alone(model, plan, [40, 3]), whole[[40, 3]])
    images = sample(model, plan, 64, SEED)
    assert torch.equal(images, sample(model, plan, 64, SEED, batch_size=7))
    assert torch.equal(images, model.decode(whole))
    assert not torch.equal(images, sample(model, plan, 64, SEED + 1))


def test_blocks_cover_all_samples() -> None:
    for count, size in itertools.product((1, 6, 7, 64), (1, 7, 64)):
        assert list(itertools.chain(*blocks(count, size))) == list(range(count))
        assert max(map(len, blocks(count, size))) <= size


def test_scores_do_not_depend_on_the_batch_size(real_images: Path) -> None:
    plans = population("ddim", {"clip": True, "eta": 1.0}, 4)
    found = []
    for size in (1, 7, 64):
        evaluator, metric = judged(small.model(), real_images, batch_size=size)
        found.append([score.value for score in evaluator.scores(plans, metric, 40, SEED)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4)


def test_the_noise_of_steps_is_fresh() -> None:
    # with the network silent and the signal gone, eta = 1 leaves what was drawn in the step
    model = replace(linear_model(), network=lambda x, t, label: torch.zeros_like(x))
    plan = Plan.of("ddim", [99.0, 50.0], end=20.0, solver_options={"eta": 1.0})
    first, second = (alone(model, plan, range(400), seed).flatten().numpy() for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert abs(np.corrcoef(first, model.noise(range(400), 1).flatten().numpy())[0, 1]) < 0.06


# plans that do not fit the model


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (Plan.of("ddim", [100.0, 5.0]), "t = 100 lies outside the time steps of small, 0 to 99"),
        (Plan.of("ddim", [50.5]), "t = 50.5 is not whole"),
        (Plan.of("dddim", [50.0]), "did you mean 'ddim'"),
        (Plan.of("ddim", [50.0], solver_options={"order": 2}), "option 'order' is unknown"),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan: Plan, told: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        stretches(plan, small.model())
    assert told in str(caught.value)


def test_layers_of_a_function_cannot_be_left_out() -> None:
    plan = Plan(solver="ddim", steps=(Step(t=50.0), Step(t=20.0, skip=frozenset({3}))))
    with pytest.raises(InputError, match="network of small is a function"):
        alone(small.model(), plan, [0])


def test_real_times_are_for_continuous_solvers() -> None:
    assert nfe(Plan.of("dpm_solver", [50.5, 20.25]), small.model()) == 2


# scores


def judged(model: Model, reference: Path, metric: str = "fid", **options: Any) -> tuple[Evaluator, Any]:
    evaluator = Evaluator(model, load_features("small:features"), **options)
    return evaluator, build(metric, load_reference(str(reference), evaluator.extractor))


def gaussian(features: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    return features.mean(0), np.cov(features.T)


def test_fid_scores_are_a_direct_computation(real_images: Path) -> None:
    model = small.model()
    evaluator, metric = judged(model, real_images, batch_size=16)
    plans = population("ddim", {"clip": True}, 4)
    scores = evaluator.scores(plans, metric, 50, SEED)
    network = small.Projection()

    def seen(images: Tensor) -> np.ndarray[Any, Any]:
        return network(images.float() / 127.5 - 1)[0].double().numpy()

    real = np.load(real_images, allow_pickle=False)["arr_0"].transpose(0, 3, 1, 2)
    target = gaussian(seen(torch.from_numpy(real)))
    for plan, score in zip(plans, scores, strict=True):
        images = model.decode(alone(model, plan, range(50)))
        assert score.value == pytest.approx(frechet_distance(*gaussian(seen(images)), *target), rel=1e-4, abs=1e-6)
        assert (score.samples, score.problem) == (50, None)
    assert evaluator.cost.evaluations + evaluator.cost.saved == 50 * sum(len(plan.steps) for plan in set(plans))


@pytest.mark.parametrize("end", [None, 3.0])
@pytest.mark.parametrize("clip", [True, False])
def test_kl_scores_are_a_direct_computation(real_images: Path, end: float | None, clip: bool) -> None:
    model = replace(small.model(), clip=clip)
    evaluator, metric = judged(model, real_images, "kl", batch_size=16)
    plans = [Plan.of("ddim", times, end=end) for times in ([90.0, 50.0, 10.0], [70.0, 50.0], [50.0])]
    scores = evaluator.scores(plans, metric, 40, SEED)
    assert evaluator.cost == Cost(40 * 4, 40 * 2)  # 50 is in all three plans and evaluated once
    x0 = (
        torch.from_numpy(np.load(real_images, allow_pickle=False)["arr_0"][:40].transpose(0, 3, 1, 2)).float() / 127.5
        - 1
    )
    noise, squared = model.noise(range(40), SEED), model.schedule.alphas_cumprod
    for plan, score in zip(plans, scores, strict=True):
        bits = 0.0
        nodes = [int(t) for t in (*plan.times, end or 0)]
        for t, after in itertools.pairwise(nodes):
            x = math.sqrt(squared[t]) * x0 + math.sqrt(1 - squared[t]) * noise
            guess = small.denoise(x, t, model.schedule)
            error = ((guess.clamp(-1, 1) if clip else guess) - x0).square().mean().item()
            gain = squared[after] / (1 - squared[after]) - squared[t] / (1 - squared[t])
            bits += 0.5 * gain * error / math.log(2)
        assert score.value == pytest.approx(bits, rel=1e-4)


@pytest.mark.parametrize("off", [0.0, 0.125])
@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
def test_kl_of_a_network_that_is_off_by_so_much(prediction: Any, off: float) -> None:
    """Each term is the gain in signal-to-noise times the square of that, so that the steps between do not matter."""
    flow = prediction == "flow_prediction"
    schedule = NoiseSchedule.flow() if flow else NoiseSchedule.cosine(100)
    images = torch.full((10, 1, 4, 4), 153, dtype=torch.uint8)
    x0 = 153 / 127.5 - 1

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha(float(t[0])), schedule.sigma(float(t[0]))
        epsilon = (x - alpha * (x0 + off)) / sigma
        return epsilon - (x0 + off) if flow else epsilon

    model = Model(network, schedule, (1, 4, 4), prediction=prediction)
    features = load_features("small:features")
    metric = build("kl", Reference.of(features(images), "flat", images=images))
    times = [1000.0, 600.5, 30.0] if flow else [99.0, 60.0, 3.0]
    for end in (None, 2.0):
        if flow:
            first, last = ((1000 - t) / t for t in (times[0], end or 1.0))
        else:
            squared = schedule.alphas_cumprod[[99, int(end or 0)]]
            first, last = np.sqrt(squared / (1 - squared))
        [score] = Evaluator(model, features).scores([Plan.of("ddim", times, end=end)], metric, 10, SEED)
        assert score.value == pytest.approx(0.5 * (last**2 - first**2) * off**2 / math.log(2), rel=1e-4, abs=1e-5)


def test_kl_asks_a_model_with_classes_for_its_null_class(real_images: Path) -> None:
    asked = []

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        asked.append(label)
        return x

    model = Model(network, NoiseSchedule.cosine(100), (1, 4, 4), classes=3, null_class=3)
    evaluator, metric = judged(model, real_images, "kl", batch_size=8)
    evaluator.scores([Plan.of("ddim", [50.0])], metric, 10, SEED)
    assert [label.tolist() for label in asked if label is not None] == [[3] * 8, [3] * 2]


def test_a_plan_that_breaks_is_worst_and_alone(real_images: Path) -> None:
    broken = [Plan.of("ddim", times, solver_options={"clip": True}) for times in ([80.0, 40.0], [95.0, 30.0])]
    whole = [Plan.of("ddim", times, solver_options={"clip": True}) for times in ([70.0, 40.0], [60.0, 30.0])]
    plans = [broken[0], whole[0], broken[1], whole[1]]
    evaluator, metric = judged(small.broken_model(), real_images, batch_size=16)
    scores = evaluator.scores(plans, metric, 40, SEED)
    for score in scores[::2]:
        assert score.value == math.inf
        assert score.problem == "16 of samples 0 to 15 are not finite"
    expected, _ = judged(small.model(), real_images, batch_size=16)
    good = expected.scores(whole, metric, 40, SEED)
    assert [score.value for score in scores[1::2]] == [score.value for score in good]
    # other workers are at the other blocks by the time that one says so
    assert evaluator.cost.evaluations == expected.cost.evaluations + 40 * 4
    evaluator, recall = judged(small.broken_model(), real_images, "recall")
    assert evaluator.scores(broken[:1], recall, 20, SEED)[0].value == -math.inf
    assert evaluator.intervals(broken[0], {"recall": recall}, 20, SEED) == ({}, "20 of samples 0 to 19 are not finite")


def test_kl_of_a_plan_that_breaks_is_infinite(real_images: Path) -> None:
    evaluator, metric = judged(small.broken_model(), real_images, "kl")
    bad, good = evaluator.scores([Plan.of("ddim", [80.0]), Plan.of("ddim", [60.0])], metric, 20, SEED)
    assert (bad.value, bad.problem) == (math.inf, "the metric is inf")
    assert math.isfinite(good.value)


def test_intervals_belong_to_the_same_samples(real_images: Path) -> None:
    evaluator, fid = judged(small.model(), real_images)
    kl = build("kl", fid.reference)
    plan = Plan.of("ddim", grid("uniform", 3, evaluator.model.schedule), solver_options={"clip": True})
    found, problem = evaluator.intervals(plan, {"kl": kl, "fid": fid, "recall": build("recall", fid.reference)}, 60, 3)
    assert problem is None
    assert set(found) == {"fid", "recall", "kl"}
    assert evaluator.cost.evaluations == 2 * 3 * 60  # samples once for both, real images once
    for name, interval in found.items():
        [score] = evaluator.scores([plan], build(name, fid.reference), 60, 3)
        assert interval.value == pytest.approx(score.value, rel=1e-6)
        assert interval.low < interval.value < interval.high
    more, _ = evaluator.intervals(plan, {"fid": fid}, 960, 3)
    assert more["fid"].high - more["fid"].low < 0.6 * (found["fid"].high - found["fid"].low)


# seeds


def test_purposes_have_their_own_seeds() -> None:
    seeds = [derive_seed(seed, purpose) for seed in range(200) for purpose in ("search", "finalists", "confirm")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert not set(seeds) & set(range(200))
    # what a user's seed stands for must not change between releases: sha256("0 confirm")
    assert derive_seed(0, "confirm") == 494002371678713866


def test_figures_stand_on_noise_of_their_own(real_images: Path) -> None:
    evaluator, metric = judged(small.model(), real_images)
    plan = Plan.of("ddim", [80.0, 40.0], solver_options={"clip": True})
    plans = {"a": plan, "b": Plan.of("plms", [80.0, 40.0])}
    rows = confirm(evaluator, metric.reference, plans, ["fid", "recall"], 50, 7)
    assert [(row.name, row.nfe, row.samples, row.seed) for row in rows] == [("a", 2, 50, 7), ("b", 3, 50, 7)]
    [fresh] = evaluator.scores([plan], metric, 50, derive_seed(7, "confirm"))
    others = [evaluator.scores([plan], metric, 50, derive_seed(7, word))[0] for word in ("search", "finalists")]
    assert rows[0].scores["fid"].value == fresh.value
    assert fresh.value not in [other.value for other in others]
    [again] = confirm(evaluator, metric.reference, {"a": plan}, ["fid", "recall"], 50, 7)
    assert again == rows[0]
    [other_seed] = confirm(evaluator, metric.reference, {"a": plan}, ["fid"], 50, 8)
    assert other_seed.scores["fid"] != rows[0].scores["fid"]


def test_rows_of_broken_plans_hold_no_figures(real_images: Path) -> None:
    evaluator, metric = judged(small.broken_model(), real_images)
    [row] = confirm(evaluator, metric.reference, {"a": Plan.of("ddim", [80.0])}, ["fid", "kl"], 20, 0)
    assert row.problem == "20 of samples 0 to 19 are not finite"
    assert row.to_json()["scores"] == {}
    [row] = confirm(evaluator, metric.reference, {"a": Plan.of("ddim", [80.0])}, ["kl"], 20, 0)
    assert row.to_json()["scores"] == {"kl": {"value": None, "low": None, "high": None}}
    assert figure(row.to_json()["scores"]["kl"]) == "not finite"


def test_describe_is_one_line() -> None:
    assert describe(Plan.of("ddim", [926.0, 690.0, 15.0])) == "ddim at 926, 690, 15"
    assert describe(Plan.of("dpm_solver", [926.123, 1.0], end=0.5)) == "dpm_solver at 926.12, 1, to 0.5"


# what is checked before any work


class Silent(nn.Module):
    """Features without logits, for images of 16 pixels only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.eye(16)


def statistics(dimension: int) -> Reference:
    return Reference(np.zeros(dimension), np.eye(dimension), name="numbers")


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (lambda e: e.check(build("inception_score", statistics(16))), "no logits"),
        (lambda e: e.check(build("fid", statistics(8))), "have 16 features and reference numbers has 8"),
        (lambda e: replace(e, model=linear_model((1, 5, 5))).check(build("fid", statistics(16))), "do not fit"),
    ],
)
def test_what_does_not_fit_is_found_without_work(check: Callable[[Evaluator], None], told: str) -> None:
    evaluator = Evaluator(linear_model(), Extractor(Silent()))
    counting = Counting(evaluator.model)
    evaluator.check(build("fid", statistics(16)))
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        check(evaluator)
    assert told in str(caught.value)
    assert counting.asked == 0


def test_kl_needs_real_images_of_the_models_kind(real_images: Path) -> None:
    evaluator, metric = judged(small.model(), real_images, "kl")
    evaluator.check(metric)
    with pytest.raises(InputError, match="kl of 601 samples needs as many real images, it has 600"):
        evaluator.scores([Plan.of("ddim", [50.0])], metric, 601, SEED)
    with pytest.raises(InputError, match="are not of the model's shape"):
        replace(evaluator, model=linear_model((1, 5, 5))).check(metric)
    with pytest.raises(InputError, match="--null-class"):
        replace(evaluator, model=replace(small.model(), classes=3)).check(metric)
    with pytest.raises(InputError, match="needs real images"):
        KL(statistics(8))


# references and plans by name


def test_a_models_own_reference_is_used_where_none_is_given(real_images: Path) -> None:
    with pytest.raises(InputError, match="brings no reference; give --reference"):
        prepare(small.model())
    evaluator, source = prepare(replace(small.model(), reference=real_images), batch_size=9)
    assert (source, evaluator.batch_size, evaluator.extractor.name) == (str(real_images), 9, "small:features")
    assert prepare(small.model(), reference="teacher:10")[1] == "teacher:10"
    reference = check_source(source, evaluator, ["fid", "kl"])
    assert reference is not None
    assert reference.vectors is not None
    assert len(reference.vectors) == 600
    with pytest.raises(InputError, match="no metric is named"):
        check_source(source, evaluator, [])


def test_a_teacher_is_its_own_samples(real_images: Path) -> None:
    model = small.model()
    evaluator, source = prepare(model, reference="teacher:20:150")
    assert check_source(source, evaluator, ["fid"]) is None
    reference = find_reference(source, evaluator)
    assert evaluator.cost.evaluations == 20 * 150
    assert (reference.extractor, reference.name) == ("small:features", "teacher:20:150")
    plan = Plan.of("ddim", [95.0 - 5 * i for i in range(20)], solver_options={"clip": True})
    assert teacher_plan(model, 20) == plan
    assert reference.vectors is not None
    # compared with samples of other noise, it is near and not equal
    [found] = evaluator.features([plan], 150, 0)
    assert isinstance(found, Features)
    assert not torch.equal(found.vectors, reference.vectors)
    [near] = evaluator.scores([plan], build("fid", reference), 150, 0)
    [far] = evaluator.scores([Plan.of("ddim", [95.0])], build("fid", reference), 150, 0)
    assert 0 < near.value < 0.2 * far.value
    with pytest.raises(InputError, match="kl needs real images"):
        check_source(source, evaluator, ["kl"])
    with pytest.raises(InputError, match="cannot be its own reference"):
        find_reference("teacher:5:8", replace(evaluator, model=small.broken_model()))


@pytest.mark.parametrize(
    "source", ["teacher:", "teacher:abc", "teacher:0", "teacher:5:0", "teacher:5:6:7", "teacher:-5"]
)
def test_malformed_teachers_are_refused(source: str) -> None:
    with pytest.raises(InputError, match=r"write teacher:STEPS or teacher:STEPS:SAMPLES"):
        parse_teacher(source, small.model())


def test_teachers_have_no_more_steps_than_the_model() -> None:
    with pytest.raises(InputError, match="1 to 100 time steps"):
        parse_teacher("teacher:101", small.model())
    assert parse_teacher("teacher:100", small.model()) == (100, 2000)
    assert parse_teacher("reals", small.model()) is None


def test_plans_come_from_files_and_grids(tmp_path: Path) -> None:
    model = small.model()
    assert plan_of("uniform:4", model).times == (75.0, 50.0, 25.0, 0.0)
    assert plan_of("uniform:4", model).solver_options == {"clip": True}
    continuous = plan_of("karras:5", model, "dpm_solver++", {"order": 3})
    assert continuous.solver_options == {"clip": True, "order": 3}
    assert any(not t.is_integer() for t in continuous.times)
    assert all(t.is_integer() for t in plan_of("karras:5", model, "plms").times)
    written = Plan.of("plms", [60.0, 3.0])
    written.save(tmp_path / "p.json")
    assert plan_of(str(tmp_path / "p.json"), model) == written
    Plan.of("ddim", [600.0]).save(tmp_path / "far")
    for name, told in [
        (str(tmp_path / "far"), "lies outside the time steps"),
        (str(tmp_path / "none.json"), "cannot be read"),
        ("unifrm:4", "did you mean 'uniform'"),
        ("uniform", "write uniform:4"),
        ("uniform:0", "1 to 100 time steps"),
    ]:
        with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
            plan_of(name, model)
        assert told in str(caught.value)


def test_a_plan_is_not_sampled_with_another_solver_than_its_own(tmp_path: Path) -> None:
    model, file = small.model(), tmp_path / "p.json"
    written = Plan.of("plms", [60.0, 3.0])
    written.save(file)
    assert plan_of(str(file), model, "plms") == written
    with pytest.raises(InputError, match=r"p\.json' is for solver plms, not ddim; leave the solver out"):
        plan_of(str(file), model, "ddim")
    with pytest.raises(InputError, match=r"p\.json' has its own solver options; leave eta out"):
        plan_of(str(file), model, None, {"eta": 0.5})


def test_the_solver_is_the_grids_where_a_plan_is_drawn_beside_one(tmp_path: Path) -> None:
    model, file = small.model(), str(tmp_path / "p.json")
    Plan.of("plms", [60.0, 3.0]).save(Path(file))
    assert load_plan(file, model, "unipc", None, beside="uniform").solver == "plms"
    assert load_plan("uniform:2", model, "unipc", ["order=2"], beside=file).solver == "unipc"
    assert load_plan("uniform:2", model, None, None, beside=file).solver == "ddim"
    for beside in (None, file):
        with pytest.raises(InputError, match="leave the solver out"):
            load_plan(file, model, "unipc", None, beside)


@pytest.mark.parametrize("value", [[1], None, math.nan, "x", {"a": 1}])
def test_solver_options_of_other_types_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"solver ddim: option eta = .* is not a float"):
        plan_of("uniform:4", small.model(), "ddim", {"eta": value})


# from Python, and images for other programs


def test_images_give_the_figure_to_whoever_measures_them(real_images: Path, tmp_path: Path, command: Command) -> None:
    model, plan, folder = small.model(), Plan.of("ddim", [90, 60, 20]), tmp_path / "images"
    row = evaluate(plan, model, "fid", real_images, samples=70, seed=4, images=folder, batch_size=32)
    assert [file.name for file in sorted(folder.iterdir())] == [f"{number:05d}.png" for number in range(70)]
    extractor = load_features(model.features, model.device)
    ours, theirs = (load_reference(str(path), extractor) for path in (folder, real_images))
    distance = frechet_distance(ours.mu, ours.sigma, theirs.mu, theirs.sigma)
    assert row.scores["fid"].value == pytest.approx(distance, rel=1e-6)
    plan.save(tmp_path / "plan.json")
    line = f"evaluate {tmp_path / 'plan.json'} --model small:model --reference {real_images} --samples 70 --seed 4"
    line += f" --batch-size 32 --json --save-images {tmp_path / 'again'}"
    assert json.loads(command(line).out)["scores"] == row.to_json()["scores"]
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    full = command(line)
    assert (full.status, full.out) == (2, "")
    assert "again: is there already; give a new or an empty folder for the images" in full.err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"samples": 1}, "samples = 1 is less than 2"),
        ({"metric": []}, "no metric is named"),
        ({"metric": "fid,kdi"}, "metric 'kdi' is unknown .did you mean 'kid'"),
        ({"images": "no/such"}, "cannot be made; no is no folder"),
        ({"reference": "gone.npz"}, "gone.npz"),
    ],
)
def test_what_cannot_be_evaluated(real_images: Path, given: dict[str, Any], told: str) -> None:
    options: dict[str, Any] = {"reference": real_images, "samples": 40} | given
    with pytest.raises(InputError, match=told):
        evaluate(Plan.of("ddim", [90, 20]), small.model(), **options)


def test_images_of_other_channels_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images of 2 channels cannot be written"):
        evaluate(Plan.of("ddim", [50]), linear_model((2, 4, 4)), reference="teacher:5", images=tmp_path / "images")
    assert not (tmp_path / "images").exists()
