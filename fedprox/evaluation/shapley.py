"""Shapley values: what each of m players adds to a value that they make together (Shapley 1953).

    phi_i = sum over S without i of |S|! (m - |S| - 1)! / m! (v(S + i) - v(S))

Their sum is v(all) - v(none); a player that never changes v gets 0; two that change it alike get the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import factorial

import numpy as np
from numpy.typing import NDArray

from fedprox.data.checks import check_between

Values = NDArray[np.float64]
Value = Callable[[int], float]  # of a set of players, whose bits are set
EXACT_UP_TO = 10  # players: 1,024 sets
MAX_PERMUTATIONS = 100_000


def none() -> None:
    """Return None: contributions are not measured."""
    return


@dataclass(frozen=True)
class Shapley:
    """Settings of `contribution=shapley`.

    Attributes:
        permutations: Random orders of more than 10 players, 1 .. 100,000; see `sampled`.
    """

    permutations: int = 200

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        check_between(
            "contribution.permutations", self.permutations, 1, MAX_PERMUTATIONS, "each is a pass over a round's clients"
        )

    def values(self, num_players: int, value: Value, rng: np.random.Generator) -> Values:
        """Return the players' values, shape (m,): exact for up to 10, else sampled."""
        if num_players <= EXACT_UP_TO:
            return exact(num_players, value)
        return sampled(num_players, value, self.permutations, rng)


def exact(num_players: int, value: Value) -> Values:
    """Return the Shapley values, shape (m,), from the values of all 2^m sets.

    Examples:
        >>> exact(2, lambda players: [0.0, 1.0, 2.0, 5.0][players]).tolist()  # v({0}) = 1, v({1}) = 2, v({0, 1}) = 5
        [2.0, 3.0]
    """
    sets = np.arange(2**num_players)
    values = np.array([value(int(players)) for players in sets])
    chances = [
        factorial(size) * factorial(num_players - size - 1) / factorial(num_players) for size in range(num_players)
    ]
    found = np.empty(num_players)
    for player in range(num_players):
        without = sets[sets & (1 << player) == 0]
        gains = values[without | (1 << player)] - values[without]
        found[player] = (np.array(chances)[np.bitwise_count(without)] * gains).sum()
    return found


def sampled(num_players: int, value: Value, permutations: int, rng: np.random.Generator) -> Values:
    """Return estimates of the Shapley values, shape (m,): mean gains as the players come in random orders.

    They are unbiased, and their sum is v(all) - v(none) too, because each order's gains add up to that.
    """
    known, gains = cache(value), np.zeros(num_players)
    for _ in range(permutations):
        players, before = 0, known(0)
        for player in rng.permutation(num_players).tolist():
            players |= 1 << player
            after = known(players)
            gains[player] += after - before
            before = after
    return gains / permutations
