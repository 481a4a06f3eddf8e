"""ReLU and 2 x 2 max-pooling in one pass on the CPU: the same bits as torch's two passes in half the time."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedprox.solvers.kernels.compile import compiled

Floats = NDArray[np.float32]
Positions = NDArray[np.uint8]
ZERO = np.float32(0)


class RectifiedMaxPool2d(nn.Module):
    """ReLU and then `nn.MaxPool2d(2)`: compiled for float32 images with channels last, by torch for all others."""

    @staticmethod
    def can_replace(first: nn.Module, second: nn.Module) -> bool:
        """Return whether this module computes the same as two modules, one after the other."""
        if type(first) is not nn.ReLU or type(second) is not nn.MaxPool2d:
            return False
        sizes = (second.kernel_size, second.stride, second.padding, second.dilation)
        are_pairs = all(size in (wanted, (wanted, wanted)) for size, wanted in zip(sizes, (2, 2, 0, 1), strict=True))
        return are_pairs and not second.ceil_mode and not second.return_indices

    def forward(self, x: Tensor) -> Tensor:
        """Return the largest of every 2 x 2 pixels, or 0 if none is positive.

        Args:
            x: Shape (n, channels, height, width); the result's is (n, channels, height // 2, width // 2).
        """
        is_plain = x.dim() == 4 and x.dtype == torch.float32 and x.device.type == "cpu" and min(x.shape[2:]) >= 2
        if is_plain and x.is_contiguous(memory_format=torch.channels_last):
            return _Pool.apply(x)  # type: ignore[no-any-return,no-untyped-call]
        return functional.relu(functional.max_pool2d(x, 2))


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        num, channels, height, width = x.shape
        largest = x.new_empty(num, height // 2, width // 2, channels)
        ctx.positions, ctx.shape = np.empty(largest.shape, np.uint8), (num, height, width, channels)
        pool(x.permute(0, 2, 3, 1).numpy(), largest.numpy(), ctx.positions)
        return largest.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rows = grad.permute(0, 2, 3, 1).contiguous()
        whole = rows.new_empty(ctx.shape)
        unpool(rows.numpy(), ctx.positions, whole.numpy())
        return whole.permute(0, 3, 1, 2)


@compiled
def pool(x: Floats, largest: Floats, positions: Positions) -> None:
    """Write the largest of 0 and every 2 x 2 pixels, and its position: 0 to 3 row by row, the first of equals; 4 for 0.

    Args:
        x: Shape (n, height, width, channels).
        largest: Shape (n, height // 2, width // 2, channels), written.
        positions: Shape (n, height // 2, width // 2, channels), written.
    """
    num, height, width, channels = largest.shape
    for image in range(num):
        for line in range(height):
            top, low = x[image, 2 * line], x[image, 2 * line + 1]
            for column in range(width):
                left, right = 2 * column, 2 * column + 1
                for channel in range(channels):
                    best, position = ZERO, 4
                    value = top[left, channel]
                    if value > best or value != value:  # nan counts as the largest
                        best, position = value, 0
                    value = top[right, channel]
                    if value > best or value != value:
                        best, position = value, 1
                    value = low[left, channel]
                    if value > best or value != value:
                        best, position = value, 2
                    value = low[right, channel]
                    if value > best or value != value:
                        best, position = value, 3
                    largest[image, line, column, channel] = best
                    positions[image, line, column, channel] = position


@compiled
def unpool(grad: Floats, positions: Positions, whole: Floats) -> None:
    """Write the gradient of `pool`'s input: the result's gradient if an element was the largest, otherwise 0.

    Args:
        grad: Gradient of the result, shape (n, height // 2, width // 2, channels).
        positions: From `pool`.
        whole: Shape (n, height, width, channels), written.
    """
    # The loops over windows repeat those of `pool`: Numba does not inline a generator that both could share.
    num, height, width, channels = grad.shape
    if whole.shape[1] % 2 or whole.shape[2] % 2:
        whole[:] = ZERO  # no window contains the last line or column
    for image in range(num):
        for line in range(height):
            top, low = whole[image, 2 * line], whole[image, 2 * line + 1]
            for column in range(width):
                left, right = 2 * column, 2 * column + 1
                # One loop for each position, which reads both values before it chooses: LLVM vectorises only this form.
                for channel in range(channels):
                    slope, position = grad[image, line, column, channel], positions[image, line, column, channel]
                    top[left, channel] = slope if position == 0 else ZERO
                for channel in range(channels):
                    slope, position = grad[image, line, column, channel], positions[image, line, column, channel]
                    top[right, channel] = slope if position == 1 else ZERO
                for channel in range(channels):
                    slope, position = grad[image, line, column, channel], positions[image, line, column, channel]
                    low[left, channel] = slope if position == 2 else ZERO
                for channel in range(channels):
                    slope, position = grad[image, line, column, channel], positions[image, line, column, channel]
                    low[right, channel] = slope if position == 3 else ZERO
