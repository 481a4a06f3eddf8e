"""Pictures as arrays: how they lie in memory, and the mean and deviation of each channel."""

import math

import numpy as np
from numpy.typing import NDArray

from fedprox.data.federated import Floats, Integers

SQUARED_AT_ONCE = 50  # pictures whose squares are in memory at once

Bytes = NDArray[np.uint8]


def channels_first(pictures: Bytes) -> Bytes:
    """Return pictures of shape (n, height, width, C) as (n, C, height, width): a view, still channels last in memory.

    `LabelledData.model_input` keeps that order, in which convolutions on the CPU are fastest.
    """
    return np.ascontiguousarray(pictures).transpose(0, 3, 1, 2)


def channel_sums(pictures: Bytes) -> Integers:
    """Return each picture's sum of x and of x^2 by channel, shape (n, 2, C), exact.

    From them follows the mean of any choice of pictures without another look at their pixels.

    Args:
        pictures: Shape (n, height, width, C).
    """
    num, height, width, channels = pictures.shape
    sums = np.empty((num, 2, channels), dtype=np.int64)
    # In float64 sums of whole numbers are exact below 2^53.
    ones = np.ones((1, height * width))
    for first in range(0, num, SQUARED_AT_ONCE):
        x = pictures[first : first + SQUARED_AT_ONCE].reshape(-1, height * width, channels).astype(np.float64)
        sums[first : first + SQUARED_AT_ONCE, 0] = (ones @ x)[:, 0]
        sums[first : first + SQUARED_AT_ONCE, 1] = (ones @ np.square(x, out=x))[:, 0]
    return sums


def mean_and_std(sums: Integers, pixels: int) -> tuple[Floats, Floats]:
    """Return mean and deviation of each channel over all pixels of all pictures, shape (C, 1, 1).

    A channel that never changes has the deviation 1, so that its model input is 0.

    Args:
        sums: Of the pictures, as from `channel_sums`, at least one.
        pixels: Height times width.
    """
    count = len(sums) * pixels
    total, squares = sums.sum(axis=0)
    mean = total / count
    # (count * sum of x^2 - (sum of x)^2) / count^2 in whole numbers of any size, so that nothing cancels
    spread = [count * int(q) - int(s) ** 2 for s, q in zip(total, squares, strict=True)]
    std = np.array([math.sqrt(each) / count if each else 1.0 for each in spread])
    return mean.astype(np.float32).reshape(-1, 1, 1), std.astype(np.float32).reshape(-1, 1, 1)
