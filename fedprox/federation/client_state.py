"""Batch norm's running means and variances, averaged like weights or kept by each client for itself.

They are buffers of the state dict. Averaged, which is the default, they are what any other array is: the strategy
averages them, weighted by n_k, and every client goes on from the average. Kept local, each client goes on from its own
last ones, as in SiloBN (Andreux et al. 2020): scale and shift of batch norm are averaged like all weights, unlike in
FedBN (Li et al. 2021), which keeps those local too. The global model, which is measured and saved, has the average of
the cohort's statistics either way.

Batch norm normalises by the batch while it trains, so no step of training reads running statistics; they matter where
a model is in evaluation mode: in tests, in gamma and in FedDANE's gradients. So kept local they suit clients that take
part often: one that has done few steps has statistics near the initial 0 and 1, and so has the average of them.
A strategy that does not average, such as FedAdam, treats statistics as it treats weights, whichever is chosen.
"""

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, Message

from fedprox.federation.messages import client_of
from fedprox.strategies.arrays import to_record
from fedprox.strategies.updates import arrays_of

_NAMES = ("running_mean", "running_var", "num_batches_tracked")  # of torch's batch norm, and of instance norm


class LocalStatistics:
    """Every client's own statistics, which the server holds for simulated clients: those keep nothing between rounds.

    They go along with a client's message under the key "statistics", and come back in the model that it sends.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        """Let every client start with the statistics of the initial model; those of others never reach it."""
        self._initial = ArrayRecord({name: array for name, array in arrays.items() if _is_statistic(name)})
        self._own: dict[int, ArrayRecord] = {}

    def __bool__(self) -> bool:
        """Return whether the model has any."""
        return bool(self._initial)

    def of(self, client: int) -> ArrayRecord:
        """Return a client's own statistics, as its last round left them."""
        return self._own.get(client, self._initial)

    def state(self) -> dict[int, ArrayRecord]:
        """Return the statistics of all clients that have trained."""
        return dict(self._own)

    def restore(self, state: Mapping[int, ArrayRecord]) -> None:
        """Go on from such a state."""
        self._own = dict(state)

    def keep(self, replies: Iterable[Message]) -> None:
        """Take over the statistics of the clients that have trained; of one that was drawn twice, the last draw's."""
        for reply in replies:
            if reply.has_content():
                own = {name: array for name, array in arrays_of(reply).items() if _is_statistic(name)}
                self._own[client_of(reply)] = to_record(own)


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in _NAMES
