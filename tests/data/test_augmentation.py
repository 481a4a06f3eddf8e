"""Draws of the augmentation, and its settings."""

import numpy as np
import pytest

from fedprox.data.augmentation import PadCropFlip
from fedprox.errors import UserError


def draw(seed: int = 0, **settings) -> np.ndarray:
    return PadCropFlip(**settings).draw(np.random.default_rng(seed), 20, 500)


def test_all_places_and_both_directions_are_equally_frequent():
    shifts = draw(pad=2)
    assert shifts.shape == (20, 500, 3)
    for axis, size in ((0, 5), (1, 5), (2, 2)):
        counts = np.bincount(shifts[:, :, axis].ravel(), minlength=size)
        # 10,000 draws: four standard deviations of a binomial count
        assert np.abs(counts - 10_000 / size).max() < 4 * (10_000 / size * (1 - 1 / size)) ** 0.5
        assert len(counts) == size


def test_axes_are_drawn_independently():
    down, right, flip = draw(pad=2).reshape(-1, 3).T.astype(float)
    for one, other in ((down, right), (right, flip), (flip, down)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / 10_000**0.5


def test_without_flip_nothing_is_mirrored_and_the_places_stay():
    with_flip, without = draw(pad=3), draw(pad=3, flip=False)
    assert not without[:, :, 2].any()
    assert np.array_equal(with_flip[:, :, :2], without[:, :, :2])


def test_the_draw_is_the_generators():
    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize(("settings", "name"), [({"pad": -1}, "pad"), ({"pad": 64}, "pad"), ({"mode": "x"}, "mode")])
def test_a_setting_out_of_its_range_is_named(settings, name):
    with pytest.raises(UserError, match=f"augmentation.{name} must be"):
        PadCropFlip(**settings)


def test_only_images_larger_than_the_padding_are_accepted():
    for shape in ((5, 5), (3, 5, 9)):
        PadCropFlip().check(shape)
    for shape in ((5,), (4, 9), (3, 9, 4), (1, 3, 9, 9)):
        with pytest.raises(UserError, match="more than pad=4 pixels"):
            PadCropFlip().check(shape)
