"""Codecs: the bytes that travel, what they lose, and that it is lost without bias."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.channel.codecs import Codec, Float32, Quantise
from fedprox.errors import UserError


def update(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=num)


def sent(codec: Codec, values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, int]:
    data = codec.packed(values, np.random.default_rng(seed))
    return codec.unpacked(data, len(values)), len(data)


@pytest.mark.parametrize(
    ("codec", "num", "num_bytes"),
    [
        (Codec(Float32()), 7850, 31_400),
        (Codec(Quantise(8)), 7850, 7854),
        (Codec(Quantise(4)), 7850, 3929),
        (Codec(Quantise(4, bucket=512)), 7850, 3925 + 4 * 16),
        (Codec(Quantise(2, bucket=512, scale="max")), 7850, 1963 + 4 * 16),  # 1962.5 bytes, rounded up
        (Codec(Float32(), fraction=0.01), 7850, 624),
        (Codec(Float32(), fraction=0.01), 650, 48),
        (Codec(Float32(), fraction=0.1), 650, 520),
        (Codec(Quantise(8), fraction=0.1), 650, 65 * 5 + 4),
    ],
)
def test_bytes_are_those_of_the_formulas(codec, num, num_bytes):
    assert sent(codec, update(num))[1] == num_bytes


@given(
    st.integers(1, 40),
    st.integers(2, 16),
    st.sampled_from([0, 1, 7]),
    st.sampled_from(["norm", "max"]),
    st.integers(0, 9),
)
def test_quantised_values_keep_their_sign_and_are_off_by_less_than_a_level(num, bits, bucket, scale, seed):
    values = update(num, seed)
    given_back, _ = sent(Codec(Quantise(bits, bucket, scale)), values, seed)
    for start in range(0, num, bucket or num):
        part = slice(start, start + (bucket or num))
        largest = np.abs(values[part]).max() if scale == "max" else np.linalg.norm(values[part])
        assert (np.abs(given_back - values)[part] <= largest / (2 ** (bits - 1) - 1) * (1 + 1e-6)).all()
    assert (given_back * values >= 0).all()


@pytest.mark.parametrize("scale", ["norm", "max"])
def test_rounding_has_no_bias_and_the_error_of_the_theorem(scale):
    values, bits, num_draws = update(100), 4, 4000
    drawn = np.array([sent(Codec(Quantise(bits, scale=scale)), values, seed)[0] for seed in range(num_draws)])
    spread = drawn.std(axis=0) / np.sqrt(num_draws)
    assert (np.abs(drawn.mean(axis=0) - values) <= 5 * spread + 1e-6).all()
    error, s = np.square(drawn - values).sum(axis=1).mean(), 7
    assert error <= min(100 / s**2, 10 / s) * np.square(values).sum()


def test_scaled_by_the_maximum_large_vectors_lose_less():
    values = update(10_000)
    errors = [np.square(sent(Codec(Quantise(4, scale=scale)), values)[0] - values).sum() for scale in ("norm", "max")]
    assert errors[1] < errors[0] / 100


def test_zeros_stay_zeros():
    for codec in (Codec(Quantise(3)), Codec(Quantise(3, bucket=2)), Codec(Float32(), fraction=0.5)):
        assert sent(codec, np.zeros(5))[0].tolist() == [0.0] * 5


@given(st.integers(2, 60), st.floats(0.02, 1), st.integers(0, 9))
def test_the_largest_values_are_sent_and_the_rest_is_0(num, fraction, seed):
    values = update(num, seed)
    k = int(fraction * num + 1e-9)
    if not k:
        return
    given_back, _ = sent(Codec(Float32(), fraction=fraction), values)
    left_out = values[given_back == 0]
    assert np.count_nonzero(given_back) == k
    assert given_back[given_back != 0] == pytest.approx(values[given_back != 0])
    assert np.square(left_out).sum() <= (1 - k / num) * np.square(values).sum() + 1e-12


def test_of_equal_values_the_first_are_sent():
    assert sent(Codec(Float32(), fraction=0.5), np.array([1.0, -1.0, 1.0, -1.0]))[0].tolist() == [1.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Quantise(1), "update.quantise.bits must be between 2 and 16, got 1"),
        (lambda: Quantise(0), "between 2 and 16, got 0"),
        (lambda: Quantise(17), "between 2 and 16, got 17"),
        (lambda: Quantise(8, bucket=-1), "update.quantise.bucket must be >= 0"),
        (lambda: Codec(Float32(), fraction=0.001).num_sent(650), "fraction=0.001 of 650 parameters is less than one"),
    ],
)
def test_settings_that_send_nothing_are_refused(make, rule):
    with pytest.raises(UserError, match=rule):
        make()
