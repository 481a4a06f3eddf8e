"""All clients in this process."""

import atexit
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message, MessageType, RecordDict

from fedprox.client_app import Clients, ClientSide, make_client_app
from fedprox.engines.identity import act_as_server
from fedprox.errors import UserError
from fedprox.messages import node_id, task_of
from fedprox.solvers.problem import BatchedSolver
from fedprox.threads import one_thread


class LocalGrid:
    """A Flower Grid whose nodes are clients played in this process."""

    def __init__(self, side: ClientSide, *, num_threads: int | None = None) -> None:
        """Prepare the client app.

        Args:
            side: What is needed to play clients.
            num_threads: Clients that are computed at once, where the solver allows it; None for one per CPU.
        """
        if num_threads is not None and num_threads < 1:
            raise UserError(f"engine.num_threads must be an integer >= 1 or null (one per CPU), got {num_threads}")
        act_as_server()
        self._solver = side.make_solver()
        self._clients = Clients(side, self._solver)
        self._app = make_client_app(self._clients)
        self._num_threads = (num_threads or os.cpu_count() or 1) if self._solver.is_concurrent else 1
        self._pool = ThreadPoolExecutor(self._num_threads, initializer=_begin_thread)  # they end with this object
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
            if isinstance(self._solver, BatchedSolver) and _all_train(messages):
                return self._clients.train_together(messages, self._solver)
            if self._num_threads == 1:
                return [self._play(message) for message in messages]
            return self._in_threads(messages)

    def _in_threads(self, messages: list[Message]) -> list[Message]:
        """Return the replies of clients that are computed in several threads, one client in each at a time."""
        work = [int(self._sizes[task.client]) * task.num_epochs for task in map(task_of, messages)]
        longest_first = np.argsort(work)[::-1].tolist()  # so that no long one is left at the end
        futures = {at: self._pool.submit(self._play, messages[at]) for at in longest_first}
        try:
            return [futures[at].result() for at in range(len(messages))]
        finally:  # after an error or an interrupt nothing goes on behind the caller's back
            for future in futures.values():
                future.cancel()
            wait(futures.values())

    def _play(self, message: Message) -> Message:
        return self._app(message, _fresh_context(message))

    def peak_memory_bytes(self) -> int:
        """Return 0: there is no process besides this one."""
        return 0


def _fresh_context(message: Message) -> Context:
    """Return a context without state: clients keep nothing from round to round."""
    return Context(run_id=1, node_id=message.metadata.dst_node_id, node_config={}, state=RecordDict(), run_config={})


def _all_train(messages: list[Message]) -> bool:
    return all(message.metadata.message_type == MessageType.TRAIN for message in messages)


_thread_ids: set[int] = set()


def _begin_thread() -> None:
    torch.set_num_threads(1)  # torch's own threads are set in each thread
    _thread_ids.add(threading.get_native_id())


@atexit.register
def _wait_for_threads() -> None:
    """Let the operating system end all threads before the interpreter ends; Python has joined them already.

    A thread in which autograd ran holds an object of torch's, the release of which needs the interpreter: too late, it
    aborts the process with exit status 134. Where there is no /proc to look into, a tenth of a second must do.
    """
    tasks, until = Path("/proc/self/task"), time.monotonic() + (1 if Path("/proc/self/task").exists() else 0.1)
    while _thread_ids and time.monotonic() < until:
        if tasks.exists() and not any((tasks / str(thread)).exists() for thread in _thread_ids):
            return
        time.sleep(0.001)
