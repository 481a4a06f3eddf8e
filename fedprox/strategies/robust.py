"""Strategies that aggregate by a robust rule; see `fedprox.strategies.rules` for the rules.

Each rule bears up to f hostile clients in a round, of which it is told by `num_malicious`, and needs a certain number
of replies for that. Fewer would silently make another rule of it, so they are refused.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedprox.errors import RunStopped, UserError
from fedprox.seeds import Stream, generator
from fedprox.strategies import rules
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.rules import Vectors
from fedprox.strategies.updates import arrays_of, flat, in_type, with_values

BEFORE = ("none", "nnm", "bucketing")


class Robust(FedAvg):
    """w^{t+1} = w^t + rule(u_1, ..., u_n) with the cohort's updates u_k = w_k - w^t, all with the same weight.

    Attributes:
        num_malicious: f, the hostile replies of a round that the rule is to bear.
    """

    weighting = "equal"
    needs = "1"  # the least number of updates that the rule takes, as a formula of f

    def __init__(
        self,
        num_malicious: int = 0,
        before: str = "none",
        bucket_size: int = 2,
        seed: int = 0,
        repetition: int = 0,
    ) -> None:
        """Prepare the rule.

        Args:
            num_malicious: f, >= 0.
            before: What is done to the updates first. "nnm": each is replaced by the mean of its n - f nearest
                (nearest-neighbour mixing). "bucketing": random buckets of updates are averaged.
            bucket_size: s, updates in a bucket, >= 1.
            seed: Draws the buckets.
            repetition: See `fedprox.seeds.generator`.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__(fraction_evaluate=0.0)
        if num_malicious < 0:
            raise UserError(f"strategy.num_malicious must be >= 0, got {num_malicious}")
        if before not in BEFORE:
            raise UserError(f"strategy.before must be one of {', '.join(BEFORE)}, got {before}")
        if bucket_size < 1:
            raise UserError(f"strategy.bucket_size must be >= 1, got {bucket_size}")
        self.num_malicious = num_malicious
        self._before, self._bucket_size = before, bucket_size
        self._seed, self._repetition = seed, repetition
        self._arrays = ArrayRecord()  # w^t

    def rule(self, updates: Vectors) -> Vectors:
        """Return the aggregate, shape (d,), of updates of shape (n, d)."""
        raise NotImplementedError

    @property
    def least_updates(self) -> int:
        """The least number of updates that the rule takes."""
        return 1

    @property
    def min_replies(self) -> int:
        """The least number of replies in a round."""
        if self._before == "bucketing":  # least_updates buckets, the last of them with one update
            return self._bucket_size * (self.least_updates - 1) + 1
        return max(self.least_updates, 2 * self.num_malicious + 1 if self._before == "nnm" else 1)

    def check_cohort(self, clients_per_round: int) -> None:
        """Raise UserError if a whole cohort is too small."""
        if clients_per_round < self.min_replies:
            raise UserError(f"{self._too_few}, got clients_per_round={clients_per_round}; lower f or ask more clients")

    @property
    def _too_few(self) -> str:
        formula = f" ({self.needs} with f = {self.num_malicious})" if self.needs != "1" else ""
        mixed = "" if self._before == "none" else f" with before={self._before}"
        needs = f"needs at least {self.min_replies} replies a round{formula}{mixed}"
        return f"strategy.num_malicious={self.num_malicious}: {type(self).__name__} {needs}"

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all clients of the cohort, and remember w^t."""
        self._arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model; arrays of integers get the median of each entry.

        Raises:
            RunStopped: If too few clients have replied.
        """
        models = list(map(arrays_of, replies))
        if len(models) < self.min_replies:
            raise RunStopped(f"round {server_round}: {self._too_few}, got {len(models)}; lower f or ask more clients")
        start = {name: to_numpy(array) for name, array in self._arrays.items()}
        floats = [name for name, array in start.items() if array.dtype.kind == "f"]
        before = flat(start, floats)
        updates = np.array([flat(model, floats) - before for model in models])
        made = with_values(start, floats, before + self.rule(self._prepared(updates, server_round)))
        for name in start.keys() - set(floats):
            made[name] = in_type(np.median([model[name] for model in models], axis=0), start[name].dtype)
        return to_record(made), None

    def _prepared(self, updates: Vectors, round_num: int) -> Vectors:
        if self._before == "nnm":
            return rules.nearest_neighbour_mixing(updates, self.num_malicious)
        if self._before == "bucketing":
            rng = generator(self._seed, Stream.BUCKETS, round_num, repetition=self._repetition)
            return rules.bucketing(updates, self._bucket_size, rng)
        return updates

    def state_dict(self) -> dict[str, Any]:
        """Return no state: w^t is in every checkpoint already."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take no state."""


class Median(Robust):
    """The median of each coordinate."""

    def rule(self, updates: Vectors) -> Vectors:
        """Return the median."""
        return rules.median(updates)


class TrimmedMean(Robust):
    """The mean of each coordinate without its f lowest and f highest values."""

    needs = "2f + 1"

    def rule(self, updates: Vectors) -> Vectors:
        """Return the trimmed mean."""
        return rules.trimmed_mean(updates, self.num_malicious)

    @property
    def least_updates(self) -> int:
        """2f + 1, so that a value is left."""
        return 2 * self.num_malicious + 1


class Krum(Robust):
    """The one update that is nearest to its n - f - 2 nearest others."""

    needs = "2f + 3"

    def rule(self, updates: Vectors) -> Vectors:
        """Return the update with the lowest score."""
        return rules.multi_krum(updates, self.num_malicious, 1)

    @property
    def least_updates(self) -> int:
        """2f + 3, as Blanchard et al. (2017) prove it for."""
        return 2 * self.num_malicious + 3


class MultiKrum(Krum):
    """The mean of the m updates with the lowest Krum scores."""

    def __init__(
        self,
        num_malicious: int = 0,
        num_selected: int | None = None,
        before: str = "none",
        bucket_size: int = 2,
        seed: int = 0,
        repetition: int = 0,
    ) -> None:
        """Prepare the rule; the settings are those of `Robust`, and m = `num_selected` >= 1, None for n - f."""
        super().__init__(num_malicious, before, bucket_size, seed, repetition)
        if num_selected is not None and num_selected < 1:
            raise UserError(f"strategy.num_selected must be >= 1 or null (n - f), got {num_selected}")
        self._num_selected = num_selected

    def rule(self, updates: Vectors) -> Vectors:
        """Return the mean of the selected updates."""
        num_selected = self._num_selected or len(updates) - self.num_malicious
        return rules.multi_krum(updates, self.num_malicious, num_selected)

    @property
    def least_updates(self) -> int:
        """2f + 3, or m if that is more."""
        return max(super().least_updates, self._num_selected or 0)


class Bulyan(Robust):
    """Of n - 2f updates that Krum selects, the mean of the values nearest to the median of each coordinate."""

    needs = "4f + 3"

    def rule(self, updates: Vectors) -> Vectors:
        """Return Bulyan's aggregate."""
        return rules.bulyan(updates, self.num_malicious)

    @property
    def least_updates(self) -> int:
        """4f + 3, as El Mhamdi et al. (2018) prove it for."""
        return 4 * self.num_malicious + 3


class CentredClipping(Robust):
    """The mean of the updates, each clipped to a radius around the mean of the last iteration."""

    def __init__(
        self,
        radius: float = 1.0,
        iterations: int = 3,
        num_malicious: int = 0,
        before: str = "none",
        bucket_size: int = 2,
        seed: int = 0,
        repetition: int = 0,
    ) -> None:
        """Prepare the rule.

        Args:
            radius: tau, > 0, the largest norm of a difference that counts in full.
            iterations: L, >= 1; one clips the updates themselves.
            num_malicious: As in `Robust`, like the rest.
            before: See there.
            bucket_size: See there.
            seed: See there.
            repetition: See there.
        """
        super().__init__(num_malicious, before, bucket_size, seed, repetition)
        if radius <= 0:
            raise UserError(f"strategy.radius must be > 0, got {radius:g}")
        if iterations < 1:
            raise UserError(f"strategy.iterations must be >= 1, got {iterations}")
        self._radius, self._iterations = radius, iterations

    def rule(self, updates: Vectors) -> Vectors:
        """Return the clipped mean."""
        return rules.centred_clipping(updates, self._radius, self._iterations)


class GeometricMedian(Robust):
    """The point with the least sum of distances to the updates."""

    def rule(self, updates: Vectors) -> Vectors:
        """Return the geometric median."""
        return rules.geometric_median(updates)
