"""What a train message carries beside the model and the round's config: whose turn it is, and its task."""

from typing import TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedprox.plan import ClientTask

FIRST_NODE_ID = 2  # Flower gives the server node id 1


Record = TypeVar("Record", ArrayRecord, MetricRecord)


def only(kind: type[Record], content: RecordDict) -> Record:
    """Return the one record of a kind, which a reply has under a name of the client's choice."""
    return next(record for record in content.values() if isinstance(record, kind))


def node_id(client: int) -> int:
    """Return the Flower node that plays a client in a simulation."""
    return client + FIRST_NODE_ID


def client_of(reply: Message) -> int:
    """Return the client that sent a reply in a simulation."""
    return reply.metadata.src_node_id - FIRST_NODE_ID


def task_record(task: ClientTask) -> ConfigRecord:
    """Return a task as it travels in a message, under the key "task"."""
    return ConfigRecord(
        {
            "client": task.client,
            "num-epochs": task.num_epochs,
            "num-steps": task.num_steps,
            "is-straggler": task.is_straggler,
            "batch-key": list(task.batch_key),
            "epochs-before": task.epochs_before,
        }
    )


def task_of(message: Message) -> ClientTask:
    """Return the task that a message carries."""
    record = cast(ConfigRecord, message.content["task"])  # content.config_records copies and checks all records
    return ClientTask(
        client=int(record["client"]),  # type: ignore[arg-type]
        num_epochs=int(record["num-epochs"]),  # type: ignore[arg-type]
        num_steps=int(record["num-steps"]),  # type: ignore[arg-type]
        is_straggler=bool(record["is-straggler"]),
        batch_key=tuple(record["batch-key"]),  # type: ignore[arg-type]
        epochs_before=int(record["epochs-before"]),  # type: ignore[arg-type]
    )
