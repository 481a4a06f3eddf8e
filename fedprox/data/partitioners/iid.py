"""Examples divided evenly and at random."""

import numpy as np

from fedprox.data.federated import Integers
from fedprox.data.partitioners.sizes import apportion, check_num_clients, size_weights


def iid(
    labels: Integers,
    num_clients: int,
    rng: np.random.Generator,
    *,
    sizes: str = "equal",
    sigma: float = 1.0,
    exponent: float = 1.0,
) -> list[Integers]:
    """Cut a random permutation of all examples into parts, by default of sizes that differ by at most one.

    Args:
        labels: Classes, shape (num_examples,); only their number matters.
        num_clients: Number of clients, between 1 and num_examples.
        rng: Draws the permutation, and sizes that are not equal.
        sizes: "equal", "lognormal" or "zipf": see `fedprox.data.partitioners.sizes.size_weights`. Each client first
            gets one example, and the rest follows that law.
        sigma: Of "lognormal".
        exponent: Of "zipf".

    Raises:
        UserError: If a setting breaks its rule, or there are more clients than examples.
    """
    check_num_clients(num_clients, len(labels), "ask for fewer clients")
    parts = apportion(len(labels), size_weights(num_clients, rng, sizes, sigma, exponent), smallest=1)
    return np.split(rng.permutation(len(labels)), np.cumsum(parts)[:-1])
