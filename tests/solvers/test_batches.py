"""Mini-batches: images cropped, mirrored and normalised, by compiled code and by torch's operations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.data.augmentation import PadCropFlip
from fedprox.solvers.batches import DeviceImageBatches, ImageBatches, ImageInput, TensorBatches

BOTH = [ImageBatches, DeviceImageBatches]


def random_images(shape: tuple[int, ...], *, channels_last: bool = False) -> np.ndarray:
    rng = np.random.default_rng(0)
    if channels_last:
        num, channels, height, width = shape
        return rng.integers(0, 256, (num, height, width, channels), dtype=np.uint8).transpose(0, 3, 1, 2)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def zero_one(augmentation: PadCropFlip | None) -> ImageInput:
    """Return settings that do not change values."""
    return ImageInput(np.zeros((), np.float32), np.ones((), np.float32), augmentation)


def as_by_numpy(image: np.ndarray, shift: np.ndarray, pad: int, mode: str) -> np.ndarray:
    """Return an image (..., height, width) padded, cut and mirrored with numpy's own functions."""
    widths = [(0, 0)] * (image.ndim - 2) + [(pad, pad)] * 2
    padded = np.pad(image, widths, mode="reflect") if mode == "reflect" else np.pad(image, widths)
    height, width = image.shape[-2:]
    cut = padded[..., shift[0] : shift[0] + height, shift[1] : shift[1] + width]
    return cut[..., ::-1] if shift[2] else cut


@pytest.mark.parametrize("kind", BOTH)
def test_a_row_of_three_pixels_by_hand(kind):
    # [1 2 3] with two pixels of padding: reflected 3 2 [1 2 3] 2 1, black 0 0 [1 2 3] 0 0. The three rows are equal.
    images = torch.tensor([[[1, 2, 3]] * 3] * 4, dtype=torch.uint8)
    shifts = np.array([[2, 2, 0], [2, 0, 0], [2, 4, 1], [0, 3, 0]], np.int8)
    for mode, rows in (
        ("reflect", [[1, 2, 3], [3, 2, 1], [1, 2, 3], [2, 3, 2]]),
        ("black", [[1, 2, 3], [0, 0, 1], [0, 0, 3], [2, 3, 0]]),
    ):
        taken = kind(images, zero_one(PadCropFlip(2, mode)), 4).take(np.arange(4), shifts)
        assert taken[:, 2].tolist() == rows  # the lowest line: from the image itself with each of these shifts
        if mode == "black":
            assert taken[3, :2].eq(0).all()  # it begins two lines above the image


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(["gray", "channels first", "channels last"]),
    pad=st.integers(0, 8),
    mode=st.sampled_from(["reflect", "black"]),
    seed=st.integers(0, 99),
)
def test_batches_are_padded_cut_and_mirrored_like_numpy_does(size, layout, pad, mode, seed):
    pad = min(pad, min(size) - 1)
    shape = (7, *size) if layout == "gray" else (7, 3, *size)
    images = random_images(shape, channels_last=layout == "channels last")
    rng, augmentation = np.random.default_rng(seed), PadCropFlip(pad, mode)
    mean, std = (rng.uniform(1, 9, shape[1:]).astype(np.float32) for _ in range(2))
    positions, shifts = rng.permutation(7)[:4], augmentation.draw(rng, 1, 4)[0]
    expected = [as_by_numpy(images[at], shift, pad, mode) for at, shift in zip(positions, shifts, strict=True)]
    for kind in BOTH:
        taken = kind(torch.from_numpy(images), ImageInput(mean, std, augmentation), 4).take(positions, shifts)
        assert kind is DeviceImageBatches or layout == "gray" or taken.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(taken.numpy(), (np.stack(expected).astype(np.float32) - mean) / std)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 3, 5, 4)])
def test_without_augmentation_batches_are_the_data_sets_model_input(kind, shape):
    images = random_images(shape)
    mean, std = np.full((), 100, np.float32), np.full((), 7, np.float32)
    batches = kind(torch.from_numpy(images), ImageInput(mean, std), 4)
    for positions in (np.array([5, 0, 2, 2]), np.array([1])):
        taken = batches.take(positions, None)
        assert taken.dtype == torch.float32
        assert np.array_equal(taken.numpy(), (images[positions].astype(np.float32) - mean) / std)


@pytest.mark.parametrize("channels_last", [False, True])
def test_tensors_keep_their_layout(channels_last):
    features = torch.from_numpy(random_images((6, 3, 5, 4), channels_last=channels_last)).float()
    taken = TensorBatches(features, 4).take(np.array([3, 1]), None)
    assert torch.equal(taken, features[[3, 1]])
    assert taken.is_contiguous() is not channels_last


def test_all_batches_of_a_client_share_memory():
    images = torch.from_numpy(random_images((6, 3, 5, 4)))
    for batches in (ImageBatches(images, zero_one(None), 4), TensorBatches(images.float(), 4)):
        first = batches.take(np.arange(4), None)
        assert batches.take(np.arange(2, 5), None).data_ptr() == first.data_ptr()
