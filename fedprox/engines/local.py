"""All clients in this process, one after another."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from flwr.app import Context, Message, RecordDict

from fedprox.client_app import ClientSide, make_client_app
from fedprox.engines.identity import act_as_server
from fedprox.messages import node_id


class LocalGrid:
    """A Flower Grid whose nodes are clients played in this process."""

    def __init__(self, side: ClientSide) -> None:
        """Prepare the client app."""
        act_as_server()
        self._app = make_client_app(side)
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
        with _one_thread():
            return [self._app(message, _fresh_context(message)) for message in messages]

    def peak_memory_bytes(self) -> int:
        """Return 0: there is no process besides this one."""
        return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch's operations use one thread: on a client's small matrices more are far slower."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _fresh_context(message: Message) -> Context:
    """Return a context without state: clients keep nothing from round to round."""
    return Context(run_id=1, node_id=message.metadata.dst_node_id, node_config={}, state=RecordDict(), run_config={})
