"""Accuracy apart for each class, and how it differs among clients."""

import numpy as np
from numpy.typing import NDArray

from fedprox.metrics import ClassAccuracy, ClientSpread

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def by_class(is_right: Flags, labels: Integers, num_classes: int) -> tuple[ClassAccuracy, ...]:
    """Return the accuracy on the examples of each class 0 .. num_classes - 1.

    Args:
        is_right: Whether each example is classified rightly, shape (n,).
        labels: Classes, shape (n,).
        num_classes: Number of classes.
    """
    sizes, hits = (np.bincount(some, minlength=num_classes).tolist() for some in (labels, labels[is_right]))
    return tuple(
        ClassAccuracy(label, size, hit / size if size else None)
        for label, (size, hit) in enumerate(zip(sizes, hits, strict=True))
    )


def among_clients(is_right: Flags, sizes: Integers) -> ClientSpread:
    """Return how accuracy differs among clients, each of which counts the same (Li et al. 2020, q-FFL, table 1).

    Args:
        is_right: Whether each held-out example is classified rightly, clients one after another, shape (n,).
        sizes: How many of them each client has, shape (num_clients,), at least one above 0; a client without
            any does not count.
    """
    held = sizes[sizes > 0]
    hits = np.add.reduceat(is_right.astype(np.int64), np.cumsum(held) - held)
    accuracies = np.sort(hits / held)
    tenth = -(-len(held) // 10)  # rounded up: at least one client
    return ClientSpread(
        std=float(accuracies.std()), worst=float(accuracies[:tenth].mean()), best=float(accuracies[-tenth:].mean())
    )
