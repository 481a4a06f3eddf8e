"""Multinomial logistic regression, the model of the paper's convex experiments."""

import math

from torch import nn


def logistic(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return multinomial logistic regression: softmax(W x + b), the paper's convex model."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


def is_logistic(model: nn.Module) -> bool:
    """Return whether a model is softmax(W x + b), all of it trained, as `logistic` makes it.

    Compiled code relies on the names and shapes of the parameters without checking bounds, so other names (of a
    Sequential with names, or of weight norm) and a bias that torch would broadcast do not count.
    """
    if not (type(model) is nn.Sequential and len(model) == 2):
        return False
    (flatten, linear), params = model, dict(model.named_parameters())
    return (
        type(flatten) is nn.Flatten
        and (flatten.start_dim, flatten.end_dim) == (1, -1)
        and type(linear) is nn.Linear
        and set(params) == {"1.weight", "1.bias"}
        and params["1.bias"].shape == params["1.weight"].shape[:1]
        and all(param.requires_grad for param in params.values())
    )
