"""Labelled and federated data."""

import math

import numpy as np
import pytest

from fedprox.data.federated import ClientIndex, FederatedData, LabelledData, divide, split
from fedprox.errors import UserError

FEATURES = np.array([[0, 10], [20, 30], [40, 50], [60, 70], [80, 90]], dtype=np.uint8)
LABELS = np.array([0, 1, 0, 1, 1])


def labelled(num_test: int) -> LabelledData:
    """Return five examples for training; `num_test` of them are also the global test set."""
    return LabelledData(
        features=FEATURES,
        labels=LABELS,
        test_features=FEATURES[:num_test],
        test_labels=LABELS[:num_test],
        num_classes=2,
        mean=np.array([10, 0], dtype=np.float32),
        std=np.array([2, 5], dtype=np.float32),
    )


def federated(num_test: int) -> FederatedData:
    """Return two clients: one trains on 4 and 0 and holds 2 out, the other trains on 1; no client holds 3."""
    train = ClientIndex.from_lists([np.array([4, 0]), np.array([1])])
    held_out = ClientIndex.from_lists([np.array([2]), np.array([], dtype=np.int64)])
    return FederatedData(labelled(num_test), train, held_out)


def test_a_client_index_gives_back_the_lists_it_was_made_from():
    lists = [np.array([7, 3]), np.array([], dtype=np.int64), np.array([5])]
    index = ClientIndex.from_lists(lists)
    assert len(index) == 3
    assert [index[client].tolist() for client in range(3)] == [[7, 3], [], [5]]
    assert index.sizes.tolist() == [2, 0, 1]


def test_model_input_subtracts_the_mean_before_it_divides():
    # (0 - 10) / 2 = -5: below zero, so not computed in uint8; (10 - 0) / 5 = 2.
    model_input = labelled(0).model_input(FEATURES[:2])
    assert model_input.dtype == np.float32
    assert model_input.tolist() == [[-5.0, 2.0], [5.0, 6.0]]


def test_model_input_leaves_the_shared_features_as_they_are():
    data = labelled(0)
    data.model_input(data.features)
    assert data.features.tolist() == [[0, 10], [20, 30], [40, 50], [60, 70], [80, 90]]


def test_a_clients_examples_come_in_the_order_of_its_index():
    features, labels = federated(0).client_examples(0)
    assert features.tolist() == [[(80 - 10) / 2, 90 / 5], [(0 - 10) / 2, 10 / 5]]
    assert labels.tolist() == [1, 0]


def test_examples_that_no_client_holds_are_counted():
    assert federated(0).num_clients == 2
    assert federated(0).num_left_over == 1  # example 3


@pytest.mark.parametrize(
    ("num_test", "expected"),
    [
        (2, [0, 1]),  # a global test set: its two examples
        (0, [0]),  # none: the held-out example 2
    ],
)
def test_the_global_test_set_goes_before_the_held_out_examples(num_test, expected):
    features, labels = federated(num_test).test_examples()
    assert labels.tolist() == expected
    assert features[0].tolist() == ([-5.0, 2.0] if num_test else [(40 - 10) / 2, 50 / 5])


def tokens(mean: float, std: float) -> LabelledData:
    """Return one sequence of three tokens, once to train on and once to test on."""
    sequence = np.array([[2**40, 0, 7]])
    label = np.array([0])
    return LabelledData(sequence, label, sequence, label, 1, np.float32(mean), np.float32(std))


def test_tokens_reach_the_model_as_integers():
    data = FederatedData(
        tokens(0, 1), ClientIndex.from_lists([np.array([0])]), ClientIndex.from_lists([np.empty(0, np.int64)])
    )
    for features, _ in (data.client_examples(0), data.test_examples()):
        assert features.dtype == np.int64
        assert features.tolist() == [[2**40, 0, 7]]  # beyond what a float32 holds


@pytest.mark.parametrize(("mean", "std"), [(1, 1), (0, 2)])
def test_tokens_have_no_mean_and_no_std(mean, std):
    with pytest.raises(UserError, match="int64 features are token sequences and must have mean 0 and std 1, got"):
        tokens(mean, std)


def test_images_with_channels_last_become_the_same_input_and_keep_their_order_in_memory():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    for shape in ((), (3, 1, 1), (3, 5, 4)):
        mean, std = (rng.uniform(1, 9, shape).astype(np.float32) for _ in range(2))
        data = LabelledData(images, np.zeros(6, np.int64), images[:0], np.zeros(0, np.int64), 2, mean, std)
        model_input = data.model_input(images[[4, 1]])
        expected = (images[[4, 1]].astype(np.float32) - mean) / std
        assert np.array_equal(model_input, expected)
        assert model_input.transpose(0, 2, 3, 1).flags.c_contiguous


def positions_of(labels: np.ndarray) -> LabelledData:
    """Return data whose single feature is the example's position."""
    return LabelledData.without_test_set(np.arange(len(labels), dtype=np.float32)[:, None], labels, 1)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_divide_shuffles_each_client_and_splits_off_a_tenth():
    labels = np.zeros(60, dtype=np.int64)
    parts = [np.arange(0, 25), np.arange(25, 55)]
    data = divide(positions_of(labels), parts, generator())
    rng = generator()
    for client, part in enumerate(parts):
        shuffled = rng.permutation(part).tolist()
        cut = int(0.9 * len(part))  # 22 and 27
        assert data.train[client].tolist() == shuffled[:cut]
        assert data.held_out[client].tolist() == shuffled[cut:]
    assert data.num_left_over == 5


def test_divided_clients_have_the_authors_names():
    data = divide(positions_of(np.zeros(4, dtype=np.int64)), [np.arange(2), np.arange(2, 4)], generator())
    assert data.client_ids == ("f_00000", "f_00001")


def test_a_tenth_held_out_is_the_authors_int_of_09_n_for_every_size():
    sizes = range(1, 3000)
    train, held_out = split([np.arange(size) for size in sizes], hold_out=0.1)
    assert train.sizes.tolist() == [max(1, int(0.9 * size)) for size in sizes]
    assert (train.sizes + held_out.sizes).tolist() == list(sizes)


def test_with_hold_out_0_each_client_trains_on_all_its_examples():
    data = divide(positions_of(np.zeros(7, dtype=np.int64)), [np.arange(3), np.arange(3, 7)], generator(), hold_out=0)
    assert data.train.sizes.tolist() == [3, 4]
    assert data.held_out.sizes.tolist() == [0, 0]


def test_a_client_trains_on_at_least_one_example():
    # int(0.01 * 5) = 0 and int(0.9 * 1) = 0.
    train, held_out = split([np.arange(5)], hold_out=0.99)
    assert (train.sizes.tolist(), held_out.sizes.tolist()) == ([1], [4])
    train, held_out = split([np.arange(1)], hold_out=0.1)
    assert (train.sizes.tolist(), held_out.sizes.tolist()) == ([1], [0])


@pytest.mark.parametrize("hold_out", [-0.1, 1.0, math.nan])
def test_hold_out_is_at_least_0_and_below_1(hold_out):
    with pytest.raises(UserError, match="hold_out must be >= 0 and < 1"):
        divide(positions_of(np.zeros(4, dtype=np.int64)), [np.arange(4)], generator(), hold_out=hold_out)
