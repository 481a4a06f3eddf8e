"""Compiled code for batches of images: selection, cropping, mirroring and normalisation in one pass."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.solvers.kernels.compile import compiled

Floats = NDArray[np.float32]


@compiled
def normalised(stored: NDArray[Any], positions: NDArray[np.int64], mean: Floats, std: Floats, result: Floats) -> None:
    """Write (stored - mean) / std of some examples into the result.

    Args:
        stored: All examples, shape (n, d).
        positions: Positions of the examples, shape (b,).
        mean: Shape (d,).
        std: Shape (d,).
        result: Shape (b, d), written.
    """
    for at in range(len(positions)):
        example = stored[positions[at]]
        for place in range(len(mean)):
            result[at, place] = (np.float32(example[place]) - mean[place]) / std[place]


@compiled
def cropped(
    stored: NDArray[Any],
    positions: NDArray[np.int64],
    shifts: NDArray[np.int8],
    pad: int,
    reflects: bool,
    mean: Floats,
    std: Floats,
    result: Floats,
) -> None:
    """Write some images, shifted and mirrored, as (image - mean) / std into the result.

    Args:
        stored: All images, shape (n, height, width, channels).
        positions: Positions of the images, shape (b,).
        shifts: One row for each of them, as `PadCropFlip.draw` describes, shape (b, 3).
        pad: Pixels of padding on each side.
        reflects: Whether the padding mirrors the image; otherwise it is black, 0.
        mean: Shape (height, width * channels).
        std: Shape (height, width * channels).
        result: Shape (b, height, width * channels), written.
    """
    _, height, width, channels = stored.shape
    row, columns = np.empty(width * channels, stored.dtype), np.empty(width, np.int64)
    for at in range(len(positions)):
        image = stored[positions[at]]
        down, right, is_mirrored = shifts[at, 0] - pad, shifts[at, 1] - pad, shifts[at, 2]
        for x in range(width):
            columns[x] = _source((width - 1 - x if is_mirrored else x) + right, width, reflects)
        for y in range(height):
            line = _source(y + down, height, reflects)
            for x in range(width):
                for channel in range(channels):
                    is_black = line < 0 or columns[x] < 0
                    row[x * channels + channel] = 0 if is_black else image[line, columns[x], channel]
            for place in range(len(row)):
                result[at, y, place] = (np.float32(row[place]) - mean[y, place]) / std[y, place]


@compiled
def _source(place: int, size: int, reflects: bool) -> int:
    """Return the source position of a pixel of the padded image on an axis of `size` pixels; -1 if it is black."""
    if reflects:
        return min(abs(place), 2 * (size - 1) - abs(place))
    return place if 0 <= place < size else -1
