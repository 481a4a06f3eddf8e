"""Feature skew: each client's images rotated, brightened or made noisy in its own way.

Each function takes divided data and the run's seed and returns the data with other features: a client's training and
held-out examples are changed alike, once, in a copy. The global test set is not changed. Client k's change depends on
the seed, on k and, with noise, on the order of its examples. UserError is raised if the data are not images as uint8
with one mean and std for an image or channel, or if the strength is out of its range.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedprox.data.checks import check_between
from fedprox.data.federated import Features, FederatedData
from fedprox.errors import UserError
from fedprox.seeds import Stream, generator

_PIECE = 250  # images rotated at once: they fit into the cache, which is four times as fast
Change = Callable[[Features, np.random.Generator], Features]


def none(data: FederatedData, seed: int) -> FederatedData:
    """Return the data unchanged."""
    return data


def rotation(data: FederatedData, seed: int, *, strength: float = 30.0) -> FederatedData:
    """Rotate each client's images by its own angle, uniform in -strength .. strength degrees, 0 <= strength <= 180."""
    check_between("feature_skew.strength", strength, 0, 180, "it is the largest angle in degrees")
    return _changed(data, seed, lambda images, rng: rotated(images, rng.uniform(-strength, strength)))


def brightness(data: FederatedData, seed: int, *, strength: float = 0.5) -> FederatedData:
    """Multiply each client's pixels by its own factor, uniform in 1 - strength .. 1 + strength, 0 <= strength <= 1.

    Pixels are cut off at the brightest pixel of the data set.
    """
    check_between("feature_skew.strength", strength, 0, 1, "factors lie between 1 - strength and 1 + strength")
    white = data.examples.features.max(initial=0)

    def change(images: Features, rng: np.random.Generator) -> Features:
        factor = 1 + rng.uniform(-strength, strength)
        pixels: Features = np.clip(np.rint(np.arange(256) * factor), 0, white).astype(np.uint8)
        return pixels[images]

    return _changed(data, seed, change)


def noise(data: FederatedData, seed: int, *, strength: float = 0.2) -> FederatedData:
    """Add normal noise to each client's pixels, its standard deviation uniform in 0 .. strength.

    Clients differ in their level of noise as in NIID-Bench (Li et al. 2022, sec. 4.2), where it grows with the client's
    number. Pixels stay in the range of the data set. Strength is a fraction of its brightest pixel, between 0 and 1.
    """
    check_between("feature_skew.strength", strength, 0, 1, "it is a fraction of the brightest pixel")
    white = data.examples.features.max(initial=0)

    def change(images: Features, rng: np.random.Generator) -> Features:
        std = np.float32(rng.uniform(0, strength) * white)
        noisy = images + std * rng.standard_normal(images.shape, np.float32)
        return np.clip(np.rint(noisy, out=noisy), 0, white, out=noisy).astype(np.uint8)

    return _changed(data, seed, change)


def rotated(images: Features, degrees: float) -> Features:
    """Return images rotated counterclockwise about their centre.

    Pixels are interpolated between the four nearest ones; those from outside the image take the nearest pixel of its
    edge, which is background whatever its colour.

    Args:
        images: uint8, shape (n, height, width) or (n, channels, height, width).
        degrees: The angle.
    """
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The place that the pixel at (x, y) comes from, in coordinates from -1 to 1 over each side.
    grid = _coordinates(height, width) @ torch.tensor([[cos, sin * width / height], [-sin * height / width, cos]])
    result = np.empty_like(images)
    for start in range(0, len(images), _PIECE):
        piece = np.ascontiguousarray(images[start : start + _PIECE])
        # One image with many channels: the places are computed once for all.
        planes = torch.from_numpy(piece).reshape(1, -1, height, width).float()
        turned = functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
        result[start : start + _PIECE] = turned.round_().numpy().reshape(piece.shape)
    return result


@cache
def _coordinates(height: int, width: int) -> Tensor:
    """Return x and y of each pixel's centre, shape (1, height, width, 2)."""
    return functional.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)


def _changed(data: FederatedData, seed: int, change: Change) -> FederatedData:
    """Return the data with every client's images changed by its own generator, in the same memory order."""
    _check_images(data)
    features = data.examples.features.copy(order="K")  # channels last stay last
    for client in range(data.num_clients):
        positions = np.concatenate([data.train[client], data.held_out[client]])
        features[positions] = change(features[positions], generator(seed, Stream.FEATURES, client))
    return replace(data, examples=replace(data.examples, features=features))


def _check_images(data: FederatedData) -> None:
    features = data.examples.features
    if features.dtype != np.uint8 or features.ndim not in (3, 4):
        raise UserError(
            "feature_skew must be none unless the data are images as uint8, (height, width) or "
            f"(channels, height, width), got {features.dtype} of shape {features.shape[1:]}; set feature_skew=none"
        )
    if data.examples.std.shape[-2:] not in ((), (1,), (1, 1)):  # a pixel that never varied would be divided by nearly 0
        raise UserError(
            "feature_skew needs one mean and one std for a whole image or channel, and these data have them for "
            "every pixel; choose another data set, such as mnist, or set feature_skew=none"
        )
