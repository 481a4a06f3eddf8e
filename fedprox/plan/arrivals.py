"""When clients' updates arrive, in virtual time: plans with a clock.

How long a client takes depends on its device and its planned steps, never on weights. So who starts when with which
model, and arrives when, is a plan, too: a pure function of the settings and the seed, whose first rounds do not depend
on how many follow.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedprox.plan.devices import Devices
from fedprox.plan.plan import ClientTask, CohortPlan, numbered

Tasks = tuple[ClientTask, ...]


@runtime_checkable
class TimedPlan(CohortPlan, Protocol):
    """A plan that knows how long its rounds take."""

    @property
    def devices(self) -> Devices:
        """How fast the clients are."""

    def seconds(self, round_num: int, tasks: Tasks) -> float:
        """Return the virtual seconds that a round with these tasks, which are the plan's, takes."""

    def in_flight(self, round_num: int) -> frozenset[int]:
        """Return the earlier rounds whose models clients still train when a round has ended; 0: the initial model."""

    def weight(self, task: ClientTask) -> float:
        """Return the factor of a client's update."""


@dataclass(frozen=True)
class _OnDevices:
    """A plan whose clients have devices.

    Attributes:
        plan: The cohorts.
        devices: How fast the clients are.
    """

    plan: CohortPlan
    devices: Devices

    @property
    def client_sizes(self) -> NDArray[np.int64]:
        """Number of training examples of each client, shape (num_clients,)."""
        return self.plan.client_sizes

    @property
    def sampling(self) -> str:
        """See `fedprox.plan.plan.Plan`."""
        return self.plan.sampling


@dataclass(frozen=True)
class WaitingPlan(_OnDevices):
    """Rounds that wait for their slowest client, or end at a deadline.

    With a deadline D, client k does min(planned steps, floor((D - transfer_k) / c_k)) steps, and one that has no time
    for a single step is left out. Clients that are dropped are not waited for.

    Attributes:
        plan: The cohorts and their full work.
        devices: How fast the clients are.
        deadline_s: D, in virtual seconds; None to wait.
        drops_stragglers: Whether clients that cannot do all their work are left out.
    """

    deadline_s: float | None = None
    drops_stragglers: bool = False

    @cached_property
    def _plan(self) -> CohortPlan:
        return replace(self.plan, drops_stragglers=self.drops_stragglers)  # type: ignore[type-var]

    def tasks(self, round_num: int) -> Tasks:
        """Return the round's tasks in the order of aggregation, dropped ones included."""
        tasks = self._plan.tasks(round_num)
        return tasks if self.deadline_s is None else tuple(self._cut(task, self.deadline_s) for task in tasks)

    def _cut(self, task: ClientTask, deadline_s: float) -> ClientTask:
        """Return the part of a client's full work for which it has time."""
        num_steps = self.devices.steps_within(deadline_s, task.client)
        if num_steps >= task.num_steps:
            return task
        num_epochs = -(-num_steps * task.num_epochs // task.num_steps)  # full work has whole epochs
        is_dropped = self.drops_stragglers or num_steps == 0
        return replace(task, num_epochs=num_epochs, num_steps=num_steps, is_straggler=True, is_dropped=is_dropped)

    def seconds(self, round_num: int, tasks: Tasks) -> float:
        """Return the deadline, or the time of the slowest client; one that was drawn twice works twice."""
        if self.deadline_s is not None:
            return self.deadline_s
        busy_s = defaultdict[int, float](float)
        for task in tasks:
            if not task.is_dropped:
                busy_s[task.client] += self.devices.seconds(task)
        return max(busy_s.values(), default=0.0)

    def in_flight(self, round_num: int) -> frozenset[int]:
        """Return nothing: all clients of a round start at its model."""
        return frozenset()

    def weight(self, task: ClientTask) -> float:
        """Return 1."""
        return 1.0


class ServerStep(NamedTuple):
    """A buffered round.

    Attributes:
        tasks: Those of the updates in the buffer, in the order in which they arrived.
        end_s: Virtual time at which the last of them arrived.
        in_flight: See `TimedPlan`.
    """

    tasks: Tasks
    end_s: float
    in_flight: frozenset[int]


@dataclass(frozen=True)
class BufferedPlan(_OnDevices):
    """Updates that are taken as they arrive (FedBuff, Nguyen et al. 2022, algorithm 1; FedAsync with a buffer of 1).

    `concurrency` clients train at any time. When one has sent its update, another starts at the current model. When
    the server has K updates, it takes a step, w <- w + (eta / K) sum s(tau) (w_k - w^{t - tau}), which ends a round.
    tau is the number of steps since the client started, and s(tau) = (1 + tau)^-a.

    Clients start in the order of the cohorts of `plan`, which has `concurrency` clients per round; one that still
    trains is passed over. So clients that do not train start equally often, however fast they are. Updates that
    arrive at the same time are all taken, in the order of their starts, before clients start. With a buffer of
    `concurrency`, and clients that all take the same time, rounds are therefore those of `plan`.

    Attributes:
        plan: The order in which clients start, and their work.
        devices: How fast the clients are.
        concurrency: Clients that train at the same time, at most num_clients.
        buffer: K, at most concurrency.
        discount: a, >= 0; 0 for updates that all count the same.
        server_learning_rate: eta, > 0.
        drops_stragglers: Without effect: there are no stragglers.
    """

    concurrency: int
    buffer: int
    discount: float = 0.5
    server_learning_rate: float = 1.0
    drops_stragglers: bool = False
    _steps: list[ServerStep] = field(default_factory=list, init=False, repr=False, compare=False)

    def tasks(self, round_num: int) -> Tasks:
        """Return the tasks of the K updates that end a round, in the order in which they arrive."""
        return self._step(round_num).tasks

    def seconds(self, round_num: int, tasks: Tasks) -> float:
        """Return the virtual seconds from the server's last step to this one."""
        return self._step(round_num).end_s - (self._step(round_num - 1).end_s if round_num > 1 else 0.0)

    def in_flight(self, round_num: int) -> frozenset[int]:
        """Return the earlier rounds whose models clients still train when a round has ended; 0: the initial model."""
        return self._step(round_num).in_flight if round_num else frozenset()

    def weight(self, task: ClientTask) -> float:
        """Return eta * s(tau)."""
        return float(self.server_learning_rate * (1.0 + task.staleness) ** -self.discount)

    def _step(self, round_num: int) -> ServerStep:
        """Return a step; all earlier ones are computed first, once."""
        while len(self._steps) < round_num:
            self._steps.append(next(self._schedule))
        return self._steps[round_num - 1]

    @cached_property
    def _schedule(self) -> Iterator[ServerStep]:
        return self._server_steps()

    def _server_steps(self) -> Iterator[ServerStep]:
        """Yield the server's steps for ever."""
        starts = (task for number in count(1) for task in self.plan.tasks(number))
        flight: list[tuple[float, int, int, ClientTask]] = []  # a heap of (arrival, number, model, task)
        training: set[int] = set()
        now_s, step, numbers, arrived = 0.0, 0, count(), list[tuple[int, ClientTask]]()
        while True:
            while len(flight) < self.concurrency:
                task = next(task for task in starts if task.client not in training)
                training.add(task.client)
                heapq.heappush(flight, (now_s + self.devices.seconds(task), next(numbers), step, task))
            now_s, due = flight[0][0], []
            while flight and flight[0][0] == now_s:
                due.append(heapq.heappop(flight))
            for position, (_, _, model, task) in enumerate(due, start=1):
                training.remove(task.client)
                arrived.append((model, task))
                if len(arrived) == self.buffer:
                    step += 1
                    left = frozenset(model for _, _, model, _ in (*due[position:], *flight))
                    yield ServerStep(_of_step(step, arrived), now_s, left)
                    arrived.clear()


def _of_step(step: int, arrived: Sequence[tuple[int, ClientTask]]) -> Tasks:
    """Return the tasks of a step's updates with their staleness; a fast client may have several."""
    draws = numbered(task.client for _, task in arrived)
    return tuple(
        replace(task, draw=draw, staleness=step - 1 - model)
        for (model, task), (_, draw) in zip(arrived, draws, strict=True)
    )
