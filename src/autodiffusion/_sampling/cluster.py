"""Workers in processes of their own: Ray actors on this machine or a cluster, each with the model.

The driver, which scores and writes, hands out tasks; what comes back are features. A task goes to the worker that has
the states of its block, or to another where that one is busy or gone, which makes the states again. Neither features
nor costs depend on who did what, so workers may be of unequal speed, come late, die and be replaced.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from types import TracebackType
from typing import Any

from autodiffusion._errors import InputError, RunError
from autodiffusion._interrupts import asked, checkpoint
from autodiffusion._sampling.actor import Recipe, Worker
from autodiffusion._sampling.blocks import Done, Task
from autodiffusion._sampling.connection import connect, package
from autodiffusion._sampling.errands import Errand, failure, said
from autodiffusion._sampling.sampling import Tick

DEATHS = 10
"""Workers that may be made and die with nothing done in between; then something is wrong with all."""
LOOK = 10.0
"""Seconds after which the cluster is asked again how many workers there is room for."""


class Cluster:
    """Ray actors that sample for the driver, as a context manager.

    What fails is tried again on another worker, then plan by plan; a plan that fails alone has no score, and the reason
    stands in the ledger.

    Attributes:
        count: workers wanted; ``None`` for as many as the cluster has GPUs, or CPUs where the model is not on a GPU,
            also when that changes. There may be fewer for a time.
        timeout: seconds that a plan may take on a block, one whose states are made again included; then its worker is
            replaced.
    """

    def __init__(
        self, recipe: Recipe, count: int | None, address: str | None = None, timeout: float | None = None
    ) -> None:
        """Not started yet.

        Args:
            address: of a running Ray cluster, ``auto`` or ``host:6379``; ``None`` for one on this
                machine, bound to its loopback, that ends with this object.
        """
        on_gpu = str(recipe.options.get("device", "cpu")).startswith("cuda")
        self.recipe = replace(recipe, options=recipe.options | {"device": "cuda"}) if on_gpu else recipe
        self.count, self.timeout, self._address, self._on_gpu = count, timeout or math.inf, address, on_gpu
        self._idle: dict[int, Any] = {}
        self._preparing: dict[Any, tuple[int, Any]] = {}
        self._busy: dict[Any, tuple[int, Any, Errand, float]] = {}
        self._owners: dict[tuple[str, int], int] = {}
        self._made, self._deaths, self._looked, self._open = 0, 0, -math.inf, False
        self._proven = 0  # the number of the first worker that was made after something was done
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        """Starts the workers, and waits for the first.

        Raises:
            InputError: Ray is not installed, cannot be reached, or a worker cannot load the model.
        """
        # Ray prints there what happens to workers, where a command's one JSON object is expected
        self._stack.enter_context(redirect_stdout(sys.stderr))
        try:
            ray = connect(self._address, self.count)
            self._stack.callback(ray.shutdown)  # ends the actors of this driver
            self._open = True
            while not self._idle:
                self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, and Ray on this machine."""
        self._open = False
        self._idle, self._preparing, self._busy = {}, {}, {}
        self._stack.close()

    def each(self, tasks: Sequence[Task], tick: Tick | None = None) -> Iterator[tuple[int, Done]]:
        """What comes of tasks, as it comes, each with its place among them.

        Raises:
            InputError: a plan cannot be followed.
            RunError: workers die one after the other.
            KeyboardInterrupt: it was asked for, and the tasks that were begun are done.
        """
        waiting = [Errand(place, task) for place, task in enumerate(tasks)]
        ours, open_errands = {id(errand): errand for errand in waiting}, len(waiting)
        while open_errands:
            if not self._busy:
                checkpoint()
            for number in list(self._idle):
                if waiting and not asked():
                    self._hand_out(number, self._choose(number, waiting))
            for errand, spent in self._wait():
                if id(errand) not in ours:  # of an earlier call that was given up
                    continue
                if tick and spent:
                    tick(spent)
                if errand.left:
                    waiting.insert(0, errand)
                else:
                    open_errands -= 1
                    yield errand.place, errand.result()

    def forget(self, noise: str) -> None:
        """Frees the states of a noise."""
        self._owners = {key: owner for key, owner in self._owners.items() if key[0] != noise}
        if self._open:
            actors = [*self._idle.values(), *(actor for _, actor, _, _ in self._busy.values())]
            for actor in actors:
                actor.forget.remote(noise)

    def _spawn(self) -> None:
        actor = package().remote(Worker).options(num_cpus=1, num_gpus=int(self._on_gpu)).remote(self.recipe)
        self._preparing[actor.prepare.remote()] = (self._made, actor)
        self._made += 1

    def _choose(self, number: int, waiting: list[Errand]) -> Errand:
        """Takes the errand that this worker does next: its own, then nobody's, then one of whoever has most waiting."""
        owners = [self._owners.get((errand.task.noise, errand.task.block.start)) for errand in waiting]
        there = {*self._idle, *(busy for busy, *_ in self._busy.values())}
        owners = [owner if owner in there else None for owner in owners]
        for wanted in (number, None):
            if wanted in owners:
                return waiting.pop(owners.index(wanted))
        [(busiest, _)] = Counter(owners).most_common(1)
        return waiting.pop(len(owners) - 1 - owners[::-1].index(busiest))

    def _hand_out(self, number: int, errand: Errand) -> None:
        actor, task = self._idle.pop(number), errand.task
        if task.limit:
            self._owners[task.noise, task.block.start] = number
        self._busy[actor.run.remote(errand.next)] = (number, actor, errand, time.monotonic())

    def _fill(self) -> None:
        """Makes as many workers as are wanted, those that died among them."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        room = package().cluster_resources().get("GPU" if self._on_gpu else "CPU", 0) if self.count is None else 0
        for _ in range((self.count or max(1, int(room))) - len(self._idle) - len(self._busy) - len(self._preparing)):
            self._spawn()

    def _wait(self) -> list[tuple[Errand, int]]:
        """What has come meanwhile: errands that went on or failed, with what they have spent."""
        ray = package()
        self._fill()
        ready, _ = ray.wait([*self._busy, *self._preparing], num_returns=1, timeout=1.0)
        came = [self._took(ref) for ref in ready if ref in self._busy]
        for ref in [ref for ref in ready if ref in self._preparing]:
            self._prepared(ref)
        now = time.monotonic()
        for ref, (_, actor, errand, since) in list(self._busy.items()):
            if now - since > self.timeout * errand.next.walks:
                del self._busy[ref]
                self._replace(actor)
                errand.failed(f"sampling took longer than {self.timeout:g} s")
                came.append((errand, 0))
        return came

    def _prepared(self, ref: Any) -> None:
        """A worker is ready, or says why it will not be."""
        ray = package()
        number, actor = self._preparing.pop(ref)
        try:
            problem = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._died(number, actor, said(error))
            return
        if not problem:
            self._idle[number] = actor
        elif self._idle or self._busy:  # a machine that came later lacks something; others are at work
            warnings.warn(f"a worker cannot start ({problem}); the others go on", stacklevel=2)
            ray.kill(actor)
        else:
            raise InputError(f"worker: {problem}")

    def _took(self, ref: Any) -> tuple[Errand, int]:
        """What a worker answers."""
        ray = package()
        number, actor, errand, _ = self._busy.pop(ref)
        try:
            done: Done = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            self._idle[number] = actor
            errand.failed(failure(error.cause or error))
            return errand, 0
        except ray.exceptions.RayError as error:
            errand.went("sampling ended the worker")
            self._died(number, actor, said(error))
            return errand, 0
        self._idle[number], self._deaths, self._proven = actor, 0, self._made
        errand.done(done)
        return errand, done.cost.evaluations

    def _died(self, number: int, actor: Any, reason: str) -> None:
        """A worker is gone; another takes its place. When a machine goes, many do at once that have worked."""
        self._deaths += number >= self._proven
        if self._deaths >= DEATHS:
            raise RunError(f"workers: {DEATHS} died one after the other ({reason}); what was scored is kept")
        self._replace(actor)

    def _replace(self, actor: Any) -> None:
        package().kill(actor)
        self._looked = -math.inf
