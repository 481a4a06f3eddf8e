"""Threshold shares: which of them give the secret, and that fewer say nothing."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprox.channel.shamir import PRIME, SHARE_BYTES, combine, split


@given(st.integers(0, 2**256 - 1), st.integers(1, 8), st.data())
def test_any_t_shares_give_the_secret(secret, num, data):
    threshold = data.draw(st.integers(1, num))
    shares = split(secret, num, threshold, np.random.default_rng(0))
    holders = data.draw(st.permutations(range(1, num + 1)))[:threshold]
    assert combine({holder: shares[holder - 1] for holder in holders}) == secret
    assert all(0 <= share < PRIME < 2 ** (8 * SHARE_BYTES) for share in shares)


def test_fewer_shares_fit_every_secret():
    # Through t - 1 = 2 points and any value at 0 there is one polynomial of degree 2: the shares rule no secret out.
    shares = split(7, 5, threshold=3, rng=np.random.default_rng(0))
    third = {secret: _value_at_3(secret, shares[0], shares[1]) for secret in (0, 7, 123456789)}
    assert third[7] == shares[2]
    assert len(set(third.values())) == 3
    assert all(combine({1: shares[0], 2: shares[1], 3: value}) == secret for secret, value in third.items())
    assert all(combine({x: shares[x - 1] for x in two}) != 7 for two in combinations(range(1, 6), 2))


def _value_at_3(secret: int, first: int, second: int) -> int:
    return (secret - 3 * first + 3 * second) % PRIME  # third differences of a polynomial of degree 2 are 0
