"""Identity of this process in Flower; only this module uses a private name of Flower."""

from flwr.supercore.task_identity import TaskIdentity


def act_as_server() -> None:
    """Let this process make Flower messages without a SuperLink: run 1, task 1, node 1 (the server).

    A process that Flower has started for a task keeps the identity that Flower gave it.
    """
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id = 1
        TaskIdentity.task_id = 1
        TaskIdentity.node_id = 1
