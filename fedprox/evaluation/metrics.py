"""What is measured on a model: losses are true means over examples, never means of batch means."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FederationMetrics:
    """A model on all clients; E_k is weighted by n_k / n unless said otherwise.

    Attributes:
        train_loss: f(w) = E_k F_k(w), the mean cross-entropy over all clients' training examples.
        train_accuracy: Share of those classified correctly.
        test_loss: Mean cross-entropy over all clients' held-out examples, or the global test set where there is one.
        test_accuracy: Share of those classified correctly.
        gradient_variance: E_k ||grad F_k - grad f||^2, the dissimilarity that the paper plots.
        gradient_variance_unweighted: The same with the plain mean over clients, as the authors' program has it.
        dissimilarity_b: B(w) = sqrt(E_k ||grad F_k||^2 / ||grad f||^2) (Definition 3).
    """

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    gradient_variance: float
    gradient_variance_unweighted: float
    dissimilarity_b: float


@dataclass(frozen=True)
class ClassAccuracy:
    """A model on the test examples of one class.

    Attributes:
        label: 0 .. num_classes - 1.
        num_examples: How many there are.
        accuracy: Share of them classified correctly; None if there are none.
    """

    label: int
    num_examples: int
    accuracy: float | None


@dataclass(frozen=True)
class ClientSpread:
    """How a model's accuracy on a client's own held-out examples differs among clients; each counts the same.

    Attributes:
        std: Standard deviation over all clients, which are no sample: the sum of squares is divided by their number.
        worst: Mean over the tenth of them with the lowest accuracies, rounded up.
        best: Mean over the tenth with the highest, likewise.
    """

    std: float
    worst: float
    best: float


@dataclass(frozen=True)
class Evaluation:
    """A model on a set of examples.

    Attributes:
        loss: Mean cross-entropy over examples, in nats.
        accuracy: Share of examples whose largest logit is the label's, 0 .. 1.
        federation: More on all clients, where that is measured.
        classes: Each class apart, where that is measured.
        spread: How accuracy differs among clients, where that is measured.
    """

    loss: float
    accuracy: float
    federation: FederationMetrics | None = None
    classes: tuple[ClassAccuracy, ...] = ()
    spread: ClientSpread | None = None


Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def by_class(is_correct: Flags, labels: Integers, num_classes: int) -> tuple[ClassAccuracy, ...]:
    """Return the accuracy on the examples of each class 0 .. num_classes - 1.

    Args:
        is_correct: Whether each example is classified correctly, shape (n,).
        labels: Classes, shape (n,).
        num_classes: Number of classes.
    """
    sizes, num_correct = (np.bincount(some, minlength=num_classes).tolist() for some in (labels, labels[is_correct]))
    return tuple(
        ClassAccuracy(label, size, hit / size if size else None)
        for label, (size, hit) in enumerate(zip(sizes, num_correct, strict=True))
    )


def among_clients(is_correct: Flags, sizes: Integers) -> ClientSpread:
    """Return how accuracy differs among clients, each of which counts the same (Li et al. 2020, q-FFL, table 1).

    Args:
        is_correct: Whether each held-out example is classified correctly, clients one after another, shape (n,).
        sizes: How many of them each client has, shape (num_clients,), at least one above 0; a client without
            any does not count.
    """
    held = sizes[sizes > 0]
    num_correct = np.add.reduceat(is_correct.astype(np.int64), np.cumsum(held) - held)
    accuracies = np.sort(num_correct / held)
    tenth = -(-len(held) // 10)  # rounded up: at least one client
    return ClientSpread(
        std=float(accuracies.std()), worst=float(accuracies[:tenth].mean()), best=float(accuracies[-tenth:].mean())
    )
