"""Evaluation of global models at the clients, each on its own held-out examples, if the server has no data."""

from collections.abc import Sequence

from flwr.app import ArrayRecord, ConfigRecord, MessageType

from fedprox.errors import RunStopped
from fedprox.evaluation.metrics import Evaluation, spread
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import Engine, Record, TaskMessage
from fedprox.plan.plan import ClientTask
from fedprox.strategies.updates import Metrics, metrics_of


class ClientEvaluation:
    """Measures global models by asking all clients, and takes the mean of what they report.

    It is sum_k n_k x_k / sum_k n_k over the clients that report x, with n_k held-out examples, in client order: what an
    evaluation of all their held-out examples together would give, on every engine the same number.
    """

    def __init__(
        self, grid: Engine, num_clients: int, failures: FailurePolicy | None = None, *, per_client: bool = False
    ) -> None:
        """Prepare to ask clients.

        Args:
            grid: Where they compute.
            num_clients: How many there are.
            failures: What to do about clients that fail or are late.
            per_client: Also measure how the accuracy varies among clients.
        """
        self._grid, self._num_clients = grid, num_clients
        self._failures, self._per_client = failures or FailurePolicy(), per_client

    def __call__(self, round_num: int, arrays: ArrayRecord) -> Evaluation:
        """Return the evaluation of the model after a round.

        Raises:
            RunStopped: If no client reports anything, or one fails and the policy is to stop.
        """
        records: dict[str, Record] = {"arrays": arrays, "config": ConfigRecord({"server-round": round_num})}
        tasks = [ClientTask(client, 1, 0, False, ()) for client in range(self._num_clients)]
        messages = [TaskMessage(records, task, MessageType.EVALUATE) for task in tasks]
        replies = self._failures.filtering(self._grid, round_num).send_and_receive(messages)
        if not replies:
            raise RunStopped(f"round {round_num}: none of {self._num_clients} clients has measured the model")
        reports = [metrics_of(reply) for reply in replies]
        accuracies = [float(report["accuracy"]) for report in reports if "accuracy" in report]
        return Evaluation(
            _mean("loss", reports),
            _mean("accuracy", reports),
            spread=spread(accuracies) if self._per_client and accuracies else None,
        )


def _mean(name: str, reports: Sequence[Metrics]) -> float | None:
    """Return the mean of a metric over the clients that report it, weighted by their held-out examples."""
    known = [(int(report["num-examples"]), float(report[name])) for report in reports if name in report]
    total = sum(num_examples for num_examples, _ in known)
    return sum(num_examples * value for num_examples, value in known) / total if total else None
