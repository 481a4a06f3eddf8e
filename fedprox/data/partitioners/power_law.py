"""The paper's partition: a few neighbouring classes for each client, in amounts from a log-normal distribution."""

import numpy as np
from numpy.typing import NDArray

from fedprox.data.checks import check_between
from fedprox.data.federated import Integers
from fedprox.data.partitioners.sizes import MAX_SIGMA, check_num_clients
from fedprox.errors import UserError


def power_law(
    labels: Integers,
    num_clients: int,
    rng: np.random.Generator,
    *,
    classes_per_client: int = 2,
    sigma: float = 2.0,
    min_examples_per_class: int = 5,
) -> list[Integers]:
    """Give each client a few neighbouring classes, in amounts drawn from a log-normal distribution.

    Client u first takes `min_examples_per_class` examples of each class l = (u + j) mod C, j = 0, 1, ...,
    classes_per_client - 1. Then P ~ LogNormal(0, sigma) of shape (C, ceil(num_clients / C),
    classes_per_client), each P[l] scaled to sum to the number of examples of l that are left, and client
    u takes int(P[l, u // C, j]) more of l. Examples of a class are taken in the order of `labels`. Those left by the
    rounding belong to no client.

    1000 clients, 10 classes and the defaults are the authors' generator (litian96/FedProx,
    data/mnist/generate_niid.py).

    Args:
        labels: Classes 0 .. C - 1, shape (num_examples,).
        num_clients: Number of clients, >= 1.
        rng: Draws P; the only randomness.
        classes_per_client: Between 1 and C.
        sigma: Standard deviation of log P, between 0 (equal amounts) and 50.
        min_examples_per_class: The least number of a client's examples of each of its classes, >= 1.

    Raises:
        UserError: If a setting breaks its rule, or the classes are too small for so many clients.
    """
    counts = np.bincount(labels)
    num_classes = len(counts)
    check_between("classes_per_client", classes_per_client, 1, num_classes, "the paper has 2")
    check_between("sigma", sigma, 0, MAX_SIGMA, "the paper has 2")
    if min_examples_per_class < 1:
        raise UserError(
            f"min_examples_per_class must be >= 1, got {min_examples_per_class}; "
            "with less a client could be empty, the paper has 5"
        )
    largest = _largest_power_law(counts, classes_per_client, min_examples_per_class)
    remedy = "ask for fewer clients, or lower min_examples_per_class or classes_per_client"
    check_num_clients(num_clients, largest, remedy)

    clients, slots = np.arange(num_clients)[:, None], np.arange(classes_per_client)
    classes = (clients + slots) % num_classes
    first = np.full(classes.shape, min_examples_per_class)
    left = counts - min_examples_per_class * np.bincount(classes.ravel(), minlength=num_classes)
    shares = rng.lognormal(0.0, sigma, (num_classes, -(-num_clients // num_classes), classes_per_client))
    shares = left[:, None, None] * shares / shares.sum(axis=(1, 2), keepdims=True)
    more = shares[classes, clients // num_classes, slots].astype(np.int64)
    return _take_in_order(labels, counts, classes, [first, more])


def _largest_power_law(counts: Integers, classes_per_client: int, min_examples_per_class: int) -> int:
    """Return the largest number of clients for which each class has enough first examples.

    Class l serves a_l = counts[l] // min_examples_per_class clients. The clients u with u mod C in {l - j mod C} ask
    for it, classes_per_client of them in every C, so the first client that it cannot serve is number a_l (from 0) in
    that sequence. All clients before the earliest such client are served.

    Args:
        counts: Number of examples of each class, shape (C,).
        classes_per_client: Between 1 and C.
        min_examples_per_class: >= 1.
    """
    num_classes = len(counts)
    cycles, places = np.divmod(counts // min_examples_per_class, classes_per_client)
    asking = (np.arange(num_classes)[:, None] - np.arange(classes_per_client)) % num_classes
    unserved = cycles * num_classes + np.sort(asking, axis=1)[np.arange(num_classes), places]
    return int(unserved.min())


def _take_in_order(
    labels: Integers, counts: Integers, classes: Integers, rounds: list[NDArray[np.int64]]
) -> list[Integers]:
    """Let the clients take, one after another and round by round, the next examples of their classes.

    Args:
        labels: Classes, shape (num_examples,).
        counts: Number of examples of each class, shape (C,).
        classes: Each client's classes, shape (num_clients, classes_per_client).
        rounds: How many examples of each class a client takes, same shape, one array per round; if fewer are left, it
            takes none.
    """
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(counts).tolist()
    next_of = [end - count for end, count in zip(ends, counts.tolist(), strict=True)]
    parts: list[list[Integers]] = [[] for _ in classes]
    for amounts in rounds:
        for part, wanted, row in zip(parts, classes.tolist(), amounts.tolist(), strict=True):
            for label, amount in zip(wanted, row, strict=True):
                start, stop = next_of[label], next_of[label] + amount
                # The authors' "<" always leaves one; it differs only if all shares are integers.
                if amount and stop <= ends[label]:
                    part.append(by_class[start:stop])
                    next_of[label] = stop
    return [np.concatenate(part) for part in parts]
