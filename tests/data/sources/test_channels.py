"""Statistics of images by channel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.data.sources import channels as module
from fedprox.data.sources.channels import channel_sums, channels_first, mean_and_std


def noise(seed: int, num: int, height: int, width: int, num_channels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, num_channels), dtype=np.uint8)


def test_channels_first_is_a_view_of_images_with_channels_last():
    made = noise(0, 4, 2, 3, 3)
    view = channels_first(made)
    assert view.shape == (4, 3, 2, 3)
    assert np.shares_memory(view, made)
    assert view[1, 2, 0, 1] == made[1, 0, 1, 2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))
def test_sums_and_statistics_are_those_of_all_pixels(seed, num, height, width, num_channels):
    made = noise(seed, num, height, width, num_channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SQUARED_AT_ONCE", 3)  # whole chunks, and one that is not
        sums = channel_sums(made)
    assert (sums[:, 0] == made.sum(axis=(1, 2), dtype=np.int64)).all()
    assert (sums[:, 1] == np.square(made, dtype=np.int64).sum(axis=(1, 2))).all()
    mean, std = mean_and_std(sums, height * width)
    flat = made.reshape(-1, num_channels).astype(np.float64)
    expected = flat.std(axis=0)
    assert mean.shape == std.shape == (num_channels, 1, 1)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean.ravel(), flat.mean(axis=0), rtol=1e-6)  # float32 has seven digits
    np.testing.assert_allclose(std.ravel(), np.where(expected == 0, 1, expected), rtol=1e-6)


def test_the_std_is_exact_if_nearly_all_pixels_are_alike():
    # One pixel of n = 10^9 is 254, the others 255: variance p (1 - p) with p = 1 / n. n times the sum of squares is
    # 6.5 * 10^22, of which float64 keeps 16 digits, and the rest after the subtraction is n - 1.
    n = 10**9
    _, std = mean_and_std(np.array([[[255 * n - 1], [255**2 * n - 255**2 + 254**2]]]), n)
    assert std.item() == pytest.approx(np.sqrt(1 / n * (1 - 1 / n)), rel=1e-6)  # float32 has seven digits


def test_a_channel_that_never_changes_has_std_1():
    made = noise(0, 3, 4, 4, 3)
    made[..., 1] = 7
    mean, std = mean_and_std(channel_sums(made), 16)
    assert (mean[1].item(), std[1].item()) == (7, 1)
    assert std[0] > 1
