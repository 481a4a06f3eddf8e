"""Secure aggregation of a round: which clients deliver, the weighted mean that follows from their masked sum, bytes.

Client i delivers the masked (n_i u_i, n_i). The server gets their sum alone, and from it the mean update
sum n_i u_i / sum n_i.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedprox.channel.masking import (
    Masked,
    Party,
    Residues,
    Ring,
    Vector,
    key_bytes,
    plain_sum,
    sum_of_masked,
    vector_bytes,
)
from fedprox.seeds import Stream, generator

Draw = tuple[int, int]  # a client, and how often it was drawn earlier in the round
_VANISHED, _SHARES, _PARTY = 0, 1, 2  # streams of a round; those of parties are numbered from the last on
_log = logging.getLogger("fedprox")


@dataclass
class SecureSums:
    """The masked sums of a run.

    Attributes:
        settings: Of `secure_aggregation=masked`.
        ring: In which sums are computed.
        cohort: Returns the clients of a round that exchange keys: all that are planned, stragglers that will be
            dropped included, in the order of the plan.
        weighs_examples: Whether n_i is the number of examples; otherwise it is 1.
        seed: The run's.
        repetition: See `fedprox.seeds.generator`.
        num_clipped: How many values of each update of the last round were beyond the clip.
    """

    settings: Masked
    ring: Ring
    cohort: Callable[[int], Sequence[Draw]]
    weighs_examples: bool = True
    seed: int = 0
    repetition: int = 0
    num_clipped: dict[Draw, int] = field(default_factory=dict)
    _has_warned: bool = False

    def delivering(self, round_num: int, draws: Sequence[Draw]) -> list[Draw]:
        """Return which of the clients that have computed an update deliver it; none if they are below the threshold."""
        self.num_clipped = {}
        cohort = self.cohort(round_num)
        rng, probability = self._rng(round_num, _VANISHED), self.settings.dropouts
        vanished = {draw for draw in cohort if probability and rng.random() < probability}
        left, needed = [draw for draw in draws if draw not in vanished], self.settings.threshold_of(len(cohort))
        if len(left) >= needed:
            return left
        _log.warning(
            "round %d is lost: %d of %d clients delivered, and the sum of masked updates needs %d; the model stays",
            *(round_num, len(left), len(cohort), needed),
        )
        return []

    def mean(self, round_num: int, updates: Mapping[Draw, tuple[Vector, int]]) -> Vector:
        """Return sum n_i u_i / sum n_i of the clients that deliver, from the sum of their masked vectors.

        Args:
            round_num: The round.
            updates: Draw -> (u_i, n_i), of at least the threshold.
        """
        self.num_clipped = {draw: int((np.abs(u) > self.settings.clip).sum()) for draw, (u, _) in updates.items()}
        self._warn_of_clipping(round_num)
        cohort = list(self.cohort(round_num))
        total = self._sum(round_num, {cohort.index(draw): self._encoded(*own) for draw, own in updates.items()})
        weight = self.ring.decoded(total[-1:])[0] * self.ring.scale  # numbers of examples are not scaled
        mean: Vector = self.ring.decoded(total[:-1]) / weight
        return mean

    def _encoded(self, update: Vector, num_examples: int) -> Residues:
        clipped = np.clip(update, -self.settings.clip, self.settings.clip)
        return np.append(self.ring.encoded(num_examples * clipped), np.uint64(num_examples))

    def _sum(self, round_num: int, encoded: Mapping[int, Residues]) -> Residues:
        if not self.settings.masks:
            return self.ring.wrapped(plain_sum(list(encoded.values())))
        num = len(self.cohort(round_num))
        parties = [Party.drawn(self._rng(round_num, _PARTY + position)) for position in range(num)]
        threshold, rng = self.settings.threshold_of(num), self._rng(round_num, _SHARES)
        return sum_of_masked(encoded, parties, threshold, self.ring, rng)

    def bytes_of(self, round_num: int, delivered: Sequence[Draw], num_values: int) -> tuple[dict[Draw, int], int]:
        """Return the bytes that each client of a round sends, and those that the server sends besides models.

        Args:
            round_num: The round.
            delivered: The clients that deliver.
            num_values: Values of an update.
        """
        cohort = self.cohort(round_num)
        num = len(cohort) if self.settings.masks else 0
        sent, received = key_bytes(num) if num else (0, 0)
        vector = vector_bytes(num_values + 1, num, self.ring)
        return {draw: sent + (vector if draw in delivered else 0) for draw in cohort}, num * received

    def _warn_of_clipping(self, round_num: int) -> None:
        if any(self.num_clipped.values()) and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "round %d: %d values of %d updates are beyond secure_aggregation.clip=%g and are clipped to it; raise "
                "it, or see the column num_clipped of clients.csv for this and later rounds",
                *(round_num, sum(self.num_clipped.values()), np.count_nonzero(list(self.num_clipped.values()))),
                self.settings.clip,
            )

    def _rng(self, round_num: int, purpose: int) -> np.random.Generator:
        return generator(self.seed, Stream.MASKS, round_num, purpose, repetition=self.repetition)
