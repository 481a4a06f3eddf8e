"""Train messages: what a strategy sends to all clients of a round, and each one's own task."""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedprox.plan.plan import ClientTask
from fedprox.strategies.updates import LazyMessage

Record = ArrayRecord | ConfigRecord | MetricRecord

FIRST_NODE_ID = 2  # Flower gives the server node id 1
_RAISED, _LATE = 2, 4  # Flower's own numbers for a client app that raised, and for a reply that is not there


@runtime_checkable
class Engine(Protocol):
    """Where the clients of a round are computed: the part of a Flower Grid that is needed."""

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to a round's messages, in their order; errors for clients that failed or were late."""

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of the engine's processes besides this one."""


def node_id(client: int) -> int:
    """Return the Flower node that plays a client in a simulation."""
    return client + FIRST_NODE_ID


def client_of(reply: Message) -> int:
    """Return the client that sent a reply in a simulation."""
    return reply.metadata.src_node_id - FIRST_NODE_ID


def draw_of(message: Message) -> int:
    """Return how often a message's client was drawn before in the round; a reply has its message's group id."""
    return int(message.metadata.group_id or 0)


def group_id(draw: int) -> str:
    """Return what tells a client's messages of one round apart, which all go to the same node."""
    return str(draw) if draw else ""


def failed(message: Message, reason: str) -> Message:
    """Return the reply of a client that could not do what a message asks for."""
    return Message(Error(_RAISED, reason), reply_to=message)


def late(message: Message) -> Message:
    """Return what stands for the reply of a client that did not answer in time."""
    return Message(Error(_LATE, "late"), reply_to=message)


def is_late(reply: Message) -> bool:
    """Return whether a reply is such a one."""
    return reply.has_error() and reply.error.code == _LATE


class TaskMessage(LazyMessage):
    """A message that gives a client its task: to train, unless it is of another type.

    Attributes:
        records: The model under "arrays", the round's "config", and whatever else the strategy sends.
        task: The client's own work, which travels under "task".
    """

    def __init__(self, records: Mapping[str, Record], task: ClientTask, message_type: str = MessageType.TRAIN) -> None:
        """Address the client that the task names."""
        super().__init__(node_id(task.client), message_type, group_id=group_id(task.draw))
        self.records, self.task = records, task

    def make_content(self) -> RecordDict:
        """Return all records, the task among them."""
        return RecordDict({**self.records, "task": task_record(self.task)})


def record_of(message: Message, name: str) -> Record | None:
    """Return a record that a message carries beside the task; None if there is none of that name."""
    if isinstance(message, TaskMessage) and message.is_unread:
        return message.records.get(name)
    return message.content.get(name)


def task_record(task: ClientTask) -> ConfigRecord:
    """Return a task as it travels in a message, under the key "task".

    Its numbers are one list: each entry of a record costs a checked assignment.
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
