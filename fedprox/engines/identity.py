"""Who this process is to Flower; the one place that uses a name of Flower's that is not public."""

from flwr.supercore.task_identity import TaskIdentity


def act_as_server() -> None:
    """Let this process make Flower messages without a SuperLink: run 1, task 1, node 1 (the server)."""
    TaskIdentity.run_id = 1
    TaskIdentity.task_id = 1
    TaskIdentity.node_id = 1
