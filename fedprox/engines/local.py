"""All clients in this process."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict

from fedprox.client_app import ClientSide, make_client_app
from fedprox.engines.identity import act_as_server
from fedprox.errors import UserError
from fedprox.messages import node_id, task_of
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
        solver = side.make_solver()
        self._app = make_client_app(side, solver)
        self._num_threads = (num_threads or os.cpu_count() or 1) if solver.is_concurrent else 1
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
            if self._num_threads == 1:
                return [self._play(message) for message in messages]
            # torch's own threads are set in each thread; longest first, so that no long one is left at the end
            with ThreadPoolExecutor(self._num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                work = [int(self._sizes[task.client]) * task.num_epochs for task in map(task_of, messages)]
                futures = {at: pool.submit(self._play, messages[at]) for at in np.argsort(work)[::-1].tolist()}
                return [futures[at].result() for at in range(len(messages))]

    def _play(self, message: Message) -> Message:
        return self._app(message, _fresh_context(message))

    def peak_memory_bytes(self) -> int:
        """Return 0: there is no process besides this one."""
        return 0


def _fresh_context(message: Message) -> Context:
    """Return a context without state: clients keep nothing from round to round."""
    return Context(run_id=1, node_id=message.metadata.dst_node_id, node_config={}, state=RecordDict(), run_config={})
