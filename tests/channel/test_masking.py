"""Masked sums: equal to the plain ring sum whoever delivers, uniform one by one, and they never wrap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.channel.masking import (
    Masked,
    Party,
    Ring,
    key_bytes,
    masked,
    pairwise_seed,
    plain_sum,
    pseudo_random,
    sum_of_masked,
    vector_bytes,
)
from fedprox.errors import UserError

RING = Ring(bits=32, scale=2.0**20)


def parties(num: int) -> list[Party]:
    rng = np.random.default_rng(1)
    return [Party.drawn(rng) for _ in range(num)]


@settings(max_examples=30)
@given(st.integers(2, 7), st.integers(8, 52), st.data())
def test_the_sum_is_the_plain_ring_sum_for_every_set_of_survivors(num, bits, data):
    ring, rng = Ring(bits, 4.0), np.random.default_rng(0)
    threshold = data.draw(st.integers(2, num))
    alive = data.draw(st.sets(st.integers(0, num - 1), min_size=threshold))
    encoded = {party: ring.wrapped(rng.integers(2**62, size=5, dtype=np.uint64)) for party in alive}
    found = sum_of_masked(encoded, parties(num), threshold, ring, rng)
    assert found.tolist() == [sum(each) % 2**bits for each in zip(*(x.tolist() for x in encoded.values()), strict=True)]


def test_below_the_threshold_there_is_no_sum():
    with pytest.raises(ValueError, match="2 of 4 parties deliver, and 3 are needed"):
        sum_of_masked(dict.fromkeys((0, 3), RING.encoded(np.ones(1))), parties(4), 3, RING, np.random.default_rng(0))


def test_a_decoded_sum_is_off_by_at_most_half_a_step_for_each_party():
    rng = np.random.default_rng(2)
    updates = np.clip(rng.normal(size=(8, 1000)), -3, 3)
    total = RING.decoded(RING.wrapped(plain_sum([RING.encoded(each) for each in updates])))
    assert np.abs(total - updates.sum(axis=0)).max() <= 8 / 2 / RING.scale


def test_a_masked_vector_is_uniform_whatever_it_hides():
    members = parties(3)
    publics = [party.public for party in members]
    for hidden in (np.zeros(4096), np.ones(4096)):
        sent = masked(RING.encoded(hidden), 1, members[1], publics, RING)
        counts = np.bincount((sent >> np.uint64(27)).astype(int), minlength=32)  # the top 5 bits
        # chi^2 with 31 degrees of freedom: 61.1 is its 99.9 % point; the stream is fixed, so this never flickers
        assert ((counts - 128.0) ** 2 / 128).sum() < 61.1
        assert sent.max() < 2**32


def test_each_seed_is_needed_to_unmask():
    members = parties(3)
    publics = [party.public for party in members]
    plain = RING.encoded(np.arange(4.0))
    sent = masked(plain, 0, members[0], publics, RING)
    pairwise = [pseudo_random(pairwise_seed(members[0].private, public), 4) for public in publics[1:]]
    own = pseudo_random(members[0].own, 4)
    assert RING.wrapped(sent - own - pairwise[0] - pairwise[1]).tolist() == plain.tolist()
    assert RING.wrapped(sent - pairwise[0] - pairwise[1]).tolist() != plain.tolist()
    assert RING.wrapped(sent - own - pairwise[0]).tolist() != plain.tolist()


def test_two_parties_agree_on_a_seed_that_a_third_does_not_get():
    one, other, third = parties(3)
    assert pairwise_seed(one.private, other.public) == pairwise_seed(other.private, one.public)
    assert pairwise_seed(third.private, other.public) != pairwise_seed(one.private, other.public)


@given(st.integers(8, 52), st.floats(1e-3, 1e3), st.integers(1, 10**6), st.integers(2, 100))
def test_the_largest_sum_fits_and_twice_the_scale_would_not(bits, clip, weight, num):
    try:
        ring = Masked(bits, clip).ring(weight, num)
    except UserError:
        assert weight * max(1.0, clip) + num / 2 > 2 ** (bits - 1) - 1
        return
    room = 2 ** (bits - 1) - 1 - num / 2
    assert weight * clip * ring.scale <= room < 2 * weight * clip * ring.scale * (1 + 1e-12)
    assert math.log2(ring.scale) % 1 == 0
    for sign in (-1.0, 1.0):
        assert ring.decoded(ring.encoded(np.array([sign * weight * clip])))[0] * sign > 0


def test_the_advised_number_of_bits_is_enough():
    with pytest.raises(UserError, match="bits=8 is too few for sums over 300 examples of values up to clip=1; raise"):
        Masked(8).ring(300, 10)
    assert Masked(11).ring(300, 10).scale == 2.0  # 1023 - 5 >= 300 * 2
    with pytest.raises(UserError, match="of values up to clip=1e\\+15; lower the clip"):
        Masked(clip=1e15).ring(300, 10)


def test_more_than_half_have_to_deliver_by_default():
    assert [Masked().threshold_of(num) for num in (2, 3, 4, 10, 11)] == [2, 2, 3, 6, 6]
    assert Masked(threshold=3).threshold_of(10) == 3
    with pytest.raises(UserError, match="threshold=2 clients have to deliver, but a round has only 1"):
        Masked().threshold_of(1)


def test_bytes_grow_with_the_number_of_parties():
    # 10 parties: 2 keys of 32 bytes; for each of 9 others 2 shares of 66 bytes and a tag of 16; and back with 2 keys
    assert key_bytes(10) == (64 + 9 * 148, 9 * (64 + 148))
    assert vector_bytes(651, 10, RING) == 651 * 4 + 10 * 66
    assert vector_bytes(3, 0, Ring(17, 1.0)) == 7  # 51 bits
