"""What is measured on a model: losses are true means over examples, never means of batch means."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class FederationMetrics:
    """A model on all clients; E_k is weighted by n_k / n unless said otherwise.

    Attributes:
        train_loss: f(w) = E_k F_k(w), the mean cross-entropy over all clients' training examples.
        train_accuracy: Share of those classified rightly.
        test_loss: Mean cross-entropy over all clients' held-out examples, or the global test set where there is one.
        test_accuracy: Share of those classified rightly.
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
class Evaluation:
    """A model on a set of examples.

    Attributes:
        loss: Mean cross-entropy over examples, in nats.
        accuracy: Share of examples whose largest logit is the label's, 0 .. 1.
        federation: More on all clients, where that is measured.
    """

    loss: float
    accuracy: float
    federation: FederationMetrics | None = None


@torch.no_grad()
def evaluate(model: nn.Module, features: Tensor, labels: Tensor, batch_size: int = 10_000) -> Evaluation:
    """Return the model's loss and accuracy on examples of shape (n, *input_shape) and labels (n,), n >= 1."""
    model.eval()
    loss, correct = 0.0, 0
    for x, y in zip(torch.split(features, batch_size), torch.split(labels, batch_size), strict=True):
        logits = model(x).float()
        loss += float(functional.cross_entropy(logits, y, reduction="sum"))
        correct += int((logits.argmax(dim=1) == y).sum())
    return Evaluation(loss / len(labels), correct / len(labels))
