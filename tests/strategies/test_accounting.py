"""Accounting of privacy: the numbers of other accountants and of closed forms, and what the noise of a budget is."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.errors import UserError
from fedprox.strategies.accounting import Ledger, calibrated, epsilon_by_moments


@pytest.mark.parametrize(
    ("probability", "noise", "rounds", "delta", "epsilon"),
    [  # dp-accounting's PLD on a grid of 1e-4, within 0.011 of opacus' and prv-accountant's PRV
        (0.01, 1.0, 100, 1e-3, 0.3408),
        (0.01, 1.0, 200, 1e-3, 0.4877),
        (0.01, 1.0, 100, 1e-5, 0.7180),
        (0.1, 1.0, 100, 1e-3, 4.7844),
        (0.01, 0.5, 100, 1e-3, 3.4902),
        (0.05, 1.0, 40, 1e-3, 1.4027),
        (0.05, 0.5, 40, 1e-3, 7.9949),
        (256 / 60000, 1.1, 14062, 1e-5, 2.3817),
    ],
)
def test_epsilon_is_that_of_other_accountants(probability, noise, rounds, delta, epsilon):
    assert Ledger([(noise, probability, rounds)]).epsilon(delta) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 100)])
def test_epsilon_is_the_closed_form_if_everybody_takes_part(noise, rounds):
    # Balle and Wang 2018, theorem 8, for T rounds of a Gaussian of multiplier z: that of z / sqrt(T) once.
    cdf, ratio = NormalDist().cdf, noise / math.sqrt(rounds)
    epsilon = Ledger([(noise, 1.0, rounds)]).epsilon(1e-5)
    delta = cdf(1 / (2 * ratio) - epsilon * ratio) - math.exp(epsilon) * cdf(-1 / (2 * ratio) - epsilon * ratio)
    assert delta == pytest.approx(1e-5, rel=1e-3)


def test_moments_give_the_looser_bound():
    assert epsilon_by_moments(1e-3, (1.0, 0.01, 100)) == pytest.approx(0.6182, abs=1e-4)
    assert epsilon_by_moments(1e-5, (1.0, 1.0, 1)) == pytest.approx(4.7285, abs=1e-4)


def test_nothing_costs_nothing_and_a_round_without_noise_everything():
    assert Ledger().epsilon(1e-3) == 0.0
    assert Ledger([(1.0, 0.1, 3), (0.0, 0.1, 1)]).epsilon(1e-3) == math.inf


@settings(max_examples=10)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(3.0, 6.0), st.floats(0.01, 1.0))
def test_epsilon_rises_with_rounds_falls_with_noise_and_is_the_same_in_two_parts(first, second, noise, probability):
    parts = Ledger([(noise, probability, first)])
    parts.spend(noise, probability, second)
    whole = Ledger([(noise, probability, first + second)])
    assert parts.spendings == whole.spendings
    epsilon = whole.epsilon(1e-3)
    assert Ledger([(noise, probability, first)]).epsilon(1e-3) < epsilon
    assert Ledger([(2 * noise, probability, first + second)]).epsilon(1e-3) < epsilon


def test_rounds_of_different_noise_add_up():
    mixed = Ledger([(1.0, 0.05, 20)])
    mixed.spend(2.0, 0.05, 20)
    less, more = (Ledger([(noise, 0.05, 40)]).epsilon(1e-3) for noise in (2.0, 1.0))
    assert less < mixed.epsilon(1e-3) < more
    # The order does not matter.
    assert Ledger([(2.0, 0.05, 20), (1.0, 0.05, 20)]).epsilon(1e-3) == pytest.approx(mixed.epsilon(1e-3), rel=1e-6)


def test_a_budget_allows_the_rounds_up_to_it():
    # By rounds, epsilon is .0217 .1037 .2394 .3408 after 1, 10, 50 and 100.
    rounds = Ledger().rounds_within(0.24, 1e-3, (1.0, 0.01, 100))
    assert 50 <= rounds < 60
    assert Ledger([(1.0, 0.01, rounds)]).epsilon(1e-3) <= 0.24 < Ledger([(1.0, 0.01, rounds + 1)]).epsilon(1e-3)
    assert Ledger([(1.0, 0.01, 50)]).rounds_within(0.24, 1e-3, (1.0, 0.01, 50)) == rounds - 50
    assert Ledger([(1.0, 0.01, 100)]).rounds_within(0.24, 1e-3, (1.0, 0.01, 50)) == 0
    assert Ledger().rounds_within(9.0, 1e-3, (1.0, 0.01, 100)) == 100


def test_noise_is_the_least_for_a_budget():
    noise = calibrated(1.0, 1e-3, 0.01, 100)
    assert noise == pytest.approx(0.7052, rel=2e-3)
    assert Ledger([(noise, 0.01, 100)]).epsilon(1e-3) <= 1.0 < Ledger([(0.998 * noise, 0.01, 100)]).epsilon(1e-3)
    with pytest.raises(UserError, match="no noise is enough"):
        calibrated(1e-9, 1e-9, 0.1, 50)
