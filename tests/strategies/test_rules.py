from functools import partial
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedprox.strategies import rules

# Every rule that bears two hostile updates of eleven, except the mean, which bears none
RULES = {
    "median": rules.median,
    "trimmed mean": partial(rules.trimmed_mean, num_trimmed=2),
    "krum": partial(rules.multi_krum, num_malicious=2, num_selected=1),
    "multi-krum": partial(rules.multi_krum, num_malicious=2, num_selected=9),
    "bulyan": partial(rules.bulyan, num_malicious=2),
    "geometric median": rules.geometric_median,
    "nnm, then median": lambda updates: rules.median(rules.nearest_neighbour_mixing(updates, 2)),
    "bucketing, then median": lambda updates: rules.median(rules.bucketing(updates, 2, np.random.default_rng(0))),
}
CENTRED = partial(rules.centred_clipping, radius=1.0, iterations=60)
NOISE = np.random.default_rng(1).normal(size=(11, 3)) * 0.01  # so that no two distances are the same
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
updates = arrays.arrays(np.float64, (11, 3), elements=st.floats(-10, 10).map(lambda x: round(x, 3)))


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_krum_takes_the_update_nearest_to_its_neighbours():
    # With f = 1, n - f - 2 = 2 neighbours: for .25 they are .3 and .1, at .0025 + .0225.
    points = column(0, 0.1, 0.25, 0.3, 10)
    scores = rules.krum_scores(rules.squared_distances(points), 1)
    assert scores[:4] == pytest.approx([0.0725, 0.0325, 0.025, 0.0425])
    assert scores[4] == pytest.approx(9.7**2 + 9.75**2)
    assert rules.multi_krum(points, 1, 1).item() == 0.25


def test_the_trimmed_mean_leaves_out_both_ends():
    assert rules.trimmed_mean(column(100, 1, 4, 3, 2), 1).item() == 3


def test_bulyan_averages_what_is_nearest_to_the_median():
    # f = 1, n = 7: Krum selects 5 of 1 .. 6 and 1000; of these the 3 nearest to their median are averaged.
    assert rules.bulyan(column(1, 2, 3, 4, 5, 6, 1000), 1).item() == pytest.approx(3, abs=1)


def test_clipping_keeps_directions_and_short_updates():
    given = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert rules.clipped(given, 1.0) == pytest.approx(np.array([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_one_iteration_of_centred_clipping_is_the_mean_of_clipped_updates():
    given = np.array([[30.0, 40.0], [0.3, 0.4]])
    assert rules.centred_clipping(given, 1.0, 1) == pytest.approx([0.45, 0.6])


def test_the_geometric_median_of_a_line_is_its_median():
    assert rules.geometric_median(column(0, 1, 100)).item() == pytest.approx(1, abs=1e-6)


def test_nearest_neighbour_mixing_averages_the_nearest_updates():
    mixed = rules.nearest_neighbour_mixing(column(0, 1, 2, 100), 1)
    assert mixed.ravel() == pytest.approx([1, 1, 1, 103 / 3])


@pytest.mark.parametrize(("n", "size"), [(10, 2), (11, 2), (5, 5), (4, 1)])
def test_buckets_divide_all_updates(n, size):
    made = rules.bucketing(column(*range(n)), size, np.random.default_rng(0))
    assert len(made) == ceil(n / size)
    sizes = [len(part) for part in np.array_split(range(n), len(made))]
    assert np.dot(made.ravel(), sizes) == pytest.approx(sum(range(n)))


@every_rule
def test_identical_updates_are_their_own_aggregate(rule):
    own = np.array([0.5, -3.0, 1e-6])
    assert rule(np.tile(own, (11, 1))) == pytest.approx(own)


# Bulyan's last selections have one neighbour each, so that two mutual neighbours tie; buckets are drawn by position.
WITHOUT_TIES = {name: each for name, each in RULES.items() if name not in ("bulyan", "bucketing, then median")}


@pytest.mark.parametrize("rule", WITHOUT_TIES.values(), ids=WITHOUT_TIES)
@given(updates, st.permutations(range(11)))
def test_the_order_of_clients_does_not_matter(rule, values, order):
    values = values + NOISE
    assert rule(values[order]) == pytest.approx(rule(values), abs=1e-6)


@every_rule
@given(updates, st.floats(-5, 5))
def test_updates_moved_by_a_vector_move_the_aggregate_by_it(rule, values, offset):
    values = values + NOISE
    assert rule(values + offset) == pytest.approx(rule(values) + offset, abs=1e-5)


@every_rule
@given(updates, st.sampled_from([1e6, -1e9]))
def test_two_hostile_updates_of_eleven_move_the_aggregate_only_within_the_others(rule, values, far):
    values[[3, 7]] = far
    honest = np.delete(values, [3, 7], axis=0)
    spread = np.ptp(honest, axis=0).max() + 1
    assert np.all(np.abs(rule(values) - honest.mean(axis=0)) <= 10 * spread)


@given(updates, st.sampled_from([1e6, -1e9]))
def test_a_hostile_update_moves_centred_clipping_by_its_radius_at_most(values, far):
    moved = values.copy()
    moved[3] = far
    one = partial(rules.centred_clipping, radius=1.0, iterations=1)
    assert np.linalg.norm(one(moved) - one(values)) <= 2 / 11 + 1e-9


def test_without_hostile_updates_centred_clipping_finds_the_mean():
    values = np.random.default_rng(0).normal(size=(11, 3)) * 0.1 + 5
    assert CENTRED(values) == pytest.approx(values.mean(axis=0), abs=1e-6)


@given(updates)
def test_multi_krum_that_selects_all_is_the_mean(values):
    assert rules.multi_krum(values, 0, 11) == pytest.approx(values.mean(axis=0))
