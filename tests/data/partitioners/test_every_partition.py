"""Promises of all partitions: cover, minimum, seed, speed and errors."""

import math
import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedprox.data.partitioners.dirichlet import dirichlet
from fedprox.data.partitioners.iid import iid
from fedprox.data.partitioners.pathological import pathological
from fedprox.data.partitioners.power_law import power_law
from fedprox.data.partitioners.shards import shards
from fedprox.errors import UserError

SCHEMES = (power_law, iid, shards)  # the other two have tests of their own


def generator(seed: int = 0) -> np.random.Generator:
    """Return a fresh generator."""
    return np.random.default_rng(seed)


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


@settings(max_examples=150)
@given(divisions(), st.integers(0, 5))
def test_each_example_has_at_most_one_client_and_each_client_an_example_in_every_call(division, seed):
    scheme, labels, num_clients, chosen = division
    parts, again = (scheme(labels, num_clients, generator(seed), **chosen) for _ in range(2))
    assert [part.tolist() for part in parts] == [part.tolist() for part in again]
    dealt = np.concatenate(parts)
    assert len(parts) == num_clients
    assert min(map(len, parts)) >= 1
    assert len(set(dealt.tolist())) == len(dealt)
    assert set(dealt.tolist()) <= set(range(len(labels)))
    assert all(part.dtype == np.int64 for part in parts)
    if scheme is not power_law:
        assert len(dealt) == len(labels)  # nothing is left over


@settings(max_examples=100)
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
        rule = (
            f"at most {most} with this data, got {most + 1};" if most else "too few even for one client; ask for fewer"
        )
        with pytest.raises(UserError, match=rule):
            scheme(labels, most + 1, generator(), **options)
        if most:
            assert min(map(len, scheme(labels, most, generator(), **options))) >= 1


LAWS = ("drawn", "equal", "lognormal", "zipf")


@pytest.mark.parametrize(
    ("scheme", "chosen"),
    [(scheme, {}) for scheme in (*SCHEMES, pathological)] + [(dirichlet, {"sizes": law}) for law in LAWS],
)
def test_another_seed_gives_another_partition(scheme, chosen):
    labels = np.arange(600) % 10
    first, other = (scheme(labels, 10, generator(seed), **chosen) for seed in (0, 1))
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


@pytest.mark.parametrize(
    ("scheme", "chosen"),
    [(power_law, {}), (pathological, {"classes_per_client": 5}), (dirichlet, {"alpha": 0.01})],
)
def test_100_000_clients_take_seconds(scheme, chosen):
    labels = np.arange(1_100_000) % 10
    start = time.process_time()
    parts = scheme(labels, 100_000, generator(), **chosen)
    assert time.process_time() - start < 20  # about 1 s; an O(clients * examples) scheme would take hours
    assert len(parts) == 100_000


NO_LAW = "sizes must be equal, lognormal or zipf (with partition=dirichlet also drawn), got "
REFUSED = [
    (power_law, {"classes_per_client": 0}, "classes_per_client must be between 1 and 3, got 0; the paper has 2"),
    (power_law, {"sigma": -0.5}, "sigma must be between 0 and 50, got -0.5"),
    (power_law, {"min_examples_per_class": 0}, "min_examples_per_class must be >= 1, got 0"),
    *(
        (scheme, {"num_clients": 0}, "num_clients must be >= 1, got 0")
        for scheme in (*SCHEMES, dirichlet, pathological)
    ),
    (iid, {"sizes": "drawn"}, f"{NO_LAW}drawn"),
    (iid, {"sigma": math.nan}, "got nan"),
    (iid, {"exponent": 10.5}, "exponent must be between 0 and 10, got 10.5"),
    (shards, {"shards_per_client": 0}, "shards_per_client must be >= 1, got 0"),
    (dirichlet, {"alpha": 0.0}, "alpha must be between 0.01 and 1000, got 0.0"),
    (dirichlet, {"alpha": math.nan}, "got nan"),
    (dirichlet, {"min_examples": 0}, "min_examples must be >= 1, got 0"),
    (dirichlet, {"num_clients": 7}, "num_clients must be at most 6 with this data, got 7"),
    (dirichlet, {"sizes": "even"}, f"{NO_LAW}even"),
    (pathological, {"classes_per_client": 0}, "classes_per_client must be between 1 and 3, got 0; the data have 3"),
    (pathological, {"num_clients": 1}, "num_clients must be at least 2 for each of 3 classes"),
    (pathological, {"num_clients": 31}, "num_clients must be at most 30 with this data, got 31"),
    (pathological, {"sizes": "drawn"}, f"{NO_LAW}drawn"),
]


@pytest.mark.parametrize(("scheme", "chosen", "message"), REFUSED)
def test_a_setting_out_of_range_is_named_with_its_rule(scheme, chosen, message):
    with pytest.raises(UserError) as caught:
        scheme(np.arange(60) % 3, rng=generator(), **{"num_clients": 2, **chosen})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_are_equal_cuts_of_the_examples_sorted_by_label():
    # FedAvg's MNIST division in small: 20 examples, 10 shards of 2, each within one class, 2 for each of 5.
    labels = np.array([3, 1, 0, 2, 4] * 4)
    parts = shards(labels, 5, generator())
    in_order = np.argsort(labels, kind="stable").reshape(10, 2).tolist()
    dealt = [part.reshape(2, 2).tolist() for part in parts]
    assert sorted(chain(*dealt)) == sorted(in_order)
    assert all(len(set(labels[part].tolist())) <= 2 for part in parts)
    assert list(chain(*dealt)) != in_order  # dealt at random
