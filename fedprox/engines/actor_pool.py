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
from fedprox.errors import RunStopped, UserError, reason
from fedprox.process import announced

START_S = 300.0  # an actor's start takes 3 to 10 s, with much data longer; a busy cluster may never have room
MAX_DEATHS = 3  # of actors over one job; more are no accident
_LOOK_S = 2.0  # how often it is looked whether the cluster is still there
_log = logging.getLogger("fedprox")


class JobFailure(Enum):
    """What became of a job that has no result: it took too long, or killed one actor after another."""

    LATE = "late"
    CRASHED = "its process died time and again: out of memory, or a crash in compiled code"


class ActorPool:
    """Actors of one class, which have the methods `setup(what)` and `run(*job)`.

    Ray itself restarts and repeats nothing: a restarted actor would begin with the job that it was stopped for.

    Attributes:
        health: Tells whether the cluster is still there.
    """

    def __init__(self, worker: type, num_cpus: float, num_gpus: float) -> None:
        """Begin without actors.

        Args:
            worker: Their class.
            num_cpus: CPUs of one actor.
            num_gpus: GPUs of one actor.
        """
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
        self._remote: Any = ray.remote(worker).options(**options)
        self.health = ClusterHealth()
        self._what: Any = None
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._lost_in_a_row = 0

    @property
    def actors(self) -> list[Any]:
        """The actors that wait for work, and those that are starting."""
        return [*self._idle, *self._starting.values()]

    def setup(self, what: Any, num_actors: int) -> None:
        """Let all actors, and at least so many, set something up, and return when they have.

        Raises:
            UserError: If none has started for long, or one finds a wrong setting.
        """
        self._what = what
        self._look_after_idle()
        for _ in range(num_actors - len(self._starting)):
            self._start()
        until = time.monotonic() + START_S
        with announced(f"starting Ray actors, {num_actors} in all", after_s=2.0):
            while self._starting and time.monotonic() < until:
                self._take_in(self._ready(until))
        if not self._idle:
            raise UserError(
                f"none of {num_actors} Ray actors started within {START_S:g} s: other jobs hold the cluster's "
                "resources; wait for them, or lower client_resources"
            )

    def run(self, jobs: Sequence[tuple[Any, ...]], timeout: float | None) -> list[Any]:
        """Return what each job gave, in their order, or why it gave nothing.

        Args:
            jobs: Arguments of `run`; taken up in this order by the actors that are free.
            timeout: Seconds from when the first job begins; None for no limit.

        Raises:
            RunStopped: If the cluster is lost.
        """
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
                    _log.warning("a Ray actor died at work; another one does its clients")
                    self._replace([actor])
                    self._look_after_idle()
                    if deaths[number] < MAX_DEATHS:
                        waiting.append(number)
                if busy or not waiting:
                    give_up = time.monotonic() + START_S
                elif time.monotonic() > give_up:
                    raise RunStopped(f"no Ray actor started within {START_S:g} s; go on with resume=<run directory>")
        finally:
            self._replace([actor for actor, _ in busy.values()])  # they are late, or an error ends it all
        unfinished = {*waiting, *(number for _, number in busy.values())}
        return [JobFailure.LATE if number in unfinished else results[number] for number in range(len(jobs))]

    def query(self, question: str, within_s: float = 5.0) -> list[Any]:
        """Return what a method without arguments gives, from the actors that answer in time."""
        try:
            self.health.check()
            refs = [getattr(actor, question).remote() for actor in self.actors]
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=within_s)
            return [answer for answer in map(self._result, done) if answer is not JobFailure.CRASHED]
        except RunStopped:
            return []

    def end(self) -> None:
        """End all actors."""
        for actor in self.actors:
            ray.kill(actor)
        self._idle, self._starting = [], {}

    def _ready(self, until: float, busy: Iterable[Any] = ()) -> list[Any]:
        """Return an answer that has come, or none where there is none for a while."""
        left_s = max(0.0, min(until - time.monotonic(), _LOOK_S))
        done, _ = ray.wait([*busy, *self._starting], num_returns=1, timeout=left_s)
        if not done:
            self.health.check()
        return done

    def _result(self, ref: Any) -> Any:
        """Return an answer; CRASHED if its actor is dead."""
        self.health.check()
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None  # without the actor's traceback
            raise RunStopped(f"in a Ray actor: {reason(error.cause or error)}") from error
        except ray.exceptions.RayError:
            return JobFailure.CRASHED

    def _start(self) -> None:
        actor = self._remote.remote()
        self._starting[actor.setup.remote(self._what)] = actor

    def _take_in(self, done: Iterable[Any]) -> None:
        """Let those that have started wait for work, and replace those that died over it."""
        for ref in filter(self._starting.__contains__, done):
            actor, answer = self._starting.pop(ref), self._result(ref)
            if answer is not JobFailure.CRASHED:
                self._idle.append(actor)
                self._lost_in_a_row = 0
                continue
            self._lost_in_a_row += 1
            if self._lost_in_a_row > 10 * (1 + len(self.actors)):
                raise RunStopped("Ray actors die while they start, one after another; `ray status` may tell why")
            self._replace([actor])

    def _look_after_idle(self) -> None:
        """Let all that wait for work show that they live and have set up what is needed: several may die at once."""
        self._starting |= {actor.setup.remote(self._what): actor for actor in self._idle}
        self._idle = []

    def _replace(self, actors: Sequence[Any]) -> None:
        for actor in actors:
            if ray.is_initialized():  # or else the cluster was lost
                ray.kill(actor)
                self._start()
