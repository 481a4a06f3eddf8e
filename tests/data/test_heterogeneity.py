"""Measures of skew against hand-computed values and against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprox.data import heterogeneity
from fedprox.data.federated import ClientIndex


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def distance(*counts: list[int]) -> float:
    return heterogeneity.js_distance(heterogeneity.label_distributions(np.array(counts)), np.random.default_rng(0))


# Examples of 1 to 6 classes at 1 to 8 clients, at least one at each client.
divisions = st.tuples(st.integers(1, 8), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, 9)).map(
        lambda counts: counts + (counts.sum(1) == 0)[:, None]
    )
)


def test_class_counts_by_hand():
    labels = np.array([2, 0, 0, 1, 2, 2])
    clients = ClientIndex.from_lists([np.array([0, 4]), np.array([1, 3, 2])])  # no client holds example 5
    assert heterogeneity.class_counts(labels, clients, 4).tolist() == [[0, 0, 2, 0], [2, 1, 0, 0]]


def test_clients_with_the_same_shares_are_at_distance_0_whatever_their_sizes():
    assert distance([1, 2, 3], [10, 20, 30], [3, 6, 9]) == 0


def test_a_single_client_gives_distance_0():
    assert distance([3, 4]) == 0


@given(divisions)
def test_the_distance_agrees_with_its_definition_by_relative_entropies(counts):
    def relative_entropy(p, m):
        return sum(a * math.log2(a / b) for a, b in zip(p, m, strict=True) if a)

    shares = (counts / counts.sum(axis=1, keepdims=True)).tolist()
    found = []
    for k, p in enumerate(shares):
        for q in shares[:k]:
            m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            found.append(math.sqrt(max(0, relative_entropy(p, m) / 2 + relative_entropy(q, m) / 2)))
    # A divergence of 0 may be computed as 1e-16, of which the root is 1e-8.
    assert distance(*counts.tolist()) == pytest.approx(np.mean(found) if found else 0, abs=1e-7)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 19))
def test_pairs_drawn_at_random_give_the_mean_over_all_within_five_standard_errors(seed, some):
    # 1001 clients, `some` in twenty of which hold class 0 and the others class 1: a pair is at 0 or 1.
    num_clients = heterogeneity.MOST_CLIENTS + 1
    first = np.arange(num_clients) % 20 < some
    counts = np.stack([first, ~first], axis=1).astype(np.int64)
    exact = 2 * first.sum() * (~first).sum() / (num_clients * (num_clients - 1))
    drawn = heterogeneity.js_distance(heterogeneity.label_distributions(counts), np.random.default_rng(seed))
    assert drawn == pytest.approx(exact, abs=5 * 0.5 / math.sqrt(heterogeneity.MOST_PAIRS))


def test_beyond_the_limit_no_client_is_compared_with_itself_and_the_seed_decides_the_pairs(monkeypatch):
    # Each client holds another class: any pair is at 1, but a client is at 0 from itself.
    monkeypatch.setattr(heterogeneity, "MOST_CLIENTS", 2)
    assert heterogeneity.js_distance(np.eye(3), np.random.default_rng(0)) == pytest.approx(1, abs=1e-12)
    monkeypatch.undo()
    mixed = np.random.default_rng(0).dirichlet([0.3] * 5, heterogeneity.MOST_CLIENTS + 1)
    again = [heterogeneity.js_distance(mixed, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_up_to_the_limit_nothing_is_drawn(rng):
    heterogeneity.js_distance(np.ones((heterogeneity.MOST_CLIENTS, 1)), rng)
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize(
    ("counts", "classes"),
    [
        ([7, 0, 0], 1),
        ([5, 5, 0], 2),
        ([2, 2, 2], 3),
        ([2, 1, 1], math.exp(0.5 * math.log(2) + 0.5 * math.log(4))),  # = 2 sqrt(2), by the definition in nats
    ],
)
def test_the_effective_number_of_classes_is_exp_of_the_entropy(counts, classes):
    assert heterogeneity.effective_classes(heterogeneity.label_distributions(np.array([counts])))[0] == pytest.approx(
        classes
    )


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_gini_agrees_with_the_mean_absolute_difference(sizes):
    values = np.array(sizes)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert heterogeneity.gini(values) == pytest.approx(expected)


@given(divisions)
def test_all_measures_stay_in_range_and_ignore_the_order_of_clients_and_classes(counts):
    found = heterogeneity.measure(counts, np.random.default_rng(0))
    assert 0 <= found.js_distance <= 1 + 1e-12
    low, mean, high = found.effective_classes
    assert 1 <= low <= mean + 1e-9
    assert mean <= high + 1e-9 <= counts.shape[1] + 1e-6
    assert 0 <= found.gini < 1
    reversed_order = heterogeneity.measure(counts[::-1, ::-1], np.random.default_rng(0))
    assert reversed_order.js_distance == pytest.approx(found.js_distance, abs=1e-7)
    assert reversed_order.effective_classes == pytest.approx(found.effective_classes)
    assert reversed_order.gini == pytest.approx(found.gini)
    assert reversed_order.sizes == found.sizes


def test_the_measures_of_a_small_division_by_hand(rng):
    # Sizes 2, 4, 6: mean |difference| over nine ordered pairs (2+4+2+2+4+2)/9 = 16/9, over twice the mean 8: 2/9.
    found = heterogeneity.measure(np.array([[2, 0], [4, 0], [3, 3]]), rng)
    # Distances: 0 between the first two, d of each from the third: p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4), so
    # H(p) = 0, H(q) = 1 and H(m) = 2 - (3/4) log2 3.
    d = math.sqrt(2 - 0.75 * math.log2(3) - 0.5)
    assert found.js_distance == pytest.approx(2 * d / 3)
    assert found.effective_classes == pytest.approx((1, 4 / 3, 2))
    assert found.gini == pytest.approx(2 / 9)
    assert (found.sizes, found.num_clients, found.num_examples) == ((2, 4, 6), 3, 12)
