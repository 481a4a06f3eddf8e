"""The clients of a round side by side on Ray actors, on this machine or on a cluster.

Ray is imported here and in the modules that this one alone imports, and only when this engine is chosen.
"""

import resource
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ray
from flwr.app import Message

from fedprox.engines import ray_cluster
from fedprox.engines.actor_pool import ActorPool, JobFailure
from fedprox.engines.balance import balance
from fedprox.engines.identity import act_as_server
from fedprox.engines.local import LocalGrid
from fedprox.errors import reason
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.messages import failed, late, node_id, task_of


class RayGrid:
    """A Flower Grid that splits each cohort over actors; consecutive jobs of one process share them."""

    def __init__(
        self,
        side: ClientSpec,
        *,
        num_cpus: float,
        num_gpus: float = 0.0,
        max_actors: int,
        address: str | None = None,
    ) -> None:
        """Start Ray or join a cluster, and start as many actors as fit.

        Args:
            side: What an actor needs to play clients.
            num_cpus: CPUs of one actor.
            num_gpus: GPUs of one actor; a fraction shares one.
            max_actors: No more than this; a cohort's size, as further ones would have no work.
            address: A running cluster ("auto" or host:port); None starts Ray on this machine.

        Raises:
            UserError: If not even one actor fits, or no cluster answers.
        """
        act_as_server()
        if ray_cluster.connect(address):
            _pools.clear()
            _shared.clear()
        ray_cluster.check_room(num_cpus, num_gpus)
        self._num_shares = _num_actors(num_cpus, num_gpus, max_actors)
        self._sizes = [side.sgd.epoch(size).num_taken for size in side.data.train.sizes.tolist()]
        self._num_clients = side.data.num_clients
        self._pool = _pool(num_cpus, num_gpus)
        self._side = _share(side, max(1, int(num_cpus)))
        self._pool.setup(self._side, self._num_shares)

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client."""
        return range(node_id(0), node_id(self._num_clients))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the clients' replies in the order of the messages; that of a client that failed says why.

        A share of the cohort is the work of one actor. When that dies, another one does the whole share anew, so that
        the replies are the same. A share over which actors die time and again is done client by client, so that it
        is known which of them it is.

        Args:
            messages: The messages of a round, each with a task.
            timeout: Seconds after which shares that are not done are late, with all of their clients; their actors
                are replaced. None waits as long as it takes.

        Raises:
            UserError: If a client raised one: it is about a setting.
            RunStopped: If the cluster is lost.
        """
        messages = list(messages)
        if not messages:
            return []
        self._pool.health.check()
        work = [self._sizes[task.client] * task.num_epochs for task in map(task_of, messages)]
        shares = [share for share in balance(work, self._num_shares) if share]
        round_ref = ray.put(messages)  # once per round; every actor reads it from the object store
        replies: dict[int, Message | JobFailure] = {}
        start = time.monotonic()
        while shares:
            left_s = None if timeout is None else max(0.0, start + timeout - time.monotonic())
            batches = self._pool.run([(self._side, round_ref, share) for share in shares], left_s)
            for share, batch in zip(shares, batches, strict=True):
                replies |= zip(share, [batch] * len(share) if isinstance(batch, JobFailure) else batch, strict=True)
            shares = [[at] for share in shares if len(share) > 1 for at in share if replies[at] is JobFailure.CRASHED]
        return [_as_message(replies[at], message) for at, message in enumerate(messages)]

    def peak_memory_bytes(self) -> int:
        """Return the sum of the actors' peak resident memory."""
        return sum(self._pool.query("peak_memory_bytes"))


def _as_message(reply: Message | JobFailure, message: Message) -> Message:
    if isinstance(reply, Message):
        return reply
    return late(message) if reply is JobFailure.LATE else failed(message, reply.value)


class _Worker:
    """A process that plays clients with a local engine of its own."""

    def __init__(self) -> None:
        self._loaded: Any = None
        self._grid: LocalGrid | None = None

    def setup(self, side: list[Any]) -> None:
        if self._loaded != side:  # a new job, or a new process
            try:
                self._loaded, self._grid = side, _assemble(side)
            except SystemExit as end:  # which would end the actor, as if it had been asked to
                raise RuntimeError(reason(end)) from None

    def run(self, side: list[Any], messages: list[Message], share: list[int]) -> list[Message]:
        self.setup(side)
        return self._grid.send_and_receive([messages[position] for position in share])  # type: ignore[union-attr]

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_pools: dict[tuple[float, float], ActorPool] = {}
_shared: dict[int, tuple[object, Any]] = {}


def _pool(num_cpus: float, num_gpus: float) -> ActorPool:
    """Return the actors of an earlier job with the same resources, or new ones in the place of all others."""
    for key in [key for key in _pools if key != (num_cpus, num_gpus)]:
        _pools.pop(key).end()
    return _pools.setdefault((num_cpus, num_gpus), ActorPool(_Worker, num_cpus, num_gpus))


def _num_actors(num_cpus: float, num_gpus: float, max_actors: int) -> int:
    """Return how many actors fit, at most max_actors."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [resources.get(kind, 0) / each for kind, each in (("CPU", num_cpus), ("GPU", num_gpus)) if each]
    return min(int(min(fits)), max_actors)


def _share(side: ClientSpec, num_threads: int) -> list[Any]:
    """Put what actors need into the object store; data that an earlier job put there is not sent again."""
    if id(side.data) not in _shared:
        _shared.clear()
        _shared[id(side.data)] = (side.data, ray.put(side.data))
    settings = replace(side, data=None)  # type: ignore[arg-type]
    return [_shared[id(side.data)][1], ray.put((settings, num_threads))]


def _assemble(shared: list[Any]) -> LocalGrid:
    data, (side, num_threads) = ray.get(shared)
    return LocalGrid(replace(side, data=data), num_threads=num_threads)
