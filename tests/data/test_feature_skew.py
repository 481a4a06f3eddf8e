"""Feature skew: how pixels change, by formula, and which pixels change."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedprox.data.feature_skew import brightness, noise, none, rotated, rotation
from fedprox.data.federated import ClientIndex, Features, FederatedData, LabelledData, divide
from fedprox.data.partitioners.iid import iid
from fedprox.errors import UserError
from fedprox.seeds import Stream, generator

KINDS = (rotation, brightness, noise)


def federated(images: Features, num_clients: int, *, left_over: int = 0) -> FederatedData:
    """Divide images among clients that hold a fifth out; the first images are also the global test set."""
    labels = np.zeros(len(images), dtype=np.int64)
    zero, one = np.float32(0), np.float32(1)
    data = LabelledData(images, labels, images[:3].copy(), labels[:3], 1, zero, one)
    parts = iid(labels[left_over:], num_clients, np.random.default_rng(0))
    return divide(data, [part + left_over for part in parts], np.random.default_rng(1), hold_out=0.2)


def random_images(*shape: int) -> Features:
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


def held(data: FederatedData, client: int) -> np.ndarray:
    """Return the positions of a client's training and held-out images."""
    return np.concatenate([data.train[client], data.held_out[client]])


@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 5, 5), (2, 3, 7, 7)])
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_quarter_turns_are_exact_and_counterclockwise(shape, quarters):
    images = random_images(*shape)
    expected = np.rot90(images, quarters, axes=(-2, -1))  # numpy turns from the first axis towards the second
    assert np.array_equal(rotated(images, 90.0 * quarters), expected)


def test_an_image_that_is_wider_than_high_is_rotated_without_being_stretched():
    images = random_images(2, 4, 9)
    assert np.array_equal(rotated(images, 180.0), images[:, ::-1, ::-1])
    # A ramp stays a ramp, exactly but for rounding: bilinear interpolation is exact on linear functions.
    rows, columns = np.mgrid[-10:11, -20:21].astype(float)
    ramp = np.rint(128 + 4 * columns + 2 * rows).astype(np.uint8)[None]
    angle = math.radians(20)
    # Counterclockwise with rows counted downwards: the pixel at (row, column) was at this column and row.
    its_column = math.cos(angle) * columns - math.sin(angle) * rows
    its_row = math.sin(angle) * columns + math.cos(angle) * rows
    inside = (np.abs(its_column) <= 20) & (np.abs(its_row) <= 10)
    expected = 128 + 4 * its_column + 2 * its_row
    assert np.abs(rotated(ramp, 20.0)[0] - expected)[inside].max() <= 0.5 + 1e-3
    assert inside.sum() > 500


def test_pixels_from_outside_have_the_colour_of_the_edge():
    assert (rotated(np.full((1, 8, 8), 200, dtype=np.uint8), 45.0) == 200).all()


def test_images_beyond_the_first_piece_are_rotated_alike():
    images = random_images(600, 6, 6)
    turned = rotated(images, 33.0)
    assert np.array_equal(turned[[0, 251, 599]], rotated(images[[0, 251, 599]], 33.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 6, 5), (40, 3, 6, 5)])
def test_only_the_clients_training_and_held_out_images_change(kind, shape):
    data = federated(random_images(*shape), 3, left_over=4)
    before = data.examples.features.copy()
    skewed = kind(data, 7)
    assert np.array_equal(data.examples.features, before)
    assert np.array_equal(skewed.examples.features[:4], before[:4])  # no client's
    assert np.array_equal(skewed.examples.test_features, data.examples.test_features)
    assert np.array_equal(skewed.examples.labels, data.examples.labels)
    for index in (skewed.train, skewed.held_out):
        for client in range(3):
            assert not np.array_equal(skewed.examples.features[index[client]], before[index[client]])
            assert len(index[client])
    assert skewed.examples.features.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_stay_last_and_give_the_same_numbers(kind):
    first = random_images(40, 3, 6, 5)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    one, other = (kind(federated(images, 3), 7).examples.features for images in (first, last))
    assert np.array_equal(one, other)
    assert one.flags.c_contiguous
    assert other.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_depends_on_the_seed_and_the_client_alone(kind):
    images = random_images(40, 6, 5)
    data = federated(images, 4)
    one, again, other = (kind(data, seed).examples.features for seed in (7, 7, 8))
    assert np.array_equal(one, again)
    alone = FederatedData(
        data.examples,
        ClientIndex.from_lists([data.train[client][: 1 + 99 * (client == 2)] for client in range(4)]),
        ClientIndex.from_lists([data.held_out[client][: 99 * (client == 2)] for client in range(4)]),
    )
    assert np.array_equal(kind(alone, 7).examples.features[held(data, 2)], one[held(data, 2)])
    for client in range(4):
        assert not np.array_equal(one[held(data, client)], other[held(data, client)])


@pytest.mark.parametrize("kind", KINDS)
def test_at_strength_0_nothing_changes(kind):
    data = federated(random_images(40, 6, 5), 4)
    assert np.array_equal(kind(data, 7, strength=0.0).examples.features, data.examples.features)
    assert none(data, 7) is data


def test_each_client_is_rotated_by_its_own_angle():
    data = federated(random_images(30, 6, 6), 3)
    skewed = rotation(data, 7, strength=50.0)
    for client in range(3):
        angle = generator(7, Stream.FEATURES, client).uniform(-50, 50)
        positions = held(data, client)
        assert np.array_equal(skewed.examples.features[positions], rotated(data.examples.features[positions], angle))


def test_each_client_is_brightened_by_its_own_factor_up_to_the_brightest_pixel_of_the_data():
    images = random_images(60, 6, 6) // 16  # 0 .. 15, as digits have few levels
    data = federated(images, 6)
    skewed = brightness(data, 7, strength=0.5)
    factors = [1 + generator(7, Stream.FEATURES, client).uniform(-0.5, 0.5) for client in range(6)]
    assert min(factors) < 1 < max(factors)
    for client, factor in enumerate(factors):
        expected = np.minimum(np.rint(images[held(data, client)] * factor), 15)
        assert np.array_equal(skewed.examples.features[held(data, client)], expected)


def test_noise_has_each_clients_own_std_and_stays_in_range():
    images = np.full((80, 20, 20), 120, dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = 0, 240
    data = federated(images, 4)
    skewed = noise(data, 7, strength=0.2)
    for client in range(4):
        std = generator(7, Stream.FEATURES, client).uniform(0, 0.2) * 240
        changed = skewed.examples.features[held(data, client)].astype(float)
        # 7600 pixels that were 120: 4 standard errors of their std are 4 / sqrt(2 * 7600) = 3%; rounding adds 1/12.
        grey = changed[:, 1:]
        assert grey.std() == pytest.approx(math.sqrt(std**2 + 1 / 12), rel=0.03)
        assert grey.mean() == pytest.approx(120, abs=4 * std / math.sqrt(7600))
        assert changed.max() <= 240
        assert (changed[:, 0, 0] >= 0).all()
        assert (changed[:, 0, 0] <= 0).mean() > 0.3  # black pixels below 0 are cut off


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_are_not_images_are_refused(kind):
    with pytest.raises(UserError, match=r"images as uint8, .* got float32 of shape \(6, 5\); set feature_skew=none"):
        kind(federated(random_images(10, 6, 5).astype(np.float32), 2), 7)
    with pytest.raises(UserError, match=r"got uint8 of shape \(5,\)"):
        kind(federated(random_images(10, 5), 2), 7)


def test_images_that_are_normalised_pixel_by_pixel_are_refused():
    # If a pixel is the same in all images its std is about 0, and ink that is moved there would be thousands.
    data = federated(random_images(10, 3, 6, 5), 2)
    for shape in ((), (1,), (3, 1, 1)):
        rotation(replace(data, examples=replace(data.examples, std=np.ones(shape, np.float32))), 7)
    data = replace(data, examples=replace(data.examples, std=np.ones((6, 5), np.float32)))
    with pytest.raises(UserError, match="these data have them for every pixel; choose another data set"):
        rotation(data, 7)


@pytest.mark.parametrize(("kind", "most"), [(rotation, 180), (brightness, 1), (noise, 1)])
@pytest.mark.parametrize("strength", [-0.1, 180.5, math.nan])
def test_a_strength_out_of_range_is_refused(kind, most, strength):
    with pytest.raises(UserError, match=rf"feature_skew\.strength must be between 0 and {most}, got {strength}"):
        kind(federated(random_images(10, 6, 5), 2), 7, strength=strength)
