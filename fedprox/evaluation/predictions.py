"""What a model predicts, by the task of its data."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprox.data.federated import Task


def predictions(outputs: Tensor, task: Task) -> Tensor:
    """Return what a model predicts.

    Args:
        outputs: Of the model, shape (n, num_classes).
        task: Of the data.

    Returns:
        The class of the largest logit, shape (n,); zeros and ones where the logits are above 0 (multilabel), or the
        outputs themselves (regression), shape (n, num_classes).

    Examples:
        >>> outputs = torch.tensor([[-1.0, 2.0]])
        >>> predictions(outputs, "classification"), predictions(outputs, "multilabel")
        (tensor([1]), tensor([[0., 1.]]))
    """
    if task == "classification":
        return outputs.argmax(dim=-1)
    return outputs if task == "regression" else (outputs > 0).to(outputs.dtype)


def is_correct(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return whether each example is predicted correctly, with multilabel in all its labels; False for regression."""
    if task == "regression":
        return torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    same = predictions(outputs, task) == labels
    return same.all(dim=-1) if task == "multilabel" else same


def probabilities(outputs: Tensor, task: Task) -> NDArray[np.float64]:
    """Return the probability of each class, float64, shape (n, num_classes); for two classes the second's, (n,)."""
    doubles = outputs.double()
    if task == "multilabel":
        return doubles.sigmoid().numpy()
    of_classes = doubles.softmax(dim=1).numpy()
    return of_classes[:, 1] if of_classes.shape[1] == 2 else of_classes
