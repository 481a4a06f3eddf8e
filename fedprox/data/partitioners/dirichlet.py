"""Label skew by one number, alpha: classes divided in shares from a Dirichlet distribution."""

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

MIN_ALPHA, MAX_ALPHA = 0.01, 1000.0


def dirichlet(
    labels: Integers,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_examples: int = 10,
    sizes: str = "drawn",
    sigma: float = 1.0,
    exponent: float = 1.0,
) -> list[Integers]:
    """Divide all examples so that a client has much of some classes and little of others.

    sizes="drawn": one class after the other is divided among the clients in shares from Dir(alpha, ..., alpha). A
    client that already holds an equal part of all examples gets nothing of further classes (Yurochkin et al. 2019, sec.
    4, in the form of Li et al. 2022, NIID-Bench, sec. 4.1, and of NVIDIA FLARE's CIFAR-10 example). They draw again
    until every client has enough, which never happens for many clients. Here one draw is repaired: a client with fewer
    than min_examples receives random examples of the largest clients. These are handed out in class order, so that
    nearly all that one client receives is of one class, as with a small alpha.

    Other sizes are kept exactly: client k draws a mixture q ~ Dir(alpha, ..., alpha) over the classes, weighted by
    their frequencies, and then a class for each of its n_k examples from q (Hsu et al. 2019, sec. 3, whose alpha is
    this one times the number of classes). If a class is asked for too often, clients are served in random order;
    clients that fall short receive leftover examples in class order.

    Args:
        labels: Classes, shape (num_examples,).
        num_clients: Number of clients, between 1 and num_examples // min_examples.
        rng: The only randomness.
        alpha: Between 0.01, nearly one class per client, and 1000, nearly the same mixture for all.
        min_examples: The least number of examples of a client, >= 1, including those it holds out for testing.
        sizes: "drawn", or "equal", "lognormal", "zipf": see `fedprox.data.partitioners.sizes.size_weights`. Each client
            first gets min_examples, and the rest follows that law.
        sigma: Of "lognormal".
        exponent: Of "zipf".

    Raises:
        UserError: If a setting breaks its rule, or there are too few examples for so many clients.

    Examples:
        Four clients' examples of three classes, with strong label skew and with nearly none.

        >>> labels = np.repeat([0, 1, 2], 100)
        >>> for alpha in (0.1, 1000.0):
        ...     parts = dirichlet(labels, 4, np.random.default_rng(0), alpha=alpha)
        ...     print([np.bincount(labels[part], minlength=3).tolist() for part in parts])
        [[0, 96, 0], [92, 0, 0], [0, 3, 7], [8, 1, 93]]
        [[24, 26, 26], [27, 25, 25], [23, 24, 24], [26, 25, 25]]
    """
    check_between("alpha", alpha, MIN_ALPHA, MAX_ALPHA, "0.1 is strong label skew, 100 nearly none")
    if min_examples < 1:
        raise UserError(f"min_examples must be >= 1, got {min_examples}; with less a client could be empty")
    remedy = f"ask for fewer clients, or lower min_examples={min_examples}"
    check_num_clients(num_clients, len(labels) // min_examples, remedy)
    weights = size_weights(num_clients, rng, "equal" if sizes == "drawn" else sizes, sigma, exponent)
    classes = shuffled_classes(labels, rng)
    if sizes == "drawn":
        owner = _owners_by_class(classes, num_clients, alpha, rng)
        _fill_up(owner, labels, num_clients, min_examples, rng)
    else:
        owner = _owners_by_client(classes, apportion(len(labels), weights, min_examples), alpha, rng)
    return parts_of(owner, num_clients)


def _owners_by_class(classes: list[Integers], num_clients: int, alpha: float, rng: np.random.Generator) -> Integers:
    """Return each example's client if every class is divided among clients with less than an equal part."""
    num_examples = sum(map(len, classes))
    owner = np.empty(num_examples, dtype=np.int64)
    sizes = np.zeros(num_clients, dtype=np.int64)
    for members in classes:
        takers = np.flatnonzero(sizes < num_examples / num_clients)  # not empty while examples are left
        # Shares of some of the clients, scaled to sum to 1, are again Dirichlet with the same alpha.
        bounds = np.cumsum(rng.dirichlet(np.full(len(takers), alpha)))
        cuts = (bounds / bounds[-1] * len(members)).astype(np.int64)
        amounts = np.diff(cuts, prepend=0)
        owner[members] = np.repeat(takers, amounts)
        sizes[takers] += amounts
    return owner


def _fill_up(owner: Integers, labels: Integers, num_clients: int, min_examples: int, rng: np.random.Generator) -> None:
    """Change the owners of as few examples as possible so that every client has min_examples.

    An example's place is its number among its owner's examples in random order. Examples with the highest places change
    owners: so the largest clients give, down to a common size, and no client gives its first min_examples.
    """
    sizes = np.bincount(owner, minlength=num_clients)
    missing = np.maximum(min_examples - sizes, 0)
    order = rng.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]
    places = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    highest_first = order[np.argsort(-places, kind="stable")]
    _hand_out(owner, highest_first[: missing.sum()], labels, missing, rng)


def _owners_by_client(classes: list[Integers], sizes: Integers, alpha: float, rng: np.random.Generator) -> Integers:
    """Return each example's client if every client asks for as many as its size, by class."""
    counts = np.array([len(members) for members in classes])
    mixtures = rng.dirichlet(np.full(len(classes), alpha), len(sizes)) * counts
    asked = rng.multinomial(sizes, mixtures / mixtures.sum(axis=1, keepdims=True))
    owner = np.full(counts.sum(), -1)
    for members, wanted in zip(classes, asked.T, strict=True):
        served = rng.permutation(len(sizes))
        askers = np.repeat(served, wanted[served])[: len(members)]
        owner[members[: len(askers)]] = askers
    missing = sizes - np.bincount(owner[owner >= 0], minlength=len(sizes))
    class_of = np.empty_like(owner)
    class_of[np.concatenate(classes)] = np.repeat(np.arange(len(classes)), counts)
    _hand_out(owner, np.flatnonzero(owner < 0), class_of, missing, rng)
    return owner


def _hand_out(owner: Integers, free: Integers, labels: Integers, missing: Integers, rng: np.random.Generator) -> None:
    """Give free examples in class order to clients in random order, to each as many as it is missing."""
    clients = rng.permutation(len(missing))
    owner[free[np.argsort(labels[free], kind="stable")]] = np.repeat(clients, missing[clients])
