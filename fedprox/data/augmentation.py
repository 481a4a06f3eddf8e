"""Augmentation: random changes of images in each epoch, drawn before training."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError

Shifts = NDArray[np.int8]


@dataclass(frozen=True)
class PadCropFlip:
    """Pad an image on all sides, crop it back to its size at a random place, and mirror it half of the time.

    As in training residual networks on CIFAR-10 (He et al. 2016, sec. 4.2), where the padding is black.

    Attributes:
        pad: Pixels on each side, 0 .. 63 and less than the image's sides.
        mode: What the padding is: "reflect", the image's own pixels mirrored at its edge, or "black", stored 0.
        flip: Whether images are mirrored from left to right; digits and letters should not be.
    """

    pad: int = 4
    mode: str = "reflect"
    flip: bool = True

    def __post_init__(self) -> None:
        """Raise UserError if a setting breaks its rule."""
        if not 0 <= self.pad <= 63:
            raise UserError(f"augmentation.pad must be an integer between 0 and 63, got {self.pad}")
        if self.mode not in ("reflect", "black"):
            raise UserError(f"augmentation.mode must be reflect or black, got {self.mode!r}")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise UserError unless examples of this shape are images that are larger than the padding."""
        if len(shape) not in (2, 3) or min(shape[-2:]) <= self.pad:
            raise UserError(
                f"augmentation=crop_flip needs images of more than pad={self.pad} pixels, got examples of shape "
                f"{shape}; use augmentation=none, or lower augmentation.pad"
            )

    def draw(self, rng: np.random.Generator, num_epochs: int, num_examples: int) -> Shifts:
        """Return each example's change in each epoch, shape (num_epochs, num_examples, 3), drawn uniformly.

        The three numbers are: how many of the padded image's 2 * pad extra rows are cut off at the top, how many extra
        columns on the left, and whether the image is mirrored after that, 0 or 1.
        """
        shifts = rng.integers(0, 2 * self.pad + 1, (num_epochs, num_examples, 3), dtype=np.int8)
        shifts[:, :, 2] = rng.integers(0, 2, (num_epochs, num_examples), dtype=np.int8) if self.flip else 0
        return shifts


def none() -> None:
    """Return None: images are not changed."""
