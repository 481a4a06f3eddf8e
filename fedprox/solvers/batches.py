"""Mini-batches of model input from a client's examples; all of a client's batches lie in the same memory."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprox.data.augmentation import PadCropFlip, Shifts
from fedprox.solvers.kernels.images import cropped, normalised


class Batches(Protocol):
    """A client's examples, of which batches are taken."""

    def take(self, positions: NDArray[np.int64], shifts: Shifts | None) -> Tensor:
        """Return some examples as model input, shape (b, *input_shape); the next batch overwrites them.

        Args:
            positions: Which, shape (b,), b <= the largest batch.
            shifts: What becomes of them, shape (b, 3); None where they stay as they are.
        """


class TensorBatches:
    """Batches of examples that are model input already."""

    def __init__(self, features: Tensor, largest: int) -> None:
        """Keep the examples, shape (n, *input_shape), in their layout: that of images with channels last too.

        Args:
            features: The examples.
            largest: The most that are taken at once.
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
class PictureInput:
    """How pictures become model input.

    Attributes:
        mean: Subtracted from the stored values; broadcasts over the pictures' shape.
        std: Divides them after that.
        augmentation: What is done to them before; None for nothing.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    augmentation: PadCropFlip | None = None


class PictureBatches:
    """Batches of pictures on the CPU, made from what is stored in one pass, with channels last."""

    def __init__(self, pictures: Tensor, settings: PictureInput, largest: int) -> None:
        """Keep the pictures.

        Args:
            pictures: uint8, shape (n, height, width) or (n, channels, height, width).
            settings: Normalisation and augmentation.
            largest: The most that are taken at once.
        """
        self._is_gray = pictures.dim() == 3
        rows = pictures.unsqueeze(3) if self._is_gray else pictures.permute(0, 2, 3, 1)
        self._rows = rows.contiguous().numpy()
        height, width, channels = self._rows.shape[1:]
        self._lines = (height, width * channels)
        self._mean, self._std = (self._laid_out(array, pictures.shape[1:]) for array in (settings.mean, settings.std))
        self._augmentation = settings.augmentation
        self._memory = np.empty((min(largest, len(rows)), height, width, channels), np.float32)

    def _laid_out(self, array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array that broadcasts over the pictures' shape in the order of a stored picture."""
        whole = np.broadcast_to(array, shape)
        return np.ascontiguousarray(whole if self._is_gray else whole.transpose(1, 2, 0)).reshape(self._lines)

    def take(self, positions: NDArray[np.int64], shifts: Shifts | None) -> Tensor:
        """Return some pictures; see `Batches`."""
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


class DevicePictureBatches:
    """The same in operations of torch, on any device."""

    def __init__(self, pictures: Tensor, settings: PictureInput, largest: int) -> None:
        """Keep the pictures; see `PictureBatches`, whose batches these are to the bit."""
        self._pictures = pictures
        self._mean, self._std = (torch.from_numpy(each).to(pictures.device) for each in (settings.mean, settings.std))
        self._augmentation = settings.augmentation

    def take(self, positions: NDArray[np.int64], shifts: Shifts | None) -> Tensor:
        """Return some pictures; see `Batches`."""
        batch = torch.from_numpy(positions).to(self._pictures.device)
        if shifts is None or self._augmentation is None:
            taken = self._pictures.index_select(0, batch)
        else:
            taken = self._cropped(batch, torch.from_numpy(shifts).to(self._pictures.device, torch.int64))
        return (taken - self._mean).div_(self._std)

    def _cropped(self, batch: Tensor, shifts: Tensor) -> Tensor:
        height, width = self._pictures.shape[-2:]
        across = torch.arange(width, device=batch.device)
        mirrored = torch.where(shifts[:, 2:] == 1, across.flip(0), across)
        lines, line_is_black = self._sources(torch.arange(height, device=batch.device) + shifts[:, :1], height)
        columns, column_is_black = self._sources(mirrored + shifts[:, 1:2], width)
        taken = self._pictures.movedim((-2, -1), (1, 2))[batch[:, None, None], lines[:, :, None], columns[:, None]]
        taken[line_is_black[:, :, None] | column_is_black[:, None]] = 0
        return taken.movedim((1, 2), (-2, -1))

    def _sources(self, shifted: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return where the pixels on an axis come from, and which of them are black."""
        assert self._augmentation is not None
        places = shifted - self._augmentation.pad
        if self._augmentation.mode == "reflect":
            places = places.abs()
            return torch.minimum(places, 2 * (size - 1) - places), torch.zeros_like(places, dtype=torch.bool)
        return places.clamp(0, size - 1), (places < 0) | (places >= size)
