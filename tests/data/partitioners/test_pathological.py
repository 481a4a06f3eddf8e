"""Exactly k classes per client, a client for each class, amounts as equal as possible."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedprox.data.partitioners.pathological import pathological
from fedprox.errors import UserError


def generator(seed: int = 0) -> np.random.Generator:
    """Return a fresh generator."""
    return np.random.default_rng(seed)


def can_serve(counts: list[int], num_clients: int, k: int) -> bool:
    """Return whether n clients can have k classes each, by giving every client the k classes with most left."""
    left = list(counts)
    for _ in range(num_clients):
        largest = sorted(range(len(left)), key=lambda label: -left[label])[:k]
        if any(left[label] == 0 for label in largest):
            return False
        for label in largest:
            left[label] -= 1
    return True


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from(["equal", "lognormal", "zipf"]),
    st.integers(0, 3),
    st.data(),
)
def test_each_client_has_k_classes_each_class_a_client_and_each_example_one(counts, sizes, seed, data):
    labels = generator(9).permutation(np.repeat(np.arange(len(counts)) * 2, counts))  # odd classes do not occur
    k = data.draw(st.integers(1, len(counts)))
    least = -(-len(counts) // k)
    most = next(n for n in range(1, len(labels) + 2) if not can_serve(counts, n, k)) - 1
    with pytest.raises(UserError, match=rf"num_clients must be at most {most} with this data, got {most + 1};"):
        pathological(labels, most + 1, generator(seed), classes_per_client=k)
    if least > 1:
        with pytest.raises(UserError, match=f"num_clients must be at least {least} for each of"):
            pathological(labels, min(least - 1, most), generator(seed), classes_per_client=k)
    assume(least <= most)
    num_clients = data.draw(st.integers(least, most))
    chosen = {"classes_per_client": k, "sizes": sizes}
    parts, again = (pathological(labels, num_clients, generator(seed), **chosen) for _ in range(2))
    assert [part.tolist() for part in parts] == [part.tolist() for part in again]
    assert len(parts) == num_clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert {len(set(labels[part].tolist())) for part in parts} == {k}


@pytest.mark.parametrize(("num_clients", "k"), [(5, 2), (10, 1), (100, 2), (100, 10), (30, 3)])
def test_classes_of_equal_size_give_clients_of_equal_size(num_clients, k):
    # 10 classes of 6000: num_clients * k / 10 clients share a class, a whole number in each of these cases.
    labels = np.arange(60_000) % 10
    sizes = [len(part) for part in pathological(labels, num_clients, generator(), classes_per_client=k)]
    assert max(sizes) - min(sizes) <= k  # amounts of one class differ by at most one
    assert sum(sizes) == 60_000


def test_a_class_has_the_more_clients_the_larger_it_is():
    # 600, 300 and 100 for 10 slots: 6, 3 and 1 clients, so each has 100.
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    parts = pathological(labels, 10, generator(), classes_per_client=1)
    assert [len(part) for part in parts] == [100] * 10


def test_all_pairs_of_classes_occur_about_equally_often():
    labels = np.arange(60_000) % 5
    parts = pathological(labels, 3000, generator(), classes_per_client=2)
    pairs = [tuple(sorted(set(labels[part].tolist()))) for part in parts]
    for pair in combinations(range(5), 2):
        assert pairs.count(pair) == pytest.approx(300, abs=75)  # a binomial's std is 16


def test_sizes_follow_the_weights_of_the_clients_of_a_class():
    # One class: 1 each, and the other 110 of 113 by 6 : 3 : 2.
    parts = pathological(np.zeros(113, dtype=np.int64), 3, generator(), classes_per_client=1, sizes="zipf")
    assert sorted(map(len, parts)) == [21, 31, 61]
