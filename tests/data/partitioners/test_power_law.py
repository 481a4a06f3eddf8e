"""The partitions: what every scheme promises, and what each one is by its formula."""

import math
import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedprox.data.federated import LabelledData, divide, split
from fedprox.data.partitioners.iid import iid
from fedprox.data.partitioners.power_law import power_law
from fedprox.data.partitioners.shards import shards
from fedprox.errors import UserError

SCHEMES = (power_law, iid, shards)


def generator(seed: int = 0) -> np.random.Generator:
    """Return a fresh generator."""
    return np.random.default_rng(seed)


def labelled(labels: np.ndarray) -> LabelledData:
    """Return data whose single feature is the example's position."""
    positions = np.arange(len(labels), dtype=np.float32)[:, None]
    zero, one = np.zeros((), dtype=np.float32), np.ones((), dtype=np.float32)
    return LabelledData(positions, labels, positions[:0], labels[:0], int(labels.max()) + 1, zero, one)


def largest_that_works(scheme, labels: np.ndarray, **settings) -> int:
    """Return the largest number of clients by trying 1, 2, 3, ... until one is refused."""
    num_clients = 0
    while True:
        try:
            scheme(labels, num_clients + 1, generator(), **settings)
        except UserError:
            return num_clients
        num_clients += 1


labels_with_every_class = st.integers(1, 6).flatmap(
    lambda num_classes: st.lists(st.integers(0, num_classes - 1), max_size=80).map(
        lambda drawn: np.array([*range(num_classes), *drawn])
    )
)


@st.composite
def divisions(draw):
    """Draw (scheme, labels, num_clients, settings) where num_clients is one the data can serve."""
    scheme, labels = draw(st.sampled_from(SCHEMES)), draw(labels_with_every_class)
    chosen = {}
    if scheme is power_law:
        chosen["classes_per_client"] = draw(st.integers(1, int(labels.max()) + 1))
        chosen["min_examples_per_class"] = draw(st.integers(1, 3))
        chosen["sigma"] = draw(st.sampled_from([0.0, 0.5, 2.0, 50.0]))
    if scheme is shards:
        chosen["shards_per_client"] = draw(st.integers(1, 3))
    largest = largest_that_works(scheme, labels, **chosen)
    assume(largest)
    return scheme, labels, draw(st.integers(1, largest)), chosen


@settings(max_examples=150, deadline=None)
@given(divisions(), st.integers(0, 5))
def test_every_example_has_at_most_one_client_and_every_client_an_example(division, seed):
    scheme, labels, num_clients, chosen = division
    parts = scheme(labels, num_clients, generator(seed), **chosen)
    dealt = np.concatenate(parts)
    assert len(parts) == num_clients
    assert min(map(len, parts)) >= 1
    assert len(set(dealt.tolist())) == len(dealt)
    assert set(dealt.tolist()) <= set(range(len(labels)))
    assert all(part.dtype == np.int64 for part in parts)
    if scheme is not power_law:
        assert len(dealt) == len(labels)  # nothing is left over


@settings(max_examples=50, deadline=None)
@given(divisions(), st.integers(0, 5))
def test_the_same_generator_gives_the_same_partition(division, seed):
    scheme, labels, num_clients, chosen = division
    first, again = (scheme(labels, num_clients, generator(seed), **chosen) for _ in range(2))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]


@settings(max_examples=100, deadline=None)
@given(labels_with_every_class, st.data())
def test_a_power_law_client_has_its_neighbouring_classes_and_no_other(labels, data):
    num_classes = int(labels.max()) + 1
    chosen = {"classes_per_client": data.draw(st.integers(1, num_classes)), "min_examples_per_class": 1}
    # With every class there, the first client is always served.
    num_clients = data.draw(st.integers(1, largest_that_works(power_law, labels, **chosen)))
    for client, part in enumerate(power_law(labels, num_clients, generator(), **chosen)):
        expected = {(client + j) % num_classes for j in range(chosen["classes_per_client"])}
        assert set(labels[part].tolist()) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_seed_gives_another_partition(scheme):
    labels = np.arange(600) % 10
    first, other = (scheme(labels, 10, generator(seed)) for seed in (0, 1))
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


def authors_partition(labels: np.ndarray, rng: np.random.Generator) -> tuple[list[list[int]], list[int]]:
    """Return the authors' clients by their loops (data/mnist/generate_niid.py), and what they take."""
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
    return clients, taken


def test_1000_clients_ten_classes_and_the_defaults_are_the_authors_partition():
    # As many of each digit as MNIST's 70,000 images have, in a random file order.
    counts = [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    labels = generator(9).permutation(np.repeat(np.arange(10), counts))
    for seed in range(3):
        expected, taken = authors_partition(labels, generator(seed))
        ours = divide(labelled(labels), power_law(labels, 1000, generator(seed)), generator(), hold_out=0)
        assert [sorted(ours.train[client].tolist()) for client in range(1000)] == list(map(sorted, expected))
        assert ours.num_left_over == 70_000 - sum(taken)


def test_equal_shares_of_whole_numbers_leave_nothing_over():
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


def test_a_larger_sigma_makes_client_sizes_more_unequal():
    labels = np.repeat(np.arange(10), 2000)
    spread = [
        np.std([len(part) for part in power_law(labels, 200, generator(), sigma=sigma)]) for sigma in (0.0, 1.0, 2.0)
    ]
    # sigma = 0: each cell is (2000 - 200) / 40 = 45, so every client has 2 * (5 + 45) = 100 examples.
    assert spread[0] == 0
    assert spread[0] < spread[1] < spread[2]


def test_iid_sizes_differ_by_at_most_one_and_the_order_is_random():
    parts = iid(np.zeros(11, dtype=np.int64), 4, generator())
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert np.concatenate(parts).tolist() == generator().permutation(11).tolist()


def test_shards_are_equal_cuts_of_the_examples_sorted_by_label():
    # FedAvg's MNIST division in small: 20 examples, 10 shards of 2, each within one class, 2 for each of 5.
    labels = np.array([3, 1, 0, 2, 4] * 4)
    parts = shards(labels, 5, generator())
    in_order = np.argsort(labels, kind="stable").reshape(10, 2).tolist()
    dealt = [part.reshape(2, 2).tolist() for part in parts]
    assert sorted(chain(*dealt)) == sorted(in_order)
    assert all(len(set(labels[part].tolist())) <= 2 for part in parts)
    assert list(chain(*dealt)) != in_order  # dealt at random


@settings(max_examples=100, deadline=None)
@given(labels_with_every_class, st.integers(1, 6), st.integers(1, 4))
def test_the_largest_number_of_clients_that_is_named_works_and_one_more_does_not(labels, per_client, smallest):
    num_classes = int(labels.max()) + 1
    per_client = min(per_client, num_classes)

    def enough(num_clients: int) -> bool:
        asked = [(client + j) % num_classes for client in range(num_clients) for j in range(per_client)]
        return all(smallest * asked.count(label) <= (labels == label).sum() for label in range(num_classes))

    largest = {
        "power_law": next(n for n in range(len(labels) + 1) if not enough(n + 1)),
        "iid": len(labels),
        "shards": len(labels) // per_client,
    }
    chosen = {
        "power_law": {"classes_per_client": per_client, "min_examples_per_class": smallest},
        "iid": {},
        "shards": {"shards_per_client": per_client},
    }
    for scheme in SCHEMES:
        most, options = largest[scheme.__name__], chosen[scheme.__name__]
        told = f"at most {most} with this data, got {most + 1};" if most else "not even for one client; ask for fewer"
        with pytest.raises(UserError, match=told):
            scheme(labels, most + 1, generator(), **options)
        if most:
            parts = scheme(labels, most, generator(), **options)
            assert len(parts) == most
            assert min(map(len, parts)) >= 1


def test_mnist_serves_at_most_5424_power_law_clients_and_that_number_works():
    # 60,000 images: 5,421 fives are the fewest, 1,084 visits of 5. Digit 5 is asked by clients 4 and 5 of
    # every ten, so its visit 1,084 (from 0) is by client 10 * 542 + 4 = 5424: clients 0 .. 5423 are served.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    labels = np.repeat(np.arange(10), counts)
    with pytest.raises(UserError, match="at most 5424 with this data, got 5425"):
        power_law(labels, 5425, generator())
    assert min(map(len, power_law(labels, 5424, generator()))) >= 10


def test_divide_shuffles_each_client_and_splits_off_a_tenth():
    labels = np.zeros(60, dtype=np.int64)
    parts = [np.arange(0, 25), np.arange(25, 55)]
    data = divide(labelled(labels), parts, generator())
    rng = generator()
    for client, part in enumerate(parts):
        shuffled = rng.permutation(part).tolist()
        cut = int(0.9 * len(part))  # 22 and 27
        assert data.train[client].tolist() == shuffled[:cut]
        assert data.held_out[client].tolist() == shuffled[cut:]
    assert data.num_left_over == 5


def test_divided_clients_are_called_as_the_authors_call_them():
    data = divide(labelled(np.zeros(4, dtype=np.int64)), [np.arange(2), np.arange(2, 4)], generator())
    assert data.client_ids == ("f_00000", "f_00001")


def test_a_tenth_held_out_is_the_authors_int_of_09_n_for_every_size():
    sizes = range(1, 3000)
    train, held_out = split([np.arange(size) for size in sizes], hold_out=0.1)
    assert train.sizes.tolist() == [max(1, int(0.9 * size)) for size in sizes]
    assert (train.sizes + held_out.sizes).tolist() == list(sizes)


def test_without_held_out_examples_each_client_trains_on_all_it_has():
    data = divide(labelled(np.zeros(7, dtype=np.int64)), [np.arange(3), np.arange(3, 7)], generator(), hold_out=0)
    assert data.train.sizes.tolist() == [3, 4]
    assert data.held_out.sizes.tolist() == [0, 0]


def test_a_client_trains_on_at_least_one_example():
    # int(0.01 * 5) = 0 and int(0.9 * 1) = 0.
    train, held_out = split([np.arange(5)], hold_out=0.99)
    assert (train.sizes.tolist(), held_out.sizes.tolist()) == ([1], [4])
    train, held_out = split([np.arange(1)], hold_out=0.1)
    assert (train.sizes.tolist(), held_out.sizes.tolist()) == ([1], [0])


@pytest.mark.parametrize(
    ("scheme", "settings", "message"),
    [
        (
            power_law,
            {"classes_per_client": 0},
            "classes_per_client must be between 1 and 3",
        ),
        (power_law, {"classes_per_client": 4}, "got 4"),
        (power_law, {"sigma": -0.5}, "sigma must be between 0 and 50, got -0.5"),
        (power_law, {"sigma": math.nan}, "got nan"),
        (power_law, {"sigma": math.inf}, "got inf"),
        (power_law, {"min_examples_per_class": 0}, "min_examples_per_class must be >= 1, got 0"),
        (power_law, {"num_clients": 0}, "num_clients must be >= 1, got 0"),
        (iid, {"num_clients": 0}, "num_clients must be >= 1, got 0"),
        (iid, {"num_clients": -3}, "got -3"),
        (shards, {"num_clients": 0}, "num_clients must be >= 1, got 0"),
        (shards, {"shards_per_client": 0}, "shards_per_client must be >= 1, got 0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_rule(scheme, settings, message):
    chosen = {"num_clients": 2, **settings}
    with pytest.raises(UserError) as caught:
        scheme(np.arange(60) % 3, rng=generator(), **chosen)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hold_out", [-0.1, 1.0, math.nan])
def test_hold_out_is_at_least_0_and_below_1(hold_out):
    with pytest.raises(UserError, match="hold_out must be >= 0 and < 1"):
        divide(labelled(np.zeros(4, dtype=np.int64)), [np.arange(4)], generator(), hold_out=hold_out)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_100_000_clients_take_seconds(scheme):
    labels = np.repeat(np.arange(10), 110_000)
    start = time.process_time()
    data = divide(labelled(labels), scheme(labels, 100_000, generator()), generator())
    assert data.num_clients == 100_000
    assert time.process_time() - start < 10  # about 1 s; an O(clients * examples) scheme would take hours
