"""The hostile clients of a run."""

import numpy as np
from numpy.typing import NDArray

from fedprox.seeds import Stream, generator


def malicious_clients(num_clients: int, fraction: float, seed: int, repetition: int = 0) -> NDArray[np.bool_]:
    """Return which clients attack, shape (num_clients,): a share of all, rounded to the nearest number.

    A pure function of its arguments, so every strategy meets the same attackers; a smaller share is a subset of a
    larger one.

    Examples:
        >>> malicious_clients(5, 0.4, seed=0).tolist()
        [False, True, False, False, True]
    """
    order = generator(seed, Stream.MALICIOUS, repetition=repetition).permutation(num_clients)
    is_malicious = np.zeros(num_clients, dtype=bool)
    is_malicious[order[: round(fraction * num_clients)]] = True
    return is_malicious
