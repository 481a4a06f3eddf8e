"""A perceptron with one hidden layer, the smallest model that has a body and a head."""

import math

from torch import nn

from fedprox.errors import UserError


def mlp(
    input_shape: tuple[int, ...], num_classes: int, hidden_size: int = 32, *, batch_norm: bool = False
) -> nn.Module:
    """Return a linear layer, perhaps batch norm, ReLU, and a linear layer.

    Args:
        input_shape: Shape of an input, which is flattened.
        num_classes: Number of logits.
        hidden_size: Hidden units, >= 1.
        batch_norm: Whether the hidden units are normalised before the ReLU.

    Raises:
        UserError: If `hidden_size` is out of range.
    """
    if hidden_size < 1:
        raise UserError(f"model.hidden_size must be an integer >= 1, got {hidden_size}")
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), hidden_size),
        *([nn.BatchNorm1d(hidden_size)] if batch_norm else []),
        nn.ReLU(),
        nn.Linear(hidden_size, num_classes),
    )
