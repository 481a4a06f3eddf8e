"""Images with channels last: their statistics by channel, and the view with channels first that models take."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedprox.data.federated import Features, Floats, Integers

SQUARED_AT_ONCE = 50  # images whose squares are in memory at once

Bytes = NDArray[np.uint8]
Number = TypeVar("Number", bound=np.generic)


def channels_first(images: NDArray[Number]) -> NDArray[Number]:
    """Return images of shape (n, height, width, C) as (n, C, height, width): a view, still channels last in memory.

    `LabelledData.model_input` keeps that order, in which convolutions on the CPU are fastest.
    """
    return np.ascontiguousarray(images).transpose(0, 3, 1, 2)


def concatenated(parts: Sequence[Features]) -> Features:
    """Return features one after another; images with channels last in memory stay so."""
    if parts[0].ndim == 4 and parts[0].dtype == np.uint8:
        return channels_first(np.concatenate([part.transpose(0, 2, 3, 1) for part in parts]))
    joined: Features = np.concatenate(parts)  # type: ignore[assignment]
    return joined


def taken(features: Features, positions: Integers | NDArray[np.bool_] | slice) -> Features:
    """Return some rows of features; images with channels last in memory stay so."""
    if features.ndim == 4 and not features.flags.c_contiguous:
        return channels_first(features.transpose(0, 2, 3, 1)[positions])  # type: ignore[return-value]
    return features[positions]


def channel_sums(images: Bytes) -> Integers:
    """Return each image's sums of x and of x^2 by channel, shape (n, 2, C), exact.

    The mean and std of any subset of the images follow from them without reading the pixels again.

    Args:
        images: Shape (n, height, width, C).
    """
    num, height, width, channels = images.shape
    sums = np.empty((num, 2, channels), dtype=np.int64)
    # In float64 sums of integers are exact below 2^53.
    ones = np.ones((1, height * width))
    for first in range(0, num, SQUARED_AT_ONCE):
        x = images[first : first + SQUARED_AT_ONCE].reshape(-1, height * width, channels).astype(np.float64)
        sums[first : first + SQUARED_AT_ONCE, 0] = (ones @ x)[:, 0]
        sums[first : first + SQUARED_AT_ONCE, 1] = (ones @ np.square(x, out=x))[:, 0]
    return sums


def mean_and_std(sums: Integers, pixels: int) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each channel over all pixels of all images, shape (C, 1, 1).

    A channel that never changes has std 1, so that its model input is 0.

    Args:
        sums: From `channel_sums`, of at least one image.
        pixels: Height times width.
    """
    count = len(sums) * pixels
    total, squares = sums.sum(axis=0)
    mean = total / count
    # count * sum of x^2 - (sum of x)^2, in Python's integers of any size, so that nothing cancels
    spread = [count * int(q) - int(s) ** 2 for s, q in zip(total, squares, strict=True)]
    std = np.array([math.sqrt(each) / count if each else 1.0 for each in spread])
    return mean.astype(np.float32).reshape(-1, 1, 1), std.astype(np.float32).reshape(-1, 1, 1)
