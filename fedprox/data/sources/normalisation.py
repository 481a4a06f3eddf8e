"""Mean and standard deviation of examples: of each channel of images, of each feature of rows, in float64."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.data.federated import Features, Floats
from fedprox.data.sources.channels import channel_sums

_PIECE = 1 << 22  # numbers that are squared at once

Doubles = NDArray[np.float64]


def mean_and_std(features: Features) -> tuple[Floats, Floats]:
    """Return mean and std over examples, shaped to broadcast over one; 0 and 1 for tokens (int64).

    Args:
        features: Training examples, shape (n, *input_shape), at least one.
    """
    if features.dtype == np.int64:
        return np.zeros((), np.float32), np.ones((), np.float32)
    input_shape = features.shape[1:]
    mean, squares = moments(features)
    std = std_of(squares, len(features) * values_of_one(input_shape))
    return shaped(mean, input_shape), shaped(std, input_shape)


def moments(features: Features) -> tuple[Doubles, Doubles]:
    """Return the means of features and the sums of (x - mean)^2 by channel or feature, each of one axis, in float64."""
    if features.dtype == np.uint8 and features.ndim == 4:  # exact
        total, squares = channel_sums(features.transpose(0, 2, 3, 1).astype(np.uint8, copy=False)).sum(axis=0)
        count = features.size // len(total)
        spread = [(count * int(q) - int(s) ** 2) / count for s, q in zip(total, squares, strict=True)]
        return total / count, np.array(spread)
    axes = _axes(features.shape[1:])
    mean = features.mean(axis=axes, dtype=np.float64, keepdims=True)
    squared = np.zeros_like(mean)
    step = max(1, _PIECE * len(features) // features.size)
    for first in range(0, len(features), step):
        squared += np.square(features[first : first + step] - mean).sum(axis=axes, keepdims=True)
    return mean.reshape(-1), squared.reshape(-1)


def _axes(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of features that one mean covers: all but the channels of images and the features of rows."""
    return (0,) if len(input_shape) == 1 else (0, *range(2 if len(input_shape) == 3 else 1, len(input_shape) + 1))


def values_of_one(input_shape: tuple[int, ...]) -> int:
    """Return how many values of one example a mean covers."""
    return math.prod(input_shape[0 if len(input_shape) != 3 else 1 :]) if len(input_shape) > 1 else 1


def std_of(squares: Doubles, count: int) -> Doubles:
    """Return the standard deviations of `count` values from their sums of squares; 1 for what never varies."""
    std = np.sqrt(squares / count)
    return np.where(std.astype(np.float32) > 0, std, 1.0)


def shaped(by_channel: Any, input_shape: tuple[int, ...]) -> Floats:
    """Return numbers by channel or feature as float32 that broadcast over the input shape."""
    shape = input_shape if len(input_shape) == 1 else (-1, *(1,) * (len(input_shape) - 1))
    return np.asarray(by_channel, np.float32).reshape(shape)
