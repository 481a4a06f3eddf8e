"""Sums of masked updates: secure aggregation's arithmetic (Bonawitz et al. 2017), with all parties in this process.

Party i of n turns its numbers into fixed point, x_i, in the integers modulo 2^b, and sends

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)   mod 2^b,

where s_ij is the secret that i and j agree on and b_i is i's own seed. In the sum of all y_i the pairwise masks cancel.
Before that, each party gives every other one a share of b_i and of the private key behind its s_ij. For those that
have delivered, the survivors' shares give b_i; for those that have not, they give the private key, and with it the
pairwise masks that have no counterpart. Nobody learns both of one party, and so nobody learns an x_i.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, inf, log2

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedprox.channel import shamir
from fedprox.data.checks import check_between
from fedprox.errors import UserError

Vector = NDArray[np.float64]
Residues = NDArray[np.uint64]
KEY_BYTES, TAG_BYTES = 32, 16
MIN_BITS, MAX_BITS = 8, 52  # float64 holds every sum exactly
LEAST = 2  # parties in a sum: the sum of one update is that update


def none() -> None:
    """Return None: the server gets every update."""
    return


@dataclass(frozen=True)
class Masked:
    """Settings of `secure_aggregation=masked`.

    Attributes:
        bits: b, of the ring; the sum of a round has to fit.
        clip: C, > 0; values of an update beyond it are clipped to it.
        threshold: t, the clients of a round that have to deliver; None for more than half.
        dropouts: Probability, 0 .. 1, that a client vanishes after it has exchanged keys.
        masks: Whether updates are masked; without masks the sum is the same.
    """

    bits: int = 32
    clip: float = 1.0
    threshold: int | None = None
    dropouts: float = 0.0
    masks: bool = True

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        name = "secure_aggregation"
        check_between(f"{name}.bits", self.bits, MIN_BITS, MAX_BITS, "float64 holds sums of so many bits exactly")
        check_between(f"{name}.dropouts", self.dropouts, 0, 1, "it is the probability that a client vanishes")
        if not 0 < self.clip < inf:
            raise UserError(f"{name}.clip must be finite and > 0, got {self.clip:g}")
        if self.threshold is not None and self.threshold < LEAST:
            raise UserError(
                f"{name}.threshold must be at least {LEAST} or null (more than half), got {self.threshold}: the sum of "
                "one update is that update"
            )

    def threshold_of(self, num_parties: int) -> int:
        """Return t for a round of n >= 2 parties.

        Raises:
            UserError: If n is too small.
        """
        threshold = max(LEAST, num_parties // 2 + 1) if self.threshold is None else self.threshold
        if threshold > num_parties:
            raise UserError(
                f"secure_aggregation.threshold={threshold} clients have to deliver, but a round has only {num_parties};"
                " raise clients_per_round or lower the threshold"
            )
        return threshold

    def ring(self, weight: int, num_parties: int) -> "Ring":
        """Return the ring for sums of at most n vectors n_i u_i with sum n_i = N and |u_i| <= C.

        The scale is the largest power of two with N C scale + n / 2 < 2^(b - 1): every sum fits, and none wraps.

        Raises:
            UserError: If not even scale 1 fits.
        """
        room = 2 ** (self.bits - 1) - 1 - num_parties / 2
        if room < weight * max(1.0, self.clip):
            enough = floor(log2(weight * max(1.0, self.clip) + num_parties)) + 3
            raise UserError(
                f"secure_aggregation.bits={self.bits} is too few for sums over {weight} examples of values up to "
                f"clip={self.clip:g}; {f'raise bits to {enough}' if enough <= MAX_BITS else 'lower the clip'}"
            )
        return Ring(self.bits, 2.0 ** floor(log2(room / (weight * self.clip))))


@dataclass(frozen=True)
class Ring:
    """Fixed-point numbers in the integers modulo 2^bits: v is the residue of round(v scale).

    Attributes:
        bits: 8 .. 52.
        scale: A power of two.
    """

    bits: int
    scale: float

    def encoded(self, values: Vector) -> Residues:
        """Return the residues of some numbers; each is off by at most 1 / (2 scale)."""
        return self.wrapped(np.rint(values * self.scale).astype(np.int64).view(np.uint64))

    def decoded(self, residues: Residues) -> Vector:
        """Return the numbers between -2^(b - 1) / scale and 2^(b - 1) / scale that have these residues."""
        unused = np.uint64(64 - self.bits)
        signed = (residues << unused).view(np.int64) >> np.int64(64 - self.bits)  # the highest bit is the sign
        return signed / self.scale

    def wrapped(self, integers: Residues) -> Residues:
        """Return integers modulo 2^bits; uint64 arithmetic is modulo 2^64, a multiple of that."""
        return integers & np.uint64(2**self.bits - 1)


@dataclass(frozen=True)
class Party:
    """The secrets of one client in one round.

    Attributes:
        private: Private key (X25519) from which its pairwise seeds follow, 32 bytes.
        own: b_i, the seed of its own mask, 32 bytes.
    """

    private: bytes
    own: bytes

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Party":
        """Return a party with random secrets."""
        return cls(rng.bytes(KEY_BYTES), rng.bytes(KEY_BYTES))

    @cached_property
    def public(self) -> bytes:
        """The public key."""
        return X25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw()


def pairwise_seed(private: bytes, public: bytes) -> bytes:
    """Return s_ij from the private key of one party and the public key of the other; both sides get the same."""
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"fedprox pairwise mask").derive(shared)


def pseudo_random(seed: bytes, num: int) -> Residues:
    """Return PRG(seed): uniform integers of 64 bits from the stream of ChaCha20, shape (num,)."""
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(8 * num))
    return np.frombuffer(stream, "<u8")


def pairwise_masks(private: bytes, position: int, publics: Mapping[int, bytes], num: int) -> Residues:
    """Return sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij) over some other parties j, shape (num,).

    Args:
        private: Party i's private key.
        position: i.
        publics: j -> party j's public key.
        num: Numbers in a vector.
    """
    total = np.zeros(num, np.uint64)
    for other, public in publics.items():
        mask = pseudo_random(pairwise_seed(private, public), num)
        total = total + mask if other > position else total - mask
    return total


def masked(encoded: Residues, position: int, party: Party, publics: Sequence[bytes], ring: Ring) -> Residues:
    """Return y_i, which is uniform for everybody who lacks one of its seeds."""
    others = {other: public for other, public in enumerate(publics) if other != position}
    num = len(encoded)
    return ring.wrapped(encoded + pseudo_random(party.own, num) + pairwise_masks(party.private, position, others, num))


def sum_of_masked(
    encoded: Mapping[int, Residues], parties: Sequence[Party], threshold: int, ring: Ring, rng: np.random.Generator
) -> Residues:
    """Return the sum of the x_i that were delivered, modulo 2^b, as a server gets it: from masked vectors and shares.

    Args:
        encoded: i -> x_i of the parties that deliver, shape (d,).
        parties: All that have exchanged keys.
        threshold: t.
        ring: Of the x_i.
        rng: Draws the coefficients of the shares.

    Raises:
        ValueError: If fewer than t parties deliver.
    """
    if len(encoded) < threshold:
        raise ValueError(f"{len(encoded)} of {len(parties)} parties deliver, and {threshold} are needed")
    publics = [party.public for party in parties]
    total = plain_sum([masked(each, position, parties[position], publics, ring) for position, each in encoded.items()])
    for position, party in enumerate(parties):
        is_here = position in encoded
        shares = shamir.split(int.from_bytes(party.own if is_here else party.private), len(parties), threshold, rng)
        seed = _recovered({holder + 1: shares[holder] for holder in list(encoded)[:threshold]})
        if is_here:
            total = total - pseudo_random(seed, len(total))
        else:  # what its mask would have cancelled
            total = total + pairwise_masks(seed, position, {other: publics[other] for other in encoded}, len(total))
    return ring.wrapped(total)


def _recovered(shares: Mapping[int, int]) -> bytes:
    """Return the 32 bytes behind a secret's shares."""
    return shamir.combine(shares).to_bytes(KEY_BYTES)


def plain_sum(vectors: Sequence[Residues]) -> Residues:
    """Return the sum of vectors modulo 2^64."""
    total: Residues = np.sum(vectors, axis=0, dtype=np.uint64)
    return total


def key_bytes(num_parties: int) -> tuple[int, int]:
    """Return the bytes of keys and shares that a party sends, and that it receives, before it delivers.

    Each has two public keys, one of which encrypts shares, and gives every other one its shares of two secrets.
    """
    others, keys = num_parties - 1, 2 * KEY_BYTES
    shares = others * (2 * shamir.SHARE_BYTES + TAG_BYTES)
    return keys + shares, others * keys + shares


def vector_bytes(num: int, num_parties: int, ring: Ring) -> int:
    """Return the bytes of a masked vector, and of a share of each party that its sender gives away after it."""
    return -(-num * ring.bits // 8) + num_parties * shamir.SHARE_BYTES
