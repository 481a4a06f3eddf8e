"""Client-level differential privacy: DP-FedAvg, and DP-FedProx with mu > 0 (McMahan et al. 2018, algorithm 1).

    w^{t+1} = w^t + (1 / (q N)) * (sum over the cohort of clip_C(w_k - w^t) + Normal(0, z^2 C^2 I))

Each of N clients is in the cohort independently with probability q. All updates count the same, and the denominator is
the expected size of the cohort, so one client changes the sum by at most C, whoever else replies: a client that drops
out only makes the sum shorter. A round without any client adds its noise, too.

The clip comes after attacks and decompression, on what the server has received. The noise is from the run's seed, as
everything random is, so that a run repeats: it protects nobody against one who knows the seed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedprox.seeds import Stream, generator
from fedprox.strategies.accounting import Ledger
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.updates import arrays_of, flat, with_values

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class AdaptiveClip:
    """A clip that follows a quantile of the updates' norms (Andrew et al. 2021).

        C <- C * exp(-rate * (b - quantile)),  b = 1/2 + (sum of (1[norm_k <= C] - 1/2) + Normal(0, count_noise^2)) / m

    with m = q N. One client changes that sum by at most 1/2, which the noise on the updates pays for.

    Attributes:
        quantile: Share of the updates that are to stay whole, between 0 and 1.
        rate: Learning rate, > 0.
        count_noise: Standard deviation of the noise on the sum, more than half the noise multiplier.
    """

    quantile: float
    rate: float
    count_noise: float

    def noise_on_updates(self, noise_multiplier: float) -> float:
        """Return z_u = (z^-2 - (2 count_noise)^-2)^(-1/2), with which updates and count together cost what z costs."""
        if not noise_multiplier:
            return 0.0
        return float((noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5)

    def next(self, clip: float, norms: Iterable[float], cohort_size: float, noise: float) -> float:
        """Return the clip of the next round.

        Args:
            clip: C of this round.
            norms: Norms of this round's updates.
            cohort_size: m, the expected number of updates.
            noise: Draw from Normal(0, count_noise^2).
        """
        excess = sum((norm <= clip) - 0.5 for norm in norms) + noise
        return clip * math.exp(-self.rate * (0.5 + excess / cohort_size - self.quantile))


class PrivateMean(FedAvg):
    """The noisy mean of clipped updates.

    Attributes:
        drops_stragglers: Whether stragglers are left out, as by FedAvg in the paper.
        clip: C of the next round.
        is_clipped: Whose updates were shortened in the last round, by Flower's node id.
        ledger: What has been spent.
    """

    weighting = "equal"
    acts_alone = True  # rounds without clients count, too

    def __init__(
        self,
        names: Sequence[str],
        clip: float,
        noise_multiplier: float,
        probability: float,
        num_clients: int,
        *,
        adaptive: AdaptiveClip | None = None,
        noise_factor: float = 1.0,
        drops_stragglers: bool = False,
        seed: int = 0,
        repetition: int = 0,
    ) -> None:
        """Prepare the mean.

        Args:
            names: The arrays that clients update; all others stay.
            clip: C, > 0.
            noise_multiplier: z, >= 0.
            probability: q, with which a client is in a cohort.
            num_clients: N.
            adaptive: How the clip changes; None if it stays.
            noise_factor: Factor on the noise alone, for that of a larger federation.
            drops_stragglers: See above.
            seed: Draws the noise.
            repetition: See `fedprox.seeds.generator`.
        """
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        self.drops_stragglers = drops_stragglers
        self.clip, self.is_clipped, self.ledger = clip, dict[int, bool](), Ledger()
        self.noise_multiplier, self.probability = noise_multiplier, probability
        self._names, self._adaptive = names, adaptive
        self._cohort_size = probability * num_clients
        self._noise_factor = noise_factor
        self._noise = adaptive.noise_on_updates(noise_multiplier) if adaptive else noise_multiplier
        self._seed, self._repetition = seed, repetition
        self._arrays = ArrayRecord()  # w^t

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all clients of the cohort, and remember w^t."""
        self._arrays = arrays
        return super().configure_train(server_round, arrays, config, grid) if list(grid.get_node_ids()) else []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model, spend the round, and change an adaptive clip."""
        start = {name: to_numpy(array) for name, array in self._arrays.items()}
        before = flat(start, self._names)
        total, norms = np.zeros_like(before), dict[int, float]()
        for reply in replies:
            update = flat(arrays_of(reply), self._names) - before
            norms[reply.metadata.src_node_id] = norm = float(np.linalg.norm(update))
            total += update * min(1.0, self.clip / norm) if norm else update
        rng = self._rng(server_round)
        total += self._noise_factor * self._noise * self.clip * rng.normal(size=len(total))
        self.ledger.spend(self.noise_multiplier, self.probability)
        self.is_clipped = {node: norm > self.clip for node, norm in norms.items()}
        made = with_values(start, self._names, before + total / self._cohort_size)
        if self._adaptive:
            noise = self._noise_factor * self._adaptive.count_noise * float(rng.normal())
            self.clip = self._adaptive.next(self.clip, norms.values(), self._cohort_size, noise)
        return to_record(made), None

    def state_dict(self) -> dict[str, Any]:
        """Return what has been spent, and an adaptive clip."""
        adaptive = {"clip": self.clip} if self._adaptive else {}
        return {"spent": [list(spending) for spending in self.ledger.spendings], **adaptive}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.ledger = Ledger((z, q, rounds) for z, q, rounds in state["spent"])
        if self._adaptive:
            self.clip = float(state.get("clip", self.clip))

    def _rng(self, round_num: int) -> np.random.Generator:
        return generator(self._seed, Stream.NOISE, round_num, repetition=self._repetition)
