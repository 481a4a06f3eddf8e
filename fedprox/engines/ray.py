"""The clients of a round side by side on Ray actors, on this machine or on a cluster.

Ray is imported here alone, and only when this engine is chosen.
"""

import logging
import os
import resource
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Message

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from fedprox.client_app import ClientSide
from fedprox.engines.balance import balance
from fedprox.engines.identity import act_as_server
from fedprox.engines.local import LocalGrid
from fedprox.errors import UserError, one_line
from fedprox.messages import node_id, task_of


class RayGrid:
    """A Flower Grid that splits each cohort over actors; consecutive jobs of one process share them."""

    def __init__(
        self,
        side: ClientSide,
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
        _connect(address)
        _check_room(ray.cluster_resources(), num_cpus, num_gpus)  # type: ignore[no-untyped-call]
        self._actors = _actors(num_cpus, num_gpus, max_actors)
        self._sizes = side.data.train.sizes
        self._num_clients = side.data.num_clients
        self._side = _share(side, max(1, int(num_cpus)))

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client."""
        return range(node_id(0), node_id(self._num_clients))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the clients' replies in the order of the messages.

        Each actor gets one batch of messages. An actor that dies is started anew and its batch redone.

        Args:
            messages: The messages of a round, each with a task.
            timeout: Seconds to wait for all replies; None waits as long as it takes.
        """
        messages = list(messages)
        if not messages:
            return []
        work = [int(self._sizes[task.client]) * task.num_epochs for task in map(task_of, messages)]
        shares = balance(work, len(self._actors))
        round_ref = ray.put(messages)  # once per round; every actor reads it from the object store
        pending = [
            actor.train.remote(self._side, round_ref, share)
            for actor, share in zip(self._actors, shares, strict=True)
            if share
        ]
        try:
            batches = ray.get(pending, timeout=timeout)
        except ray.exceptions.RayTaskError as error:
            raise (
                error.cause if isinstance(error.cause, UserError) else error
            ) from None  # without the actor's traceback
        replies = dict(reply for batch in batches for reply in batch)
        return [replies[position] for position in range(len(messages))]

    def peak_memory_bytes(self) -> int:
        """Return the sum of the actors' peak resident memory."""
        return sum(ray.get([actor.peak_memory_bytes.remote() for actor in self._actors]))


class _Worker:
    """A process that plays clients with a local engine of its own."""

    def __init__(self) -> None:
        self._loaded: Any = None
        self._grid: LocalGrid | None = None

    def train(self, side: list[Any], messages: list[Message], share: list[int]) -> list[tuple[int, Message]]:
        if self._loaded != side:  # a new job, or this process was started anew
            self._loaded, self._grid = side, _assemble(side)
        replies = self._grid.send_and_receive([messages[position] for position in share])  # type: ignore[union-attr]
        return list(zip(share, replies, strict=True))

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _connect(address: str | None) -> None:
    """Start Ray on this machine or join a cluster, once for this process."""
    if ray.is_initialized():
        return
    _pools.clear()  # of a Ray that was shut down
    _shared.clear()
    if address is None:
        _log.info("starting Ray on this machine")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return
    try:
        if address != "auto":  # Ray itself would try for over a minute
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"engine.address: no Ray cluster answers at {address!r} ({one_line(error)}); "
            "start one with `ray start --head`, or leave engine.address out to use this machine"
        ) from error


def _check_room(available: dict[str, float], num_cpus: float, num_gpus: float) -> None:
    for key, kind, asked in (("num_cpus", "CPU", num_cpus), ("num_gpus", "GPU", num_gpus)):
        if asked > available.get(kind, 0):
            raise UserError(
                f"client_resources.{key}={asked:g} is more than the {available.get(kind, 0):g} {kind}s there are; "
                f"set client_resources.{key} to at most that, or use engine=local"
            )


_log = logging.getLogger("fedprox")
_START_S = 120  # an actor's start takes 3 to 10 s; a cluster that is busy may never have room
_pools: dict[tuple[float, float], list[Any]] = {}
_shared: dict[int, tuple[object, Any]] = {}


def _actors(num_cpus: float, num_gpus: float, max_actors: int) -> list[Any]:
    """Return as many actors as fit, at most max_actors; first those of an earlier job with the same resources."""
    pool = _pools.setdefault((num_cpus, num_gpus), [])
    for key in [key for key in _pools if key != (num_cpus, num_gpus)]:  # an earlier job's, of another kind
        for actor in _pools.pop(key):
            ray.kill(actor)
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [resources.get(kind, 0) / each for kind, each in (("CPU", num_cpus), ("GPU", num_gpus)) if each]
    remote: Any = ray.remote(_Worker).options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=-1,
        max_task_retries=-1,  # a batch is redone, however often
    )
    new = [remote.remote() for _ in range(min(int(min(fits)), max_actors) - len(pool))]
    _wait_for(new)
    pool.extend(new)
    return pool[:max_actors]


def _wait_for(actors: Sequence[Any]) -> None:
    """Return once the actors have started, or raise if the cluster has no room for them for long."""
    starts = [actor.peak_memory_bytes.remote() for actor in actors]
    _, late = ray.wait(starts, num_returns=len(starts), timeout=_START_S) if starts else ([], [])
    if late:
        raise UserError(
            f"{len(late)} of {len(starts)} Ray actors did not start within {_START_S} s: other jobs hold the "
            "cluster's resources; wait for them, or lower client_resources"
        )


def _share(side: ClientSide, num_threads: int) -> list[Any]:
    """Put what actors need into the object store; data that an earlier job put there is not sent again."""
    if id(side.data) not in _shared:
        _shared.clear()
        _shared[id(side.data)] = (side.data, ray.put(side.data))
    settings = replace(side, data=None)  # type: ignore[arg-type]
    return [_shared[id(side.data)][1], ray.put((settings, num_threads))]


def _assemble(shared: list[Any]) -> LocalGrid:
    data, (side, num_threads) = ray.get(shared)
    return LocalGrid(replace(side, data=data), num_threads=num_threads)
