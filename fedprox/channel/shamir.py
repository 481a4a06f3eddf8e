"""Secrets in threshold shares (Shamir 1979): any t of n shares give the secret, fewer say nothing about it."""

from collections.abc import Mapping

import numpy as np

PRIME = 2**521 - 1  # a prime above every secret of 32 bytes
SHARE_BYTES = 66


def split(secret: int, num_shares: int, threshold: int, rng: np.random.Generator) -> list[int]:
    """Return the values f(1), ..., f(n) of a random polynomial of degree t - 1 with f(0) = secret, modulo PRIME.

    Args:
        secret: 0 .. PRIME - 1.
        num_shares: n.
        threshold: t, 1 .. n.
        rng: Draws the other coefficients.

    Examples:
        >>> shares = split(42, num_shares=5, threshold=3, rng=np.random.default_rng(0))
        >>> combine({4: shares[3], 1: shares[0], 5: shares[4]})
        42
    """
    coefficients = [int.from_bytes(rng.bytes(SHARE_BYTES)) % PRIME for _ in range(threshold - 1)] + [secret]
    return [_value(coefficients, x) for x in range(1, num_shares + 1)]


def _value(coefficients: list[int], x: int) -> int:
    """Return a polynomial's value at x, given its coefficients with the highest power first."""
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, int]) -> int:
    """Return f(0) of the polynomial of least degree through the points x -> f(x), modulo PRIME (Lagrange)."""
    secret = 0
    for x, value in shares.items():
        above = below = 1
        for other in shares:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        secret += value * above * pow(below, -1, PRIME)
    return secret % PRIME
