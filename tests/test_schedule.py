"""The learning rate over the rounds."""

import pytest

from fedprox.schedule import learning_rate_factor


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
