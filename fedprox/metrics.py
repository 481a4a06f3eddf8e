"""What is measured on a model: losses are true means over examples, never means of batch means."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Evaluation:
    """A model on a set of examples.

    Attributes:
        loss: Mean cross-entropy over examples, in nats.
        accuracy: Share of examples whose largest logit is the label's, 0 .. 1.
    """

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, features: Tensor, labels: Tensor, batch_size: int = 10_000) -> Evaluation:
    """Return the model's loss and accuracy on examples of shape (n, *input_shape) and labels (n,), n >= 1."""
    model.eval()
    loss, correct = 0.0, 0
    for x, y in zip(torch.split(features, batch_size), torch.split(labels, batch_size), strict=True):
        logits = model(x)
        loss += float(functional.cross_entropy(logits, y, reduction="sum"))
        correct += int((logits.argmax(dim=1) == y).sum())
    return Evaluation(loss / len(labels), correct / len(labels))
