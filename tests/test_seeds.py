"""Named random streams: pure functions of their arguments, and different in each of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.seeds import Stream, generator

SEEDS = st.integers(0, 2**32 - 1)
IDS = st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple)


def draw(seed: int, stream: Stream, *ids: int, repetition: int = 0) -> list[int]:
    """Return three 32-bit numbers: two streams that have nothing in common agree with probability 2^-96."""
    return generator(seed, stream, *ids, repetition=repetition).integers(2**32, size=3).tolist()


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, stream=st.sampled_from(Stream), ids=IDS, repetition=SEEDS)
def test_the_words_are_those_that_numpy_makes_of_a_seed_and_its_spawn_key(seed, stream, ids, repetition):
    sequence = np.random.SeedSequence(entropy=(seed, repetition), spawn_key=(int(stream), *ids))
    expected = np.random.PCG64(sequence).state
    assert generator(seed, stream, *ids, repetition=repetition).bit_generator.state == expected


def test_neighbouring_arguments_give_different_numbers():
    # Small neighbouring numbers, and ids that end in zeros, are where a careless key would collide.
    ids = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (1, 2), (2, 1), (12,)]
    keys = list(itertools.product((0, 1, 2), Stream, ids, (0, 1, 2)))
    drawn = {tuple(draw(seed, stream, *of, repetition=rep)) for seed, stream, of, rep in keys}
    assert len(drawn) == len(keys)


def test_numpys_global_generator_is_neither_read_nor_changed():
    np.random.seed(1)
    before = draw(0, Stream.INIT)
    np.random.seed(2)
    state = np.random.get_state()
    assert draw(0, Stream.INIT) == before
    after = np.random.get_state()
    assert all(np.array_equal(old, new) for old, new in zip(state, after, strict=True))


@pytest.mark.parametrize(
    ("seed", "stream", "ids", "repetition", "numbers"),
    [
        (0, Stream.PARTITION, (1, 2), 0, [4066484415, 1320983533, 415726745]),
        (0, Stream.GENERATION, (1, 2), 0, [701581923, 3773106222, 1792651389]),
        (0, Stream.INIT, (1, 2), 0, [3284576096, 1031017741, 3621193277]),
        (0, Stream.COHORT, (1, 2), 0, [236921403, 2762838489, 4240845405]),
        (0, Stream.STRAGGLERS, (1, 2), 0, [3417898672, 1024887232, 1181290763]),
        (0, Stream.BATCHES, (1, 2), 0, [4279347039, 2308285551, 2842045505]),
        (0, Stream.COHORT, (1,), 0, [1657746350, 434958131, 4172345376]),
        (1, Stream.COHORT, (1,), 0, [4172407392, 78234207, 4102786456]),
        (0, Stream.COHORT, (1,), 1, [204439259, 2119971989, 2690970123]),
    ],
)
def test_the_numbers_of_earlier_results_are_unchanged(seed, stream, ids, repetition, numbers):
    # Drawn when the streams were defined; a change here changes every result of the project.
    assert draw(seed, stream, *ids, repetition=repetition) == numbers


def test_a_seed_beyond_32_bits_is_refused_because_it_would_be_another_seeds_repetition():
    # To SeedSequence 2^32 is the words (0, 1), the same as seed 0 with repetition 1.
    with pytest.raises(ValueError, match="seed must be"):
        draw(2**32, Stream.COHORT, 1)
