"""Dirichlet label skew: exact cover and the minimum always, and the distribution that alpha stands for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.data.partitioners.dirichlet import dirichlet

LAWS = ("drawn", "equal", "lognormal", "zipf")


def generator(seed: int = 0) -> np.random.Generator:
    """Return a fresh generator."""
    return np.random.default_rng(seed)


def counts_of(labels: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Return how many of each class each client has, shape (num_clients, C)."""
    return np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def purity(labels: np.ndarray, parts: list[np.ndarray]) -> float:
    """Return the mean over clients of the sum of squared class shares: 1 / C for the same mixture, 1 for one class."""
    counts = counts_of(labels, parts)
    return float(((counts / counts.sum(axis=1, keepdims=True)) ** 2).sum(axis=1).mean())


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=120),
    st.integers(1, 6),
    st.sampled_from(LAWS),
    st.floats(0.01, 1000),
    st.integers(0, 3),
    st.data(),
)
def test_each_example_has_one_client_and_each_client_its_minimum(drawn, minimum, sizes, alpha, seed, data):
    labels = np.array(drawn)
    if len(labels) < minimum:
        minimum = 1
    num_clients = data.draw(st.integers(1, len(labels) // minimum))
    chosen = {"alpha": alpha, "min_examples": minimum, "sizes": sizes}
    parts, again = (dirichlet(labels, num_clients, generator(seed), **chosen) for _ in range(2))
    assert len(parts) == num_clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert min(map(len, parts)) >= minimum
    assert all(part.dtype == np.int64 for part in parts)
    assert [part.tolist() for part in parts] == [part.tolist() for part in again]


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_the_share_of_a_class_has_the_variance_of_a_dirichlet_distribution(alpha):
    # Of the first class, client 0 of two has a share from Beta(alpha, alpha): mean 1/2, variance 1 / (4 (2 alpha + 1)).
    labels = np.repeat([0, 1], [1000, 1000])
    shares = [
        counts_of(labels, dirichlet(labels, 2, generator(seed), alpha=alpha, min_examples=1))[0, 0] / 1000
        for seed in range(1000)
    ]
    variance = 1 / (4 * (2 * alpha + 1))
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * math.sqrt(variance / 1000))
    assert np.var(shares) == pytest.approx(variance, rel=0.2)  # 4 standard errors of a variance from 1000 draws: 18%


@pytest.mark.parametrize("alpha", [0.01, 0.3, 3.0, 1000.0])
def test_with_fixed_sizes_a_clients_mixture_is_a_dirichlet_distribution(alpha):
    # q ~ Dir(alpha, .., alpha) over C equally frequent classes: E sum q^2 = (alpha + 1) / (C alpha + 1), and with n
    # examples from q that is E + (1 - E) / n. With 2000 clients hardly any class is asked for too often.
    labels = np.repeat(np.arange(5), 20_000)
    parts = dirichlet(labels, 2000, generator(), alpha=alpha, sizes="equal")
    expected = (alpha + 1) / (5 * alpha + 1)
    assert purity(labels, parts) == pytest.approx(expected + (1 - expected) / 50, abs=0.02)


def test_mixtures_are_weighted_by_how_frequent_the_classes_are():
    labels = np.repeat([0, 1], [9000, 1000])
    shares = counts_of(labels, dirichlet(labels, 50, generator(), alpha=1000.0, sizes="equal"))[:, 1] / 200
    # Every mixture is 9 : 1 within 3%, and 200 draws from it deviate by sqrt(0.1 * 0.9 / 200) = 0.02.
    assert shares == pytest.approx(0.1, abs=0.1)


@pytest.mark.parametrize("num_clients", [8, 9000])
@pytest.mark.parametrize("sizes", LAWS)
def test_a_smaller_alpha_is_more_label_skew_for_few_and_for_many_clients(sizes, num_clients):
    # 9000 clients have 11 examples on average and a minimum of 10: nearly every draw must be repaired.
    labels = generator(9).integers(0, 10, 100_000)
    purities = [
        purity(labels, dirichlet(labels, num_clients, generator(), alpha=alpha, sizes=sizes))
        for alpha in (0.01, 0.1, 1.0, 1000.0)
    ]
    assert purities == sorted(purities, reverse=True)
    assert purities[0] > 0.8 if num_clients > 8 else purities[0] > 0.5
    assert purities[-1] < 0.2


def test_a_client_with_an_equal_part_gets_nothing_of_further_classes():
    # Two clients and classes of 90, 5 and 5: the one with 50 or more of the first gets nothing of the other two.
    labels = np.repeat([0, 1, 2], [90, 5, 5])
    for seed in range(20):
        counts = counts_of(labels, dirichlet(labels, 2, generator(seed), alpha=1.0, min_examples=1))
        larger = counts[:, 0].argmax()
        if counts[larger, 0] >= 50:
            assert counts[larger].tolist()[1:] == [0, 0]


@pytest.mark.parametrize(("sizes", "expected"), [("equal", [40, 40, 40]), ("zipf", [26, 35, 59])])
def test_given_sizes_are_kept_for_any_alpha(sizes, expected):
    # Zipf: 10 each, and of the other 90 6 : 3 : 2, so 49.09, 24.55 and 16.36; one is left, for the 0.55.
    labels = np.arange(120) % 3
    for alpha in (0.01, 1.0, 1000.0):
        parts = dirichlet(labels, 3, generator(), alpha=alpha, sizes=sizes)
        assert sorted(map(len, parts)) == expected


def test_the_repair_takes_from_the_largest_down_to_a_common_size_and_gives_in_order_of_class():
    # alpha = 0.01 gives nearly all of a class to one client. With 40 clients for 10 classes of 100, at least 25 each,
    # each has exactly 25 in the end, because the mean is 25.
    labels = np.repeat(np.arange(10), 100)
    parts = dirichlet(labels, 40, generator(), alpha=0.01, min_examples=25)
    assert [len(part) for part in parts] == [25] * 40
    mixed = [part for part in parts if len(set(labels[part].tolist())) > 1]
    assert len(mixed) <= 10 + 9  # clients that drew two classes, and those at a border between two
