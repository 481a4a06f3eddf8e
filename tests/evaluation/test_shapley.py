"""Shapley values: the axioms, a game whose values are known, and sampling against the exact values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.evaluation.shapley import Shapley, exact, sampled

CHANCES = (0.2, 0.2, 0.0, 0.1, 0.3, 0.05)


def members(players: int) -> list[int]:
    return [player for player in range(players.bit_length()) if players >> player & 1]


def at_least_one(players: int) -> float:
    """Return the probability that at least one of the players succeeds."""
    return 1 - math.prod(1 - CHANCES[player] for player in members(players))


def test_a_game_whose_values_are_known():
    # Each set's gain of player i is c_i prod_{j in S} (1 - c_j); averaged over all orders by hand-written enumeration
    expected = [0.14377, 0.14377, 0, 0.06851, 0.22741, 0.0335]
    assert exact(6, at_least_one) == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 5), st.data())
def test_the_axioms_hold_for_any_game(num, data):
    worths = data.draw(st.lists(st.floats(-1e3, 1e3), min_size=2**num, max_size=2**num))
    found = exact(num, worths.__getitem__)
    assert found.sum() == pytest.approx(worths[-1] - worths[0], abs=1e-9)
    # a further player that changes nothing gets 0, and the others keep their values
    padded = exact(num + 1, lambda players: worths[players & (2**num - 1)])
    assert padded == pytest.approx([*found, 0.0], abs=1e-9)
    # a further player that stands in for the first one gets the same as it
    twins = exact(num + 1, lambda players: worths[(players & (2**num - 1)) | (players >> num)])
    assert twins[num] == pytest.approx(twins[0], abs=1e-9)


def test_sampling_adds_up_too_and_comes_near_the_exact_values():
    found = sampled(6, at_least_one, 2000, np.random.default_rng(0))
    assert found.sum() == pytest.approx(at_least_one(63), abs=1e-9)
    assert found[2] == 0
    # A gain lies between 0 and c_i, so its standard deviation is at most c_i / 2 and that of the mean c_i / 2 / 45
    assert np.abs(found - exact(6, at_least_one)).max() < 5 * 0.3 / 2 / math.sqrt(2000)


def test_ten_players_are_exact_and_eleven_are_sampled():
    rng = np.random.default_rng(0)
    weights = np.arange(11.0)

    def squared(players: int) -> float:  # gains depend on the order, so two permutations are not exact
        return float(sum(weights[members(players)])) ** 2

    assert Shapley(2).values(10, squared, rng).tolist() == exact(10, squared).tolist()
    found = Shapley(2).values(11, squared, rng)
    assert found.sum() == pytest.approx(squared(2**11 - 1))
    assert found.tolist() != pytest.approx(exact(11, squared).tolist())
