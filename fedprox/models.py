"""The models of the experiments; any function (input_shape, num_classes, ...) -> nn.Module can join them."""

import math

from torch import nn

from fedprox.errors import UserError


def logistic(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return multinomial logistic regression: softmax(W x + b), the paper's convex model."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


def is_logistic(model: nn.Module) -> bool:
    """Return whether a model is softmax(W x + b), all of it trained, as `logistic` makes it."""
    if not (type(model) is nn.Sequential and len(model) == 2):
        return False
    flatten, linear = model
    return (
        type(flatten) is nn.Flatten
        and (flatten.start_dim, flatten.end_dim) == (1, -1)
        and type(linear) is nn.Linear
        and linear.bias is not None
        and all(param.requires_grad for param in linear.parameters())
    )


def cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the CNN of McMahan et al. (2017): two 5 x 5 convolutions (32, 64), each max-pooled, and 512 units.

    Convolutions are padded by 2, so that they keep the size, and poolings not at all. The network of the earlier Flower
    baseline pads all four by 1: on MNIST it has the same 1,663,370 parameters, but computes something else.

    Args:
        input_shape: (height, width) or (channels, height, width), at least 4 x 4 pixels.
        num_classes: Number of logits.

    Raises:
        UserError: If the inputs are no images.
    """
    channels, height, width = image_shape("cnn", input_shape, at_least=4)
    return nn.Sequential(
        with_channels(input_shape),
        nn.Conv2d(channels, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )


def image_shape(name: str, input_shape: tuple[int, ...], at_least: int) -> tuple[int, int, int]:
    """Return (channels, height, width) of what a model takes; one channel where the data have no such dimension.

    Args:
        name: The model's, for the error.
        input_shape: (height, width) or (channels, height, width).
        at_least: The least number of pixels on a side that leaves something after the model's poolings.

    Raises:
        UserError: If the inputs are no images, or smaller.
    """
    if len(input_shape) not in (2, 3) or min(input_shape[-2:]) < at_least:
        raise UserError(
            f"model={name} needs images of at least {at_least} x {at_least} pixels, got inputs of shape "
            f"{tuple(input_shape)}; use model=logistic"
        )
    height, width = input_shape[-2:]
    return (input_shape[0] if len(input_shape) == 3 else 1), height, width


def with_channels(input_shape: tuple[int, ...]) -> nn.Module:
    """Return the layer that gives (height, width) images their one channel, and others as they are."""
    return nn.Unflatten(1, (1, input_shape[0])) if len(input_shape) == 2 else nn.Identity()
