"""Batch norm's running means and variances: averaged like weights, or kept by each client.

They are buffers of the state dict. By default they are averaged like any other array: the strategy averages them,
weighted by n_k, and every client continues from the average. Kept local, each client continues from its own last
statistics, as in SiloBN (Andreux et al. 2020); batch norm's scale and shift are still averaged, unlike in FedBN (Li et
al. 2021), which keeps those local too. The global model, which is evaluated and saved, has the average of the cohort's
statistics in both cases.

Batch norm normalises by the batch during training, so no training step reads running statistics. They matter when a
model is in evaluation mode: in tests, in gamma and in FedDANE's gradients. Local statistics therefore suit clients
that take part often: after few steps they are still near the initial 0 and 1, and so is their average. A strategy
that does not average, such as FedAdam, treats statistics like weights with either setting.
"""

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, Message

from fedprox.federation.messages import client_of
from fedprox.strategies.arrays import to_record
from fedprox.strategies.updates import arrays_of

_NAMES = ("running_mean", "running_var", "num_batches_tracked")  # of torch's batch norm, and of instance norm


class LocalStatistics:
    """Every client's own statistics; the server holds them, because simulated clients keep nothing between rounds.

    A client's message carries them under "statistics", and they come back in the model that the client sends.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        """Let every client start with the statistics of the initial model."""
        self._initial = ArrayRecord({name: array for name, array in arrays.items() if _is_statistic(name)})
        self._own: dict[int, ArrayRecord] = {}

    def __bool__(self) -> bool:
        """Return whether the model has any."""
        return bool(self._initial)

    def of(self, client: int) -> ArrayRecord:
        """Return a client's statistics after the last round in which it trained."""
        return self._own.get(client, self._initial)

    def state(self) -> dict[int, ArrayRecord]:
        """Return the statistics of all clients that have trained."""
        return dict(self._own)

    def restore(self, state: Mapping[int, ArrayRecord]) -> None:
        """Continue from a state."""
        self._own = dict(state)

    def keep(self, replies: Iterable[Message]) -> None:
        """Keep the statistics of the clients that have trained; the last draw's if a client was drawn twice."""
        for reply in replies:
            if reply.has_content():
                own = {name: array for name, array in arrays_of(reply).items() if _is_statistic(name)}
                self._own[client_of(reply)] = to_record(own)


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in _NAMES
