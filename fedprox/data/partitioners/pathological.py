"""Label skew by number of classes: each client has exactly k of them."""

import bisect
import heapq

import numpy as np

from fedprox.data.checks import check_between
from fedprox.data.federated import Integers
from fedprox.data.partitioners.sizes import (
    apportion,
    check_num_clients,
    parts_of,
    shuffled_classes,
    size_weights,
)
from fedprox.errors import UserError


def pathological(
    labels: Integers,
    num_clients: int,
    rng: np.random.Generator,
    *,
    classes_per_client: int = 2,
    sizes: str = "equal",
    sigma: float = 1.0,
    exponent: float = 1.0,
) -> list[Integers]:
    """Divide all examples so that each client has exactly k classes and each class at least one client.

    This is what the shards of McMahan et al. 2017, sec. 3, aim at, but no shard straddles two classes and no client
    gets the same class twice. The more examples a class has, the more clients it has, so that amounts are as equal as
    possible. The classes of each client are drawn. A class is divided among its clients in proportion to their weights,
    at least one example each.

    Args:
        labels: Classes, shape (num_examples,).
        num_clients: Number of clients, at least C / classes_per_client for C classes that occur.
        rng: The only randomness.
        classes_per_client: k, between 1 and C.
        sizes: Law of the weights, "equal", "lognormal" or "zipf": see `fedprox.data.partitioners.sizes.size_weights`.
            Sizes follow it as far as the classes allow.
        sigma: Of "lognormal".
        exponent: Of "zipf".

    Raises:
        UserError: If a setting breaks its rule, or the classes are too small for so many clients.
    """
    classes = shuffled_classes(labels, rng)
    counts = np.array([len(members) for members in classes])
    _check(counts, num_clients, classes_per_client)
    weights = size_weights(num_clients, rng, sizes, sigma, exponent)
    num_holders = _num_holders(counts, num_clients, classes_per_client)
    held = _deal(num_holders, num_clients, classes_per_client, rng)
    by_class = np.argsort(held.ravel(), kind="stable") // classes_per_client
    owner = np.empty(len(labels), dtype=np.int64)
    for members, holders in zip(classes, np.split(by_class, np.cumsum(num_holders)[:-1]), strict=True):
        owner[members] = np.repeat(holders, apportion(len(members), weights[holders], smallest=1))
    return parts_of(owner, num_clients)


def _check(counts: Integers, num_clients: int, classes_per_client: int) -> None:
    """Raise UserError unless n clients can have k classes each, and each class a client.

    A class of m examples serves at most min(n, m) clients, and all classes together must serve n * k.
    """
    k, num_classes = classes_per_client, len(counts)
    check_between("classes_per_client", k, 1, num_classes, f"the data have {num_classes} classes")
    # minimum(counts, n).sum() - n * k is concave in n and 0 at n = 0: once below 0 it stays there.
    numbers = range(1, int(counts.sum()) // k + 2)
    largest = bisect.bisect_left(numbers, True, key=lambda n: bool(np.minimum(counts, n).sum() < n * k))
    check_num_clients(num_clients, largest, "ask for fewer clients or lower classes_per_client")
    if num_clients * k < num_classes:
        raise UserError(
            f"num_clients must be at least {-(-num_classes // k)} for each of {num_classes} classes to have a client, "
            f"got {num_clients} with {k} each; ask for more clients or raise classes_per_client"
        )


def _num_holders(counts: Integers, num_clients: int, classes_per_client: int) -> Integers:
    """Return how many clients have each class, num_clients * classes_per_client in all.

    Each class gets one, and each further client goes to the class with most examples per client. A class has at most
    as many as there are clients, or as it has examples.
    """
    holders = [1] * len(counts)
    most = np.minimum(counts, num_clients).tolist()
    amounts = [(-count, label) for label, count in enumerate(counts.tolist()) if most[label] > 1]
    heapq.heapify(amounts)
    for _ in range(num_clients * classes_per_client - len(counts)):
        label = amounts[0][1]
        holders[label] += 1
        if holders[label] < most[label]:
            heapq.heapreplace(amounts, (-counts[label] / holders[label], label))
        else:
            heapq.heappop(amounts)
    return np.array(holders)


def _deal(num_holders: Integers, num_clients: int, classes_per_client: int, rng: np.random.Generator) -> Integers:
    """Return each client's classes, all different, shape (num_clients, classes_per_client).

    Systematic sampling in a new random order for each client: if r clients remain, the places that the classes have
    left form a line of length r * k, and the client takes the places u, u + r, u + 2 r, ... for a random u < r. No
    class has more than r places left, so none is met twice; a class that has r is always met.
    """
    left = num_holders.copy()
    held = np.empty((num_clients, classes_per_client), dtype=np.int64)
    remaining = np.arange(num_clients, 0, -1)
    first = rng.integers(remaining)
    places = first[:, None] + remaining[:, None] * np.arange(classes_per_client)
    for client in range(num_clients):
        order = rng.permutation(len(left))
        held[client] = order[np.searchsorted(np.cumsum(left[order]), places[client], side="right")]
        left[held[client]] -= 1
    return held
