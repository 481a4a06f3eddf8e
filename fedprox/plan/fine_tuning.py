"""The work of clients that train the global model further on their own examples, each for itself."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprox.plan.epoch_batches import KEEP, epoch_batches
from fedprox.plan.plan import ClientTask
from fedprox.seeds import Stream, generator


@dataclass(frozen=True)
class FineTuning:
    """Full local work of every client after a round, on batches of its own.

    Attributes:
        client_sizes: Number of training examples of each client (n_k), shape (num_clients,).
        num_epochs: Epochs of each client.
        batch_size: B, in examples.
        last_batch: Treatment of an epoch's last, short batch; see `fedprox.plan.epoch_batches`.
        seed: The run's.
        repetition: See `fedprox.seeds.generator`.
    """

    client_sizes: NDArray[np.int64]
    num_epochs: int
    batch_size: int
    last_batch: str = KEEP
    seed: int = 0
    repetition: int = 0

    def task(self, round_num: int, client: int) -> ClientTask:
        """Return a client's work on the model after a round."""
        num_batches = epoch_batches(int(self.client_sizes[client]), self.batch_size, self.last_batch).num_batches
        # The order of batches has a seed of its own: it is another one than in any round of training.
        seed = int(generator(self.seed, Stream.PERSONAL, repetition=self.repetition).integers(2**32))
        key = (seed, self.repetition, round_num, client)
        return ClientTask(client, self.num_epochs, self.num_epochs * num_batches, is_straggler=False, batch_key=key)
