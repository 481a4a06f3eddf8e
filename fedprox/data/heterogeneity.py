"""Measures of heterogeneity: how much clients differ in their classes and in their numbers of examples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprox.data.federated import ClientIndex, Integers

Distributions = NDArray[np.float64]

MOST_CLIENTS = 1_000  # up to here every pair of clients is compared, beyond that as many pairs drawn at random
MOST_PAIRS = MOST_CLIENTS * (MOST_CLIENTS - 1) // 2
_PAIRS_AT_ONCE = 10_000  # bounds the memory


@dataclass(frozen=True)
class Skew:
    """The measures of skew.

    Attributes:
        js_distance: Mean Jensen-Shannon distance between the label distributions of two clients, 0 (all the
            same) to 1 (no two share a class).
        effective_classes: Effective number of classes of a client, 1 to num_classes: smallest, mean, largest.
        gini: Gini coefficient of the clients' sizes, 0 (all equal) to below 1 (one holds nearly all examples).
        sizes: Examples of a client: smallest, median, largest.
        num_clients: Number of clients.
        num_examples: Examples of all clients.
    """

    js_distance: float
    effective_classes: tuple[float, float, float]
    gini: float
    sizes: tuple[int, float, int]
    num_clients: int
    num_examples: int


def class_counts(labels: Integers, clients: ClientIndex, num_classes: int) -> Integers:
    """Return how many examples of each class each client holds, shape (num_clients, num_classes).

    Args:
        labels: Classes 0 .. num_classes - 1, shape (num_examples,).
        clients: Which of these examples each client holds.
        num_classes: Number of classes.
    """
    owners = np.repeat(np.arange(len(clients)), clients.sizes)
    cells = owners * num_classes + labels[clients.indices]
    return np.bincount(cells, minlength=len(clients) * num_classes).reshape(len(clients), num_classes)


def measure(counts: Integers, rng: np.random.Generator) -> Skew:
    """Return the measures of skew.

    Args:
        counts: Examples of each class at each client, at least one at each, shape (num_clients, num_classes).
        rng: Draws the pairs of clients to compare if there are more than MOST_CLIENTS; see `js_distance`.
    """
    shares = label_distributions(counts)
    sizes, classes = counts.sum(axis=1), effective_classes(shares)
    return Skew(
        js_distance=js_distance(shares, rng),
        effective_classes=(float(classes.min()), float(classes.mean()), float(classes.max())),
        gini=gini(sizes),
        sizes=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
        num_clients=len(sizes),
        num_examples=int(sizes.sum()),
    )


def label_distributions(counts: Integers) -> Distributions:
    """Return each client's share of each class among its examples: same shape, every row sums to 1.

    Args:
        counts: Examples of each class at each client, at least one at each, shape (num_clients, num_classes).
    """
    shares: Distributions = counts / counts.sum(axis=1, keepdims=True)
    return shares


def effective_classes(shares: Distributions) -> NDArray[np.float64]:
    """Return exp(H) of each client, H the entropy of its label distribution in nats; shape (num_clients,).

    It is c for a client that holds c classes in equal parts, and between 1 and num_classes for all others.

    Args:
        shares: From `label_distributions`.

    Examples:
        >>> effective_classes(label_distributions(np.array([[5, 5, 0], [10, 0, 0]]))).tolist()
        [2.0, 1.0]
    """
    return np.asarray(np.exp2(_entropies(shares)))


def js_distance(shares: Distributions, rng: np.random.Generator) -> float:
    """Return the mean over pairs of different clients of sqrt(H(m) - H(p)/2 - H(q)/2), m = p/2 + q/2, H in bits.

    This is the Jensen-Shannon distance (Endres and Schindelin 2003), the square root of the divergence. Up to
    MOST_CLIENTS clients the mean is over all pairs, beyond that over MOST_PAIRS pairs drawn with replacement. Its
    standard error is then below 0.5 / sqrt(MOST_PAIRS) = 0.0008, because all values are in 0 .. 1.

    Args:
        shares: From `label_distributions`.
        rng: Draws the pairs; not used if all pairs are compared.

    Returns:
        Between 0 and 1; 0 for a single client.

    Examples:
        >>> js_distance(np.array([[1.0, 0.0], [0.0, 1.0]]), np.random.default_rng(0))  # no class in common
        1.0
    """
    num_clients = len(shares)
    if num_clients == 1:
        return 0.0
    if num_clients <= MOST_CLIENTS:
        first, second = np.triu_indices(num_clients, k=1)
    else:
        first = rng.integers(num_clients, size=MOST_PAIRS)
        second = (first + rng.integers(1, num_clients, size=MOST_PAIRS)) % num_clients  # never the first client itself
    entropies = _entropies(shares)
    total = 0.0
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        p, q = first[start : start + _PAIRS_AT_ONCE], second[start : start + _PAIRS_AT_ONCE]
        divergences = _entropies((shares[p] + shares[q]) / 2) - (entropies[p] + entropies[q]) / 2
        total += float(np.sqrt(divergences.clip(0.0, 1.0)).sum())  # rounding may leave the range by a little
    return total / len(first)


def gini(sizes: Integers) -> float:
    """Return the mean absolute difference of two clients' sizes over twice their mean.

    With sizes x_1 <= ... <= x_n it is sum_i (2 i - n - 1) x_i / (n sum_i x_i): 0 if all are equal, and (n - 1) / n if
    one client holds everything.

    Args:
        sizes: Examples of each client, shape (num_clients,), not all 0.

    Examples:
        >>> gini(np.array([5, 5, 5, 5])), gini(np.array([20, 0, 0, 0]))
        (0.0, 0.75)
    """
    ranks = 2 * np.arange(1, len(sizes) + 1) - len(sizes) - 1
    return float(ranks @ np.sort(sizes) / (len(sizes) * sizes.sum()))


def _entropies(shares: Distributions) -> NDArray[np.float64]:
    """Return the entropy of each row in bits, with 0 log 0 = 0."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(axis=1))
