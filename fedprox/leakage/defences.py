"""What the server receives of an update under each defence: clipping, noise, compression, masks."""

from collections.abc import Callable, Mapping

import numpy as np

from fedprox.channel.codecs import Codec, Float32, Quantise
from fedprox.channel.masking import Masked, Party, Vector, masked
from fedprox.seeds import Stream, generator

Defence = Callable[[Vector, np.random.Generator], Vector]
_TOP = 0.1


def clipped(update: Vector, rng: np.random.Generator) -> Vector:
    """Return half of the update, as clipping to half of its norm leaves it."""
    return update / 2


def noisy(multiplier: float) -> Defence:
    """Return the clipped update with noise of a standard deviation of `multiplier` times the clip in every value.

    That is what a client would send that adds the noise itself, not its part of the noise that a server adds to a sum.
    """

    def defend(update: Vector, rng: np.random.Generator) -> Vector:
        half = clipped(update, rng)
        return half + rng.normal(0.0, multiplier * np.linalg.norm(half), half.shape)

    return defend


def compressed(codec: Codec) -> Defence:
    """Return what a server unpacks."""
    return lambda update, rng: codec.unpacked(codec.packed(update, rng), len(update))


def under_masks(update: Vector, rng: np.random.Generator) -> Vector:
    """Return the masked update of one of two clients, decoded as if it was a sum."""
    ring, (own, other) = Masked().ring(1, 2), [Party.drawn(rng) for _ in range(2)]
    clip = Masked().clip
    return ring.decoded(masked(ring.encoded(np.clip(update, -clip, clip)), 0, own, [own.public, other.public], ring))


def defences(noise: float) -> Mapping[str, Defence]:
    """Return the defences by name.

    Args:
        noise: Noise multiplier, >= 0.
    """
    return {
        "as sent": lambda update, rng: update,
        "clipped": clipped,
        f"clipped, noise {noise:g}": noisy(noise),
        "8 bits": compressed(Codec(Quantise(8))),
        f"top {100 * _TOP:g}%": compressed(Codec(Float32(), _TOP)),
        "masked": under_masks,
    }


def stream(seed: int, round_num: int, client: int, position: int) -> np.random.Generator:
    """Return the random numbers of the defence at a position; those of the attack have none."""
    return generator(seed, Stream.LEAKAGE, round_num, client, 1 + position)
