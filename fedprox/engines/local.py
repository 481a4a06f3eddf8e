"""All clients in this process."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Message, MessageType

from fedprox.client_app import Clients, ClientSide
from fedprox.engines.identity import act_as_server
from fedprox.errors import UserError
from fedprox.messages import node_id, task_of
from fedprox.solvers.problem import BatchedSolver
from fedprox.threads import Pool, one_thread

Result = TypeVar("Result")

MAX_THREADS = 1024


class LocalGrid:
    """A Flower Grid whose nodes are clients played in this process."""

    def __init__(self, side: ClientSide, *, num_threads: int | None = None) -> None:
        """Prepare the client app.

        Args:
            side: What is needed to play clients.
            num_threads: Clients that are computed at once, where the solver allows it; None for as
                many as torch has threads: one per core, or what OMP_NUM_THREADS says.
        """
        if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
            rule = f"an integer >= 1 and <= {MAX_THREADS} or null (one per core)"
            raise UserError(f"engine.num_threads must be {rule}, got {num_threads}")
        act_as_server()
        self._solver = side.make_solver()
        self._clients = Clients(side, self._solver)
        self._pool = Pool((num_threads or torch.get_num_threads()) if self._solver.is_concurrent else 1)
        self._sizes = side.data.train.sizes
        self._num_clients = side.data.num_clients

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client."""
        return range(node_id(0), node_id(self._num_clients))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the clients' replies in the order of the messages.

        Args:
            messages: The messages of a round, each with a task.
            timeout: Not used; everything is computed here and now.
        """
        messages = list(messages)
        with one_thread():
            if not _all_train(messages):
                return self._in_threads(lambda at: self._clients.gradient(messages[at]), messages)
            if isinstance(self._solver, BatchedSolver):
                solutions = self._clients.solve_together(messages, self._solver)
            else:
                # What is plain Python is done here: several threads would only take turns with it.
                works = list(map(self._clients.work, messages))
                solutions = self._in_threads(lambda at: self._clients.solve(messages[at], works[at]), messages)
            return list(map(self._clients.reply, messages, solutions))

    def _in_threads(self, function: Callable[[int], Result], messages: list[Message]) -> list[Result]:
        """Return the function's result for each message, the longest work first: no long one is left at the end."""
        work = [int(self._sizes[task.client]) * task.num_epochs for task in map(task_of, messages)]
        results = self._pool.map(function, np.argsort(work)[::-1].tolist())
        return [results[at] for at in range(len(messages))]

    def peak_memory_bytes(self) -> int:
        """Return 0: there is no process besides this one."""
        return 0


def _all_train(messages: list[Message]) -> bool:
    return all(message.metadata.message_type == MessageType.TRAIN for message in messages)
