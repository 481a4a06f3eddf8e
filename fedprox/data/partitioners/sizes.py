"""Building blocks of partitions: sizes of clients, classes in random order, examples by owner."""

import numpy as np
from numpy.typing import NDArray

from fedprox.data.checks import check_between
from fedprox.data.federated import Integers
from fedprox.errors import UserError

MAX_SIGMA = 50.0  # exp(50 * z) overflows float64 beyond z = 14, which is never drawn
MAX_EXPONENT = 10.0  # weights of 10 million clients stay above 1e-70

Weights = NDArray[np.float64]


def size_weights(num_clients: int, rng: np.random.Generator, sizes: str, sigma: float, exponent: float) -> Weights:
    """Return weights > 0 to which the clients' sizes are proportional, shape (num_clients,).

    Args:
        num_clients: Number of clients, >= 1.
        rng: Draws the weights; "equal" draws nothing.
        sizes: "equal"; "lognormal", exp(sigma * z) with standard normal z; or "zipf", r^-exponent for the
            ranks r = 1 .. num_clients, dealt to the clients at random.
        sigma: Of the log-normal distribution, between 0 (equal sizes) and 50.
        exponent: Of Zipf's law, between 0 (equal sizes) and 10.

    Raises:
        UserError: If the law is unknown, or a number is out of its range.
    """
    check_between("sigma", sigma, 0, MAX_SIGMA, "1 makes one client in six more than 2.7 times the median")
    check_between("exponent", exponent, 0, MAX_EXPONENT, "1 is Zipf's law")
    if sizes == "equal":
        return np.ones(num_clients)
    if sizes == "lognormal":
        return rng.lognormal(0.0, sigma, num_clients)
    if sizes == "zipf":
        return rng.permutation(np.arange(1.0, num_clients + 1) ** -exponent)
    raise UserError(f"sizes must be equal, lognormal or zipf (with partition=dirichlet also drawn), got {sizes}")


def apportion(total: int, weights: Weights, smallest: int) -> Integers:
    """Return integers with the sum `total`: `smallest` for each client, the rest in proportion to weights.

    Fractions are rounded by largest remainders, the first of equal ones up, so equal weights give numbers that differ
    by at most one, like numpy.array_split.

    Args:
        total: The number to divide, at least smallest * len(weights).
        weights: > 0.
        smallest: >= 0.
    """
    rest = total - smallest * len(weights)
    exact = rest * weights / weights.sum()
    parts: Integers = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: rest - parts.sum()]] += 1
    return parts + smallest


def shuffled_classes(labels: Integers, rng: np.random.Generator) -> list[Integers]:
    """Return the positions of each class that occurs, in class order, each in random order."""
    order = rng.permutation(len(labels))
    counts = np.bincount(labels)
    by_class = np.split(order[np.argsort(labels[order], kind="stable")], np.cumsum(counts)[:-1])
    return [members for members in by_class if len(members)]


def parts_of(owner: Integers, num_clients: int) -> list[Integers]:
    """Return each client's positions, ascending, from the owner of each example, shape (num_examples,)."""
    cuts = np.cumsum(np.bincount(owner, minlength=num_clients))[:-1]
    return np.split(np.argsort(owner, kind="stable"), cuts)


def check_num_clients(num_clients: int, largest: int, remedy: str) -> None:
    """Raise UserError unless 1 <= num_clients <= largest, for which the data have enough examples."""
    if num_clients < 1:
        raise UserError(f"num_clients must be >= 1, got {num_clients}; ask for at least one client")
    if largest < 1:
        raise UserError(f"num_clients must be at least 1, but the data are too few even for one client; {remedy}")
    if num_clients > largest:
        raise UserError(f"num_clients must be at most {largest} with this data, got {num_clients}; {remedy}")
