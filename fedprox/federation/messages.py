"""Messages between server and clients: the model and settings for all clients of a round, and each client's task."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedprox.plan.plan import ClientTask
from fedprox.strategies.updates import LazyMessage

Record = ArrayRecord | ConfigRecord | MetricRecord

FIRST_NODE_ID = 2  # Flower gives the server node id 1
_RAISED, _LATE = 2, 4  # Flower's codes for a client app that raised and for a missing reply


class Exchange(Protocol):
    """What answers the messages of a round."""

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to a round's messages in their order; an error for a client that failed or is late."""


@runtime_checkable
class Engine(Exchange, Protocol):
    """What computes the clients of a round: the part of a Flower Grid that a round needs."""

    def facts(self) -> dict[str, Any]:
        """Return entries of run.json that only the engine knows."""

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of the engine's processes besides this one."""


def node_id(client: int) -> int:
    """Return the id of the Flower node that plays a client in a simulation."""
    return client + FIRST_NODE_ID


def client_of(reply: Message) -> int:
    """Return the client that sent a reply in a simulation."""
    return reply.metadata.src_node_id - FIRST_NODE_ID


def draw_of(message: Message) -> int:
    """Return how often the client was drawn earlier in the round; a reply has the group id of its message."""
    return int(message.metadata.group_id or 0)


def group_id(draw: int) -> str:
    """Return the id that distinguishes the messages of a client that was drawn several times in a round."""
    return str(draw) if draw else ""


def failed(message: Message, reason: str) -> Message:
    """Return the reply of a client that failed."""
    return Message(Error(_RAISED, reason), reply_to=message)


def late(message: Message, site: str = "") -> Message:
    """Return the reply that stands for a client that did not answer in time; its site's name becomes the reason."""
    return Message(Error(_LATE, site), reply_to=message)


def is_late(reply: Message) -> bool:
    """Return whether a reply stands for a client that did not answer in time."""
    return reply.has_error() and reply.error.code == _LATE


class TaskMessage(LazyMessage):
    """A message that gives a client its task, which is to train unless the message has another type.

    Attributes:
        records: The model under "arrays", the round's "config", and whatever else the strategy sends.
        task: The client's own work, sent under "task".
    """

    def __init__(self, records: Mapping[str, Record], task: ClientTask, message_type: str = MessageType.TRAIN) -> None:
        """Address the client that the task names."""
        super().__init__(node_id(task.client), message_type, group_id=group_id(task.draw))
        self.records, self.task = records, task

    def make_content(self) -> RecordDict:
        """Return all records, including the task."""
        return RecordDict({**self.records, "task": task_record(self.task)})


def record_of(message: Message, name: str) -> Record | None:
    """Return a record of a message by its name, other than the task; None if it is missing."""
    if isinstance(message, TaskMessage) and message.is_unread:
        return message.records.get(name)
    return message.content.get(name)


def task_record(task: ClientTask) -> ConfigRecord:
    """Return a task as the record that a message carries under "task".

    Its numbers form one list, because Flower checks every entry of a record.
    """
    work = [task.num_epochs, task.num_steps, int(task.is_straggler), task.epochs_before, *task.batch_key]
    return ConfigRecord({"client": task.client, "work": work})


def task_of(message: Message) -> ClientTask:
    """Return the task that a message carries."""
    if isinstance(message, TaskMessage) and message.is_unread:
        return message.task
    record = cast(ConfigRecord, message.content["task"])  # content.config_records copies and checks all records
    num_epochs, num_steps, is_straggler, epochs_before, *batch_key = map(int, cast(list[int], record["work"]))
    return ClientTask(
        client=int(record["client"]),  # type: ignore[arg-type]
        num_epochs=num_epochs,
        num_steps=num_steps,
        is_straggler=bool(is_straggler),
        batch_key=tuple(batch_key),
        epochs_before=epochs_before,
        draw=draw_of(message),
    )
