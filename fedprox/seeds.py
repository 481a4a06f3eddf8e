"""Named random streams from one seed; nothing in fedprox draws from a global generator."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purpose of a random stream; the numbers are part of every result and never change."""

    PARTITION = 1  # which client holds which example
    GENERATION = 2  # data sets that are generated
    INIT = 3  # initial weights
    COHORT = 4  # the clients of a round
    STRAGGLERS = 5  # which of them are stragglers, and how much work they do
    BATCHES = 6  # mini-batch order of one client in one round
    GRADIENTS = 7  # the clients whose gradients FedDANE asks for
    FEATURES = 8  # how one client's features differ from the data set's
    AUGMENTATION = 9  # how the images of one client are augmented in one round
    TEST_SET = 10  # the global test set of data that have none
    STRATEGY = 11  # what a strategy draws from the global generators in one round
    SITE = 12  # the held-out examples of a site that has no test set of its own
    BUCKETS = 13  # which updates a robust rule averages with each other in one round
    MALICIOUS = 14  # the clients that attack
    ATTACK = 15  # what one attacker makes up in one round
    COMPRESSION = 16  # how one client's update is rounded in one round
    OWN_DATA = 17  # what functions of the user's for data draw from the global generators
    NOISE = 18  # what a private server adds to the sum of one round's updates
    PERSONAL = 24  # the batches of clients that fine-tune the global model
    DEVICES = 19  # how fast each client computes and communicates
    PAIRS = 20  # the clients whose label distributions are compared; no result of a run depends on them
    MASKS = 21  # the secrets of clients that mask their updates in one round, and which of them vanish
    CONTRIBUTION = 22  # the orders in which one round's clients come when their contributions are measured
    SEARCH = 27  # which values of settings a search tries
    LEAKAGE = 23  # what an attack on a recorded update, and the defences against it, draw; no run depends on them
    TEST_SPLIT = 25  # the test rows of the user's own tables


def generator(seed: int, stream: Stream, *ids: int, repetition: int = 0) -> np.random.Generator:
    """Return the generator of one stream: a pure function of its arguments.

    Args:
        seed: The run's seed, >= 0 and below 2^32.
        stream: The purpose of the numbers. Streams are independent of each other.
        ids: The position within the stream, such as (round_num, client), each below 2^32.
        repetition: Repetition k of the same experiment, >= 0; 0 is the run without repetitions.

    Raises:
        ValueError: If the seed or the repetition is negative or has more than 32 bits.

    Examples:
        >>> [generator(0, Stream.COHORT, round_num).integers(100, size=3).tolist() for round_num in (1, 2, 1)]
        [[38, 10, 97], [70, 72, 89], [38, 10, 97]]
    """
    if not (0 <= seed < 2**32 and 0 <= repetition < 2**32):  # each is one 32-bit word of the entropy
        raise ValueError(f"seed must be >= 0 and below 2^32, and so must repetition, got {seed} and {repetition}")
    # The words that SeedSequence(entropy=(seed, repetition), spawn_key=(stream, *ids)) would make, at half the cost
    words = np.array((seed, repetition, 0, 0, stream, *ids), dtype=np.uint32)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
