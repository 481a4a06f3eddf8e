"""What each client's update is worth: its Shapley value for the test loss of its round (Song et al. 2019).

The value v(S) of a set of clients is minus the test loss of the average in which every client outside S sends w^t
back, with all weights as they are: w^t + sum_{i in S} n_i u_i / sum_{all i} n_i. So v(none) is the model before the
round, v(all) the model after it, and a round's values add up to how much the test loss has fallen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message

from fedprox.evaluation.shapley import Shapley
from fedprox.federation.messages import client_of, draw_of
from fedprox.federation.secure_sums import Draw
from fedprox.seeds import Stream, generator
from fedprox.strategies.arrays import to_numpy
from fedprox.strategies.averaging import average, weights_of
from fedprox.strategies.updates import Arrays, arrays_of

MAX_CLIENTS = 100  # of a round: 200 permutations are 20,000 evaluations


@dataclass
class Contribution:
    """Measures the updates of each round.

    Attributes:
        settings: Of `contribution=shapley`.
        loss: Returns a model's test loss.
        weighted_by: The metric that weighs the strategy's average; None for equal weights.
        seed: The run's.
        repetition: See `fedprox.seeds.generator`.
        values: The values of the last round's updates.
    """

    settings: Shapley
    loss: Callable[[Arrays], float]
    weighted_by: str | None
    seed: int = 0
    repetition: int = 0
    values: Mapping[Draw, float] = field(default_factory=dict)

    def measure(self, round_num: int, arrays: ArrayRecord, replies: Sequence[Message]) -> None:
        """Find the values of a round's updates.

        Args:
            round_num: The round.
            arrays: w^t.
            replies: The updates as the strategy will average them.
        """
        before = {name: to_numpy(array) for name, array in arrays.items()}
        models, weights = list(map(arrays_of, replies)), weights_of(replies, self.weighted_by)

        def value(players: int) -> float:
            sent = [model if players >> player & 1 else before for player, model in enumerate(models)]
            return -self.loss(average(sent, weights))

        rng = generator(self.seed, Stream.CONTRIBUTION, round_num, repetition=self.repetition)
        found: np.ndarray = self.settings.values(len(models), value, rng) if models else np.empty(0)
        draws = [(client_of(reply), draw_of(reply)) for reply in replies]
        self.values = dict(zip(draws, found.tolist(), strict=True))
