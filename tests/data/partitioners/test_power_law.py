"""The paper's power law, against its formula and against the authors' program."""

import numpy as np
import pytest

from fedprox.data.partitioners.power_law import power_law
from fedprox.errors import UserError


def generator(seed: int = 0) -> np.random.Generator:
    """Return a fresh generator."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("num_classes", "k"), [(1, 1), (5, 1), (3, 2), (6, 6)])
def test_a_power_law_client_has_its_neighbouring_classes_and_no_other(num_classes, k):
    labels = generator(9).permutation(np.arange(100) % num_classes)
    parts = power_law(labels, 7, generator(), classes_per_client=k, min_examples_per_class=1)
    for client, part in enumerate(parts):
        assert set(labels[part].tolist()) == {(client + j) % num_classes for j in range(k)}


def authors_partition(labels: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    """Return the authors' clients by their loops (data/mnist/generate_niid.py)."""
    of_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    taken, clients = [0] * 10, [[] for _ in range(1000)]
    for user in range(1000):
        for j in range(2):
            digit = (user + j) % 10
            clients[user] += of_digit[digit][taken[digit] : taken[digit] + 5].tolist()
            taken[digit] += 5
    props = rng.lognormal(0, 2.0, (10, 100, 2))
    left = np.array([[[len(positions) - 1000]] for positions in of_digit])
    props = left * props / np.sum(props, (1, 2), keepdims=True)
    for user in range(1000):
        for j in range(2):
            digit = (user + j) % 10
            amount = int(props[digit, user // 10, j])
            if taken[digit] + amount < len(of_digit[digit]):
                clients[user] += of_digit[digit][taken[digit] : taken[digit] + amount].tolist()
                taken[digit] += amount
    return clients


def test_1000_clients_ten_classes_and_the_defaults_are_the_authors_partition():
    # As many of each digit as MNIST's 70,000 images have, in a random file order.
    counts = [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    labels = generator(9).permutation(np.repeat(np.arange(10), counts))
    for seed in range(3):
        expected = authors_partition(labels, generator(seed))
        assert [part.tolist() for part in power_law(labels, 1000, generator(seed))] == expected


def test_equal_integer_shares_leave_nothing_over():
    # sigma = 0: all cells of P[l] are equal. 2 clients have 1 of 2 classes each, 4 examples of each class:
    # 1 first, then 3 / 1 cell. With 4 clients: 1 first, then 2 / 2 cells.
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    one_each = power_law(labels, 2, generator(), classes_per_client=1, sigma=0.0, min_examples_per_class=1)
    assert [part.tolist() for part in one_each] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    # Class 0 belongs to clients 0 and 2: first positions 0 and 2, then one more each, 4 and 6.
    shared = power_law(labels, 4, generator(), classes_per_client=1, sigma=0.0, min_examples_per_class=1)
    assert [part.tolist() for part in shared] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_fewer_clients_than_classes_share_the_cells_of_the_one_group():
    # One client of 3 classes with 2 of each: it owns cell (l, 0, j = l) for l < 2; sigma = 0 makes the two
    # cells of a class equal, so of the 4 examples beyond the first it gets 2, of class 2 nothing.
    labels = np.repeat([0, 1, 2], 5)
    (part,) = power_law(labels, 1, generator(), classes_per_client=2, sigma=0.0, min_examples_per_class=1)
    assert part.tolist() == [0, 5, 1, 2, 6, 7]


def test_mnist_serves_at_most_5424_power_law_clients_and_that_number_works():
    # 60,000 images: 5,421 fives are the fewest, 1,084 visits of 5. Digit 5 is asked by clients 4 and 5 of
    # every ten, so its visit 1,084 (from 0) is by client 10 * 542 + 4 = 5424: clients 0 .. 5423 are served.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    labels = np.repeat(np.arange(10), counts)
    with pytest.raises(UserError, match="at most 5424 with this data, got 5425"):
        power_law(labels, 5425, generator())
    assert min(map(len, power_law(labels, 5424, generator()))) >= 10
