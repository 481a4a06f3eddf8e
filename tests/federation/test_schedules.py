"""Adaptive mu: up after a rise, down after five falls in a row, never below 0."""

import pytest

from fedprox.federation.schedules import AdaptiveMu, learning_rate_factor


def values(losses, **settings):
    mu = AdaptiveMu(**settings)
    seen = []
    for loss in losses:
        mu.observe(loss)
        seen.append(mu.mu)
    return seen


def test_each_rise_adds_a_step():
    assert values([1, 2, 3, 4], mu=0.0) == [0.0, 0.1, 0.2, 0.3]


def test_five_falls_in_a_row_take_one_step_away_and_the_count_begins_anew():
    assert values(range(20, 8, -1), mu=1.0) == [1.0] * 5 + [0.9] * 5 + [0.8] * 2


def test_a_rise_ends_a_row_of_falls():
    assert values([9, 8, 7, 6, 5, 6, 5, 4, 3, 2, 1], mu=1.0) == [1.0] * 5 + [1.1] * 5 + [1.0]


def test_a_standstill_is_neither_and_ends_the_row():
    assert values([9, 8, 7, 6, 5, 5, 4, 3, 2, 1, 0], mu=1.0) == [1.0] * 10 + [0.9]


def test_mu_is_never_below_0():
    assert values(range(20, 8, -1), mu=0.05) == [0.05] * 5 + [0.0] * 7


def test_step_and_patience_are_settings():
    assert values([3, 2, 1, 2], mu=1.0, step=0.5, patience=2) == pytest.approx([1.0, 1.0, 0.5, 1.0])


def test_a_constant_learning_rate_is_the_same_in_every_round():
    assert {learning_rate_factor("constant", round_num, 7, 0.0) for round_num in range(1, 8)} == {1.0}


@pytest.mark.parametrize(
    ("round_num", "final", "expected"),
    [
        # (1 + cos(pi (t - 1) / 4)) / 2 at t = 1, 2, 3, 4: cosines of 0, 45, 90 and 135 degrees
        (1, 0.0, 1.0),
        (2, 0.0, (1 + 0.5**0.5) / 2),
        (3, 0.0, 0.5),
        (4, 0.0, (1 - 0.5**0.5) / 2),
        (3, 0.2, 0.6),  # half of the way from 1 to 0.2
        (5, 0.2, 0.2),  # a round after the last
    ],
)
def test_a_cosine_falls_from_1_to_its_final_value(round_num, final, expected):
    assert learning_rate_factor("cosine", round_num, 4, final) == pytest.approx(expected, abs=1e-15)
