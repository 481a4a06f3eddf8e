"""Sizes of clients, and the other building blocks of partitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.data.partitioners.iid import iid
from fedprox.data.partitioners.sizes import apportion, parts_of, shuffled_classes, size_weights


def generator(seed: int = 0) -> np.random.Generator:
    """Return a fresh generator."""
    return np.random.default_rng(seed)


@settings(max_examples=200)
@given(st.integers(0, 3), st.integers(0, 1000), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_apportioned_numbers_have_the_sum_and_lie_within_one_of_their_exact_shares(smallest, rest, drawn):
    weights = np.array(drawn)
    parts = apportion(rest + smallest * len(weights), weights, smallest)
    assert parts.sum() == rest + smallest * len(weights)
    assert (parts >= smallest).all()
    assert (np.abs(parts - smallest - rest * weights / weights.sum()) < 1 + 1e-9).all()


@settings(max_examples=200)
@given(st.integers(1, 60), st.integers(0, 500), st.sampled_from([0, 1]))
def test_equal_weights_give_the_sizes_of_array_split(num_clients, more, smallest):
    total = num_clients * smallest + more
    expected = [len(part) for part in np.array_split(np.arange(total), num_clients)]
    assert apportion(total, np.ones(num_clients), smallest).tolist() == expected


def test_the_largest_remainder_is_rounded_up_first():
    # Of 7 exactly 1, 2 and 4; of 8 the shares are 1.14, 2.29 and 4.57.
    assert apportion(7, np.array([1.0, 2.0, 4.0]), 0).tolist() == [1, 2, 4]
    assert apportion(8, np.array([1.0, 2.0, 4.0]), 0).tolist() == [1, 2, 5]


def test_zipf_weights_are_powers_of_the_ranks_in_random_order():
    weights = size_weights(5, generator(), "zipf", 1.0, 2.0)
    np.testing.assert_allclose(np.sort(weights)[::-1], [1, 1 / 4, 1 / 9, 1 / 16, 1 / 25])
    assert weights.tolist() != sorted(weights, reverse=True)
    assert size_weights(5, generator(), "zipf", 1.0, 0.0).tolist() == [1] * 5


def test_the_logarithm_of_lognormal_weights_has_std_sigma():
    for sigma in (0.0, 0.5, 2.0):
        logarithms = np.log(size_weights(20_000, generator(), "lognormal", sigma, 1.0))
        # The std of 20,000 normal numbers is within 4 / sqrt(2 * 20,000) = 2% of sigma.
        assert logarithms.std() == pytest.approx(sigma, rel=0.02)
        assert abs(logarithms.mean()) <= 4 * sigma / math.sqrt(20_000)


def test_the_hardest_laws_still_give_positive_numbers_that_can_be_divided():
    for sizes in ("lognormal", "zipf"):
        weights = size_weights(100_000, generator(), sizes, 50.0, 10.0)
        assert (weights > 0).all()
        assert apportion(600_000, weights, 1).sum() == 600_000


def test_classes_come_in_order_each_shuffled_and_none_empty():
    labels = np.array([4, 0, 4, 0, 4, 4, 0, 4, 4, 4])
    zeros, fours = shuffled_classes(labels, generator())
    assert sorted(zeros.tolist()) == [1, 3, 6]
    assert sorted(fours.tolist()) == [0, 2, 4, 5, 7, 8, 9]
    assert fours.tolist() != sorted(fours.tolist())


def test_parts_are_the_positions_of_each_owner_also_of_one_without_any():
    assert [part.tolist() for part in parts_of(np.array([2, 0, 2, 0]), 4)] == [[1, 3], [], [0, 2], []]


def test_iid_sizes_follow_the_law_beyond_one_example_each():
    # Zipf with exponent 1 and 3 clients: of 113 - 3 = 110 examples 60, 30 and 20 by the weights 6 : 3 : 2.
    parts = iid(np.zeros(113, dtype=np.int64), 3, generator(), sizes="zipf")
    assert sorted(map(len, parts)) == [21, 31, 61]
    assert sorted(np.concatenate(parts).tolist()) == list(range(113))


def test_iid_with_equal_sizes_is_array_split_of_a_permutation():
    expected = np.array_split(generator(3).permutation(1003), 17)
    parts = iid(np.zeros(1003, dtype=np.int64), 17, generator(3))
    assert [part.tolist() for part in parts] == [part.tolist() for part in expected]
