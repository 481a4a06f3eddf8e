"""A fault-tolerant pool of Ray actors: dead or overdue actors are replaced and their work is retried."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import Enum
from math import inf
from typing import Any

import ray

from fedprox.engines.ray_cluster import ClusterHealth
from fedprox.errors import RunStopped, UserError, with_location
from fedprox.process import announced

START_S = 300.0  # an actor starts in 3 to 10 s, or longer with much data; on a busy cluster it may never start
MAX_DEATHS = 3  # of actors over one job; then the job is the likely cause
_CHECK_S = 2.0  # interval between checks of the cluster's health
_log = logging.getLogger("fedprox")


class JobFailure(Enum):
    """Reason why a job has no result: it took too long, or its actors died."""

    LATE = "late"
    CRASHED = "its process died repeatedly: out of memory, or a crash in compiled code"


class ActorPool:
    """Actors of one class, which has the methods `setup(what)` and `run(*job)`.

    Ray's own restarts and retries are off: a restarted actor would start with the job for which it was stopped.

    Attributes:
        health: Checks that the cluster is alive.
    """

    def __init__(self, worker: type, num_cpus: float, num_gpus: float) -> None:
        """Prepare a pool without actors.

        Args:
            worker: The actors' class.
            num_cpus: CPUs of one actor.
            num_gpus: GPUs of one actor.
        """
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
        self._remote: Any = ray.remote(worker).options(**options)
        self.health = ClusterHealth()
        self._what: Any = None
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._deaths_at_start = 0

    @property
    def actors(self) -> list[Any]:
        """The idle actors and those that are starting."""
        return [*self._idle, *self._starting.values()]

    def setup(self, what: Any, num_actors: int) -> None:
        """Call `setup` on all actors, start new ones up to the given number, and wait for them.

        Raises:
            UserError: If no actor starts in time, or one raises a UserError.
        """
        self._what = what
        self._check_idle()
        for _ in range(num_actors - len(self._starting)):
            self._start()
        until = time.monotonic() + START_S
        with announced(f"starting Ray actors, {num_actors} in all", after_s=2.0):
            while self._starting and time.monotonic() < until:
                self._take_in(self._ready(until))
        if not self._idle:
            raise UserError(
                f"none of {num_actors} Ray actors started within {START_S:g} s: other jobs use the cluster's "
                "resources; wait for them, or lower client_resources"
            )

    def run(self, jobs: Sequence[tuple[Any, ...]], timeout: float | None) -> list[Any]:
        """Return each job's result, or the reason why it has none, in the order of the jobs.

        Args:
            jobs: Arguments of `run`; idle actors take them in this order.
            timeout: Seconds from the start of the first job; None for no limit.

        Raises:
            RunStopped: If the cluster is lost.
        """
        # A job, by its number, waits, is busy on an actor, or has a result; if its actor dies, it waits again.
        results: dict[int, Any] = {}
        waiting, deaths = deque(range(len(jobs))), Counter[int]()
        busy: dict[Any, tuple[Any, int]] = {}
        until, give_up = inf, time.monotonic() + START_S
        try:
            while (waiting or busy) and time.monotonic() < until:
                while waiting and self._idle:
                    actor, number = self._idle.pop(0), waiting.popleft()
                    busy[actor.run.remote(*jobs[number])] = (actor, number)
                    if timeout is not None:
                        until = min(until, time.monotonic() + timeout)
                done = self._ready(until, busy)
                self._take_in(done)
                for ref in filter(busy.__contains__, done):
                    actor, number = busy[ref]
                    results[number] = self._result(ref)
                    del busy[ref]
                    if results[number] is not JobFailure.CRASHED:
                        self._idle.append(actor)
                        continue
                    deaths[number] += 1
                    _log.warning("a Ray actor died while it worked; another one computes its clients")
                    self._replace([actor])
                    self._check_idle()
                    if deaths[number] < MAX_DEATHS:
                        waiting.append(number)
                if busy or not waiting:  # give up only after a time in which jobs wait and no actor works
                    give_up = time.monotonic() + START_S
                elif time.monotonic() > give_up:
                    raise RunStopped(f"no Ray actor started within {START_S:g} s; continue with resume=<run directory>")
        finally:
            self._replace([actor for actor, _ in busy.values()])  # they are late, or an error ends this call
        unfinished = {*waiting, *(number for _, number in busy.values())}
        return [JobFailure.LATE if number in unfinished else results[number] for number in range(len(jobs))]

    def query(self, method: str, within_s: float = 5.0) -> list[Any]:
        """Return the results of a method without arguments from the actors that answer in time."""
        try:
            self.health.check()
            refs = [getattr(actor, method).remote() for actor in self.actors]
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=within_s)
            return [result for result in map(self._result, done) if result is not JobFailure.CRASHED]
        except RunStopped:
            return []

    def end(self) -> None:
        """End all actors."""
        for actor in self.actors:
            ray.kill(actor)
        self._idle, self._starting = [], {}

    def _ready(self, until: float, busy: Iterable[Any] = ()) -> list[Any]:
        """Return a result that is ready, as a list; empty if none is ready for a while."""
        left_s = max(0.0, min(until - time.monotonic(), _CHECK_S))
        done, _ = ray.wait([*busy, *self._starting], num_returns=1, timeout=left_s)
        if not done:
            self.health.check()
        return done

    def _result(self, ref: Any) -> Any:
        """Return a result; CRASHED if its actor is dead."""
        self.health.check()
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None  # without the actor's traceback
            raise RunStopped(f"in a Ray actor: {with_location(error.cause or error)}") from error
        except ray.exceptions.RayError:
            return JobFailure.CRASHED

    def _start(self) -> None:
        actor = self._remote.remote()
        self._starting[actor.setup.remote(self._what)] = actor

    def _take_in(self, done: Iterable[Any]) -> None:
        """Make actors that have started idle, and replace those that died while starting."""
        for ref in filter(self._starting.__contains__, done):
            actor, result = self._starting.pop(ref), self._result(ref)
            if result is not JobFailure.CRASHED:
                self._idle.append(actor)
                self._deaths_at_start = 0
                continue
            self._deaths_at_start += 1
            if self._deaths_at_start > 10 * (1 + len(self.actors)):
                raise RunStopped("Ray actors keep dying while they start; `ray status` may show why")
            self._replace([actor])

    def _check_idle(self) -> None:
        """Call `setup` on all idle actors again, which shows whether they are alive: several may die at once."""
        self._starting |= {actor.setup.remote(self._what): actor for actor in self._idle}
        self._idle = []

    def _replace(self, actors: Sequence[Any]) -> None:
        for actor in actors:
            if ray.is_initialized():  # otherwise the cluster is lost
                ray.kill(actor)
                self._start()
