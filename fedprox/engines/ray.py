"""The engine that computes a round's clients in parallel on Ray actors, on this machine or on a cluster.

Only this module and those that only it imports import Ray; they are loaded if this engine is chosen.
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
from fedprox.engines.local import local_grid
from fedprox.errors import with_location
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.messages import Engine, failed, late, node_id, task_of
from fedprox.federation.script_client import ScriptSpec


class RayGrid:
    """A Flower Grid that splits each cohort over actors; consecutive jobs of a process share the actors."""

    def __init__(
        self,
        spec: ClientSpec | ScriptSpec,
        *,
        num_cpus: float,
        num_gpus: float = 0.0,
        max_actors: int | None,
        address: str | None = None,
    ) -> None:
        """Start Ray or join a cluster, and start as many actors as fit.

        Args:
            spec: Everything an actor needs to play clients.
            num_cpus: CPUs of one actor.
            num_gpus: GPUs of one actor; a fraction shares a GPU.
            max_actors: Largest number of actors; the size of a cohort, as more would have no work. None: all clients.
            address: A running cluster ("auto" or host:port); None starts Ray on this machine.

        Raises:
            UserError: If not even one actor fits, or no cluster answers.
        """
        act_as_server()
        if ray_cluster.connect(address):
            _pools.clear()
            _shared.clear()
        ray_cluster.check_room(num_cpus, num_gpus)
        self._num_clients = spec.num_clients
        self._num_shares = _num_actors(num_cpus, num_gpus, max_actors or self._num_clients)
        self._sizes: list[int] | None = None  # unknown for scripts
        if isinstance(spec, ClientSpec):
            self._sizes = [spec.sgd.epoch(size).num_taken for size in spec.data.train.sizes.tolist()]
        self._pool = _pool(num_cpus, num_gpus)
        self._shared = _share(spec, max(1, int(num_cpus)))
        self._pool.setup(self._shared, self._num_shares)

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client."""
        return range(node_id(0), node_id(self._num_clients))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the clients' replies in the order of the messages; the reply of a client that failed is an error.

        One actor computes one share of the cohort. If it dies, another one computes the whole share, so that the
        replies are the same. A share over which actors die repeatedly is computed client by client, which shows the
        client that is the cause.

        Args:
            messages: The messages of a round, each with a task.
            timeout: Seconds after which all clients of unfinished shares are late, and their actors are replaced; None
                for no limit.

        Raises:
            UserError: If a client raises one: it is about a setting.
            RunStopped: If the cluster is lost.
        """
        messages = list(messages)
        if not messages:
            return []
        self._pool.health.check()
        sizes = self._sizes
        work = [(sizes[task.client] if sizes else 1) * task.num_epochs for task in map(task_of, messages)]
        shares = [share for share in balance(work, self._num_shares) if share]
        round_ref = ray.put(messages)  # once per round; every actor reads it from the object store
        replies: dict[int, Message | JobFailure] = {}
        start = time.monotonic()
        while shares:
            left_s = None if timeout is None else max(0.0, start + timeout - time.monotonic())
            batches = self._pool.run([(self._shared, round_ref, share) for share in shares], left_s)
            for share, batch in zip(shares, batches, strict=True):
                replies |= zip(share, [batch] * len(share) if isinstance(batch, JobFailure) else batch, strict=True)
            # Again, client by client, for shares over which actors died; a single client's failure is final.
            shares = [[at] for share in shares if len(share) > 1 for at in share if replies[at] is JobFailure.CRASHED]
        return [_as_message(replies[at], message) for at, message in enumerate(messages)]

    def facts(self) -> dict[str, Any]:
        """Return nothing: each actor chooses its own solver."""
        return {}

    def peak_memory_bytes(self) -> int:
        """Return the sum of the actors' peak resident memory."""
        return sum(self._pool.query("peak_memory_bytes"))


def _as_message(reply: Message | JobFailure, message: Message) -> Message:
    if isinstance(reply, Message):
        return reply
    return late(message) if reply is JobFailure.LATE else failed(message, reply.value)


class _Worker:
    """An actor, which plays clients with its own local engine."""

    def __init__(self) -> None:
        self._loaded: list[Any] | None = None
        self._grid: Engine | None = None

    def setup(self, shared: list[Any]) -> None:
        if self._loaded != shared:  # a new job, or a new process
            try:
                data, (spec, num_threads) = ray.get(shared)
                self._grid = local_grid(spec if data is None else replace(spec, data=data), num_threads=num_threads)
            except SystemExit as end:  # of the user's code; it would end the actor
                raise RuntimeError(with_location(end)) from None
            self._loaded = shared

    def run(self, shared: list[Any], messages: list[Message], share: list[int]) -> list[Message]:
        self.setup(shared)
        return self._grid.send_and_receive([messages[position] for position in share])  # type: ignore[union-attr]

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_pools: dict[tuple[float, float], ActorPool] = {}
_shared: dict[int, tuple[object, Any]] = {}


def _pool(num_cpus: float, num_gpus: float) -> ActorPool:
    """Return the pool of an earlier job with the same resources, or a new one that replaces all others."""
    for key in [key for key in _pools if key != (num_cpus, num_gpus)]:
        _pools.pop(key).end()
    return _pools.setdefault((num_cpus, num_gpus), ActorPool(_Worker, num_cpus, num_gpus))


def _num_actors(num_cpus: float, num_gpus: float, max_actors: int) -> int:
    """Return the number of actors that fit, at most max_actors."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [resources.get(kind, 0) / each for kind, each in (("CPU", num_cpus), ("GPU", num_gpus)) if each]
    return min(int(min(fits)), max_actors)


def _share(spec: ClientSpec | ScriptSpec, num_threads: int) -> list[Any]:
    """Put a spec into the object store; data that an earlier job put there is not sent again."""
    if isinstance(spec, ScriptSpec):
        return [ray.put(None), ray.put((spec, num_threads))]
    if id(spec.data) not in _shared:
        _shared.clear()
        _shared[id(spec.data)] = (spec.data, ray.put(spec.data))
    settings = replace(spec, data=None)  # type: ignore[arg-type]
    return [_shared[id(spec.data)][1], ray.put((settings, num_threads))]
