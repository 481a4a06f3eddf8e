"""Mini-batches of model input from a client's examples; all batches of a client share the same memory."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprox.data.augmentation import PadCropFlip, Shifts
from fedprox.solvers.kernels.images import cropped, normalised


class Batches(Protocol):
    """A source of mini-batches from a client's examples."""

    def take(self, positions: NDArray[np.int64], shifts: Shifts | None) -> Tensor:
        """Return some examples as model input, shape (b, *input_shape); the next batch overwrites them.

        Args:
            positions: Positions of the examples, shape (b,), b <= the largest batch.
            shifts: Augmentation of each, shape (b, 3); None for none.
        """


class TensorBatches:
    """Batches of examples that are already model input; they keep the examples' layout, also channels last."""

    def __init__(self, features: Tensor, largest: int) -> None:
        """Keep the examples.

        Args:
            features: Shape (n, *input_shape).
            largest: Size of the largest batch.
        """
        self._has_channels_last = features.dim() == 4 and not features.is_contiguous()
        self._rows = features.permute(0, 2, 3, 1) if self._has_channels_last else features
        self._memory = self._rows.new_empty(min(largest, len(features)), *self._rows.shape[1:])

    def take(self, positions: NDArray[np.int64], shifts: Shifts | None) -> Tensor:
        """Return some examples; see `Batches`."""
        batch = torch.from_numpy(positions).to(self._rows.device)
        x = torch.index_select(self._rows, 0, batch, out=self._memory[: len(positions)])
        return x.permute(0, 3, 1, 2) if self._has_channels_last else x


@dataclass(frozen=True)
class ImageInput:
    """Conversion of stored images to model input: (augmented image - mean) / std.

    Attributes:
        mean: Broadcasts to the images' shape.
        std: Broadcasts to the images' shape.
        augmentation: Changes to training images; None for none.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    augmentation: PadCropFlip | None = None


class ImageBatches:
    """Channels-last batches of images on the CPU, made from stored images in one pass."""

    def __init__(self, images: Tensor, settings: ImageInput, largest: int) -> None:
        """Keep the images.

        Args:
            images: uint8, shape (n, height, width) or (n, channels, height, width).
            settings: Normalisation and augmentation.
            largest: Size of the largest batch.
        """
        self._is_gray = images.dim() == 3
        rows = images.unsqueeze(3) if self._is_gray else images.permute(0, 2, 3, 1)
        self._rows = rows.contiguous().numpy()
        height, width, channels = self._rows.shape[1:]
        self._lines = (height, width * channels)
        self._mean, self._std = (self._laid_out(array, images.shape[1:]) for array in (settings.mean, settings.std))
        self._augmentation = settings.augmentation
        self._memory = np.empty((min(largest, len(rows)), height, width, channels), np.float32)

    def _laid_out(self, array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array that broadcasts to the images' shape, in the layout of the stored images."""
        whole = np.broadcast_to(array, shape)
        return np.ascontiguousarray(whole if self._is_gray else whole.transpose(1, 2, 0)).reshape(self._lines)

    def take(self, positions: NDArray[np.int64], shifts: Shifts | None) -> Tensor:
        """Return some images; see `Batches`."""
        x = self._memory[: len(positions)]
        if shifts is None or self._augmentation is None:
            flat = (self._rows.reshape(len(self._rows), -1), positions, self._mean.ravel(), self._std.ravel())
            normalised(*flat, x.reshape(len(x), -1))
        else:
            pad, reflects = self._augmentation.pad, self._augmentation.mode == "reflect"
            lines = x.reshape(len(x), *self._lines)
            cropped(self._rows, positions, shifts, pad, reflects, self._mean, self._std, lines)
        made = torch.from_numpy(x)
        return made.squeeze(3) if self._is_gray else made.permute(0, 3, 1, 2)


class DeviceImageBatches:
    """Batches of images on any device by torch's operations, equal to those of `ImageBatches` to the bit."""

    def __init__(self, images: Tensor, settings: ImageInput, largest: int) -> None:
        """Keep the images; see `ImageBatches`."""
        self._images = images
        self._input = DeviceImageInput(settings, images.device)

    def take(self, positions: NDArray[np.int64], shifts: Shifts | None) -> Tensor:
        """Return some images; see `Batches`."""
        device = self._images.device
        moved = None if shifts is None else torch.from_numpy(shifts).to(device)
        return self._input(self._images, torch.from_numpy(positions).to(device), moved)


class DeviceImageInput:
    """Conversion of stored images to model input by operations that a CUDA graph can hold; nothing waits for values."""

    def __init__(self, settings: ImageInput, device: torch.device) -> None:
        """Copy mean and standard deviation to the device."""
        self._mean, self._std = (torch.from_numpy(each).to(device) for each in (settings.mean, settings.std))
        self._augmentation = settings.augmentation

    def __call__(self, images: Tensor, positions: Tensor, shifts: Tensor | None) -> Tensor:
        """Return some images as model input, shape (b, *input_shape).

        Args:
            images: All images, uint8, shape (n, height, width) or (n, channels, height, width).
            positions: Which ones, shape (b,).
            shifts: Augmentation of each, int8, shape (b, 3); None for none.
        """
        if shifts is None or self._augmentation is None:
            taken = images.index_select(0, positions)
        else:
            taken = self._cropped(images, positions, shifts.to(torch.int64), self._augmentation)
        return (taken - self._mean).div_(self._std)

    def _cropped(self, images: Tensor, batch: Tensor, shifts: Tensor, augmentation: PadCropFlip) -> Tensor:
        height, width = images.shape[-2:]
        across = torch.arange(width, device=batch.device)
        mirrored = torch.where(shifts[:, 2:] == 1, across.flip(0), across)
        lines = torch.arange(height, device=batch.device) + shifts[:, :1] - augmentation.pad
        columns = mirrored + shifts[:, 1:2] - augmentation.pad
        sources = (_reflected(lines, height)[:, :, None], _reflected(columns, width)[:, None])
        taken = images.movedim((-2, -1), (1, 2))[batch[:, None, None], *sources]
        if augmentation.mode == "black":
            is_black = _is_outside(lines, height)[:, :, None] | _is_outside(columns, width)[:, None]
            taken = taken.masked_fill(is_black[..., None] if taken.dim() == 4 else is_black, 0)
        return taken.movedim((1, 2), (-2, -1))


def _reflected(positions: Tensor, size: int) -> Tensor:
    """Return positions on an axis, with those outside mirrored at its ends."""
    positions = positions.abs()
    return torch.minimum(positions, 2 * (size - 1) - positions)


def _is_outside(positions: Tensor, size: int) -> Tensor:
    return (positions < 0) | (positions >= size)
