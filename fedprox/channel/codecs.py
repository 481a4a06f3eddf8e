"""Compression of updates: what a client sends instead of its update, as bytes, and what the server makes of them.

A codec packs the update of one client, shape (d,) in float64, into the bytes that would travel, and unpacks those. So
the number of bytes is counted, not computed by a formula. Updates are compressed, never whole models: their values are
near 0, and what the codec loses is lost once and not in every round.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError

Vector = NDArray[np.float64]
Scale = Literal["norm", "max"]
MIN_BITS, MAX_BITS = 2, 16


@dataclass(frozen=True)
class Float32:
    """Values as they are, rounded to float32: four bytes each."""

    def packed(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return the bytes of some values."""
        return values.astype("<f4").tobytes()

    def unpacked(self, data: bytes, num: int) -> Vector:
        """Return the values in some bytes, shape (num,)."""
        return np.frombuffer(data, "<f4").astype(np.float64)


@dataclass(frozen=True)
class Quantise:
    """Values rounded at random to s = 2^(b - 1) - 1 levels on either side of 0 (QSGD, Alistarh et al. 2017).

    A value v becomes scale * sign(v) * xi / s, where xi is one of the two integers next to s |v| / scale, at random, so
    that its expectation is that number: there is no bias. With scale = ||u|| the expected squared error is at most
    min(d / s^2, sqrt(d) / s) ||u||^2; with scale = max |u_i| it is smaller, because the levels lie closer.

    Attributes:
        bits: b, of a value, 2 .. 16.
        bucket: Values that share a scale, which takes four bytes; 0 for all.
        scale: "norm" or "max".
    """

    bits: int
    bucket: int = 0
    scale: Scale = "norm"

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UserError(f"update.quantise.bits must be between {MIN_BITS} and {MAX_BITS}, got {self.bits}")
        if self.bucket < 0:
            raise UserError(f"update.quantise.bucket must be >= 0 (0 for all values together), got {self.bucket}")

    @property
    def levels(self) -> int:
        """s, the levels on either side of 0."""
        return int(2 ** (self.bits - 1)) - 1

    def packed(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return the scales of all buckets, and then b bits for each value."""
        buckets = self._buckets(len(values))
        norm = np.abs(values) if self.scale == "max" else np.square(values)
        scales = np.maximum.reduceat(norm, buckets) if self.scale == "max" else np.sqrt(np.add.reduceat(norm, buckets))
        scales = scales.astype("<f4")
        each = self._each(scales, len(values))
        exact = np.divide(self.levels * np.abs(values), each, out=np.zeros_like(values), where=each > 0)
        xi = np.minimum(np.floor(exact + rng.random(len(values))), self.levels)
        codes = (np.sign(values) * xi + self.levels).astype("<u2")  # 0 .. 2 s
        return scales.tobytes() + _with_bits(codes, self.bits)

    def unpacked(self, data: bytes, num: int) -> Vector:
        """Return the values in some bytes, shape (num,)."""
        num_scales = len(self._buckets(num))
        scales = np.frombuffer(data[: 4 * num_scales], "<f4")
        signed = _without_bits(data[4 * num_scales :], self.bits, num).astype(np.float64) - self.levels
        return self._each(scales, num) * signed / self.levels

    def _buckets(self, num: int) -> NDArray[np.int64]:
        """Return where the buckets of `num` values begin."""
        return np.arange(0, num, self.bucket or max(1, num))

    def _each(self, scales: NDArray[np.float32], num: int) -> Vector:
        """Return each value's scale, shape (num,)."""
        return np.repeat(scales.astype(np.float64), self.bucket or max(1, num))[:num]


def _with_bits(codes: NDArray[np.uint16], bits: int) -> bytes:
    """Return integers below 2^bits as a stream of bits, the highest of each first."""
    stream = (codes[:, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint16)) & 1
    return np.packbits(stream.astype(np.uint8)).tobytes()


def _without_bits(data: bytes, bits: int, num: int) -> NDArray[np.int64]:
    """Return the integers in a stream of bits."""
    stream = np.unpackbits(np.frombuffer(data, np.uint8), count=num * bits).reshape(num, bits)
    return stream.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


@dataclass(frozen=True)
class Codec:
    """What a client makes of its update: perhaps only the largest values of it, perhaps with fewer bits each.

    Attributes:
        values: How the values are written.
        fraction: Share of the values that is sent, the largest ones with their positions in four bytes; None for all.
    """

    values: Float32 | Quantise
    fraction: float | None = None

    @property
    def is_exact(self) -> bool:
        """Whether nothing is lost but what float32 models do not hold."""
        return self.fraction is None and isinstance(self.values, Float32)

    def num_sent(self, num: int) -> int:
        """Return k, the number of values sent of `num`, rounded down.

        Raises:
            UserError: If it is 0.
        """
        k = num if self.fraction is None else int(self.fraction * num + 1e-9)
        if not k:
            raise UserError(
                f"update.top_k.fraction={self.fraction:g} of {num} parameters is less than one; "
                f"raise it to {1 / num:.2g}"
            )
        return k

    def packed(self, update: Vector, rng: np.random.Generator) -> bytes:
        """Return the bytes that travel."""
        if self.fraction is None:
            return self.values.packed(update, rng)
        order = np.argsort(-np.abs(update), kind="stable")  # of equal ones the first
        positions = np.sort(order[: self.num_sent(len(update))])
        return positions.astype("<u4").tobytes() + self.values.packed(update[positions], rng)

    def unpacked(self, data: bytes, num: int) -> Vector:
        """Return the update that the server takes, shape (num,)."""
        if self.fraction is None:
            return self.values.unpacked(data, num)
        k = self.num_sent(num)
        update = np.zeros(num)
        update[np.frombuffer(data[: 4 * k], "<u4")] = self.values.unpacked(data[4 * k :], k)
        return update
