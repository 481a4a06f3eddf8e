"""Metrics of a model; losses are true means over examples, never means of batch means."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class FederationMetrics:
    """Metrics of a model on all clients; E_k is the mean over clients weighted by n_k / n.

    Attributes:
        train_loss: f(w) = E_k F_k(w), the mean loss over all clients' training examples.
        train_accuracy: Share of these examples predicted correctly; None for regression.
        test_loss: Mean loss over the global test set, or over all clients' held-out examples without one; None
            if it was not measured.
        test_accuracy: Share of these examples classified correctly; None if it was not measured.
        gradient_variance: E_k ||grad F_k - grad f||^2, the dissimilarity that the paper plots.
        gradient_variance_unweighted: The same with the plain mean over clients, as in the authors' program.
        dissimilarity_b: B(w) = sqrt(E_k ||grad F_k||^2 / ||grad f||^2) (Definition 3).
    """

    train_loss: float
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    gradient_variance: float
    gradient_variance_unweighted: float
    dissimilarity_b: float


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of a model on the test examples of one class.

    Attributes:
        label: The class, 0 .. num_classes - 1.
        num_examples: Number of its test examples.
        accuracy: Share of them classified correctly; None without examples.
    """

    label: int
    num_examples: int
    accuracy: float | None


@dataclass(frozen=True)
class ClientSpread:
    """Spread of a model's accuracy over clients, each on its own held-out examples; all clients count the same.

    Attributes:
        std: Population standard deviation (ddof = 0) over clients.
        worst: Mean over the tenth of the clients with the lowest accuracies, rounded up to whole clients.
        best: Mean over the tenth of the clients with the highest accuracies, rounded up to whole clients.
    """

    std: float
    worst: float
    best: float


@dataclass(frozen=True)
class PrivacyCost:
    """What a model has cost the privacy of the clients who took part.

    Attributes:
        epsilon: Epsilon of all rounds so far, at the run's delta; infinite without noise.
        clip: Largest norm of an update in the next round.
    """

    epsilon: float
    clip: float


@dataclass(frozen=True)
class PersonalAccuracy:
    """Accuracy of each client's own model on its own held-out examples, beside the global model's on the same ones.

    All arrays have the shape (num_clients,).

    Attributes:
        sizes: Number of held-out examples; 0 for clients that do not count.
        num_correct: How many of them the client's own model classifies correctly.
        num_correct_global: The same of the global model.
        has_trained: Whether the client has trained a model of its own; all others have the initial one, or the
            global one with the initial values of what is not shared.
    """

    sizes: NDArray[np.int64]
    num_correct: NDArray[np.int64]
    num_correct_global: NDArray[np.int64]
    has_trained: NDArray[np.bool_]

    @property
    def counts(self) -> NDArray[np.bool_]:
        """Which clients count."""
        return self.sizes > 0

    @property
    def by_example(self) -> float:
        """Share of all held-out examples that are classified correctly."""
        return float(self.num_correct.sum() / self.sizes.sum())

    @property
    def by_client(self) -> NDArray[np.float64]:
        """Accuracy of each client that counts."""
        return self.num_correct[self.counts] / self.sizes[self.counts]

    @property
    def coverage(self) -> float:
        """Share of the clients that count which have trained a model of their own."""
        return float(self.has_trained[self.counts].mean())


@dataclass(frozen=True)
class Evaluation:
    """Measurements of a model.

    Attributes:
        loss: Mean loss over test examples, by default the cross-entropy, in nats; None if it was not measured.
        accuracy: Share of test examples that are predicted correctly (`fedprox.evaluation.predictions`), 0 .. 1; None
            if it was not measured.
        federation: Metrics on all clients, if measured.
        classes: Accuracy per class, if measured.
        spread: Spread of the accuracy over clients, if measured.
        privacy: What the model has cost the clients' privacy, if that is counted.
        attack_success: Share of the test images with a backdoor's trigger that are taken for its target class, if
            measured.
        personal: Accuracy of the clients' own models, if they have any.
        further: What the metrics of `metrics=` measure on the test examples: names and values.
    """

    loss: float | None
    accuracy: float | None
    federation: FederationMetrics | None = None
    classes: tuple[ClassAccuracy, ...] = ()
    spread: ClientSpread | None = None
    privacy: PrivacyCost | None = None
    attack_success: float | None = None
    personal: PersonalAccuracy | None = None
    further: tuple[tuple[str, float], ...] = ()

    @property
    def score(self) -> float | None:
        """What makes a round the best, larger being better: the accuracy, or without one minus the loss."""
        return self.accuracy if self.accuracy is not None or self.loss is None else -self.loss


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
    """Return the spread of accuracy over clients, each of which counts the same (Li et al. 2020, q-FFL, table 1).

    Args:
        is_correct: Whether each held-out example is classified correctly, one client after another, shape (n,).
        sizes: Number of held-out examples of each client, shape (num_clients,), at least one above 0; clients without
            any do not count.

    Examples:
        >>> among_clients(np.array([True, True, False, True]), sizes=np.array([2, 2]))  # accuracies 1 and 0.5
        ClientSpread(std=0.25, worst=0.5, best=1.0)
    """
    held = sizes[sizes > 0]
    return spread(np.add.reduceat(is_correct.astype(np.int64), np.cumsum(held) - held) / held)


def spread(accuracies: ArrayLike) -> ClientSpread:
    """Return the spread of the clients' accuracies, at least one."""
    accuracies = np.sort(np.asarray(accuracies, dtype=np.float64))
    tenth = -(-len(accuracies) // 10)  # rounded up: at least one client
    return ClientSpread(
        std=float(accuracies.std()), worst=float(accuracies[:tenth].mean()), best=float(accuracies[-tenth:].mean())
    )
