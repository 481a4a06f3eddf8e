"""Attacks on updates, by formula."""

import numpy as np
import pytest

from fedprox.channel.attacks import (
    Attack,
    Cohort,
    Gaussian,
    InnerProduct,
    LittleIsEnough,
    SignFlip,
    largest_z,
    none,
)
from fedprox.errors import UserError

HONEST = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
COHORT = Cohort(num_clients=4, num_malicious=1, mean=HONEST.mean(axis=0), std=HONEST.std(axis=0, ddof=1))
OWN = np.array([1.0, -2.0, 0.5])


def forged(attack: Attack) -> list[float]:
    return attack.forge(OWN, COHORT, np.random.default_rng(0)).tolist()


def test_a_flipped_sign_is_the_own_update_times_a_factor():
    assert forged(SignFlip(0.2, scale=4.0)) == [-4.0, 8.0, -2.0]


def test_inner_product_manipulation_turns_the_honest_mean():
    assert forged(InnerProduct(0.2, epsilon=0.5)) == [-2.0, -2.5, -3.0]


def test_a_little_is_enough_moves_the_honest_mean_by_standard_deviations():
    assert forged(LittleIsEnough(0.2, z=-1.5)) == [8.5, 9.5, 10.5]
    assert forged(LittleIsEnough(0.2)) == pytest.approx((COHORT.mean - largest_z(4, 1) * 3).tolist())


@pytest.mark.parametrize(("n", "f", "z"), [(50, 24, 1.4261), (20, 4, 0.1573), (50, 10, 0.2533), (10, 2, 0), (3, 3, 0)])
def test_the_largest_z_leaves_a_majority_of_supporters(n, f, z):
    assert largest_z(n, f) == pytest.approx(z, abs=5e-5)


def test_noise_has_its_standard_deviation_and_follows_from_its_stream():
    noise = Gaussian(0.2, sigma=3.0).forge(np.zeros(10_000), COHORT, np.random.default_rng(0))
    assert noise.std() == pytest.approx(3.0, rel=0.03)
    assert forged(Gaussian(0.2)) == forged(Gaussian(0.2))


def test_nobody_attacks_by_default():
    assert none() is None
    assert forged(Attack(0.2)) == OWN.tolist()


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: SignFlip(1.5), "attack.fraction must be between 0 and 1, got 1.5"),
        (lambda: SignFlip(float("nan")), "attack.fraction must be between 0 and 1"),
        (lambda: SignFlip(0.2, scale=0.0), "attack.scale must be finite and > 0, got 0"),
        (lambda: Gaussian(0.2, sigma=-1.0), "attack.sigma must be finite and > 0, got -1"),
        (lambda: InnerProduct(0.2, epsilon=float("inf")), "attack.epsilon must be finite and > 0, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(make, rule):
    with pytest.raises(UserError, match=rule):
        make()
