"""The random draws of the authors' program, which come from NumPy's legacy generator.

litian96/FedProx at commit 3eed82e reseeds the global generator many times, so the generator's state at each draw
matters. Here each draw has its own generator in the same state; the global one is never used.
"""

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

SHUFFLE_SEED = 100  # the seed before each epoch of every client


def select(num_clients: int, round_index: int, size: int, num_active: int) -> tuple[Integers, Integers]:
    """Return a round's clients in the order of selection, and, in their own order, those that are not stragglers.

    Args:
        num_clients: N.
        round_index: 0 for the first round of training.
        size: Number of clients in a round.
        num_active: Number of clients that do all the work.
    """
    selected = np.random.RandomState(round_index).permutation(num_clients)[:size]
    return selected, np.random.RandomState(round_index).choice(selected, num_active, replace=False)


def first_straggler_epochs(num_clients: int, round_index: int, size: int, num_active: int, num_epochs: int) -> int:
    """Return the epochs, 1 .. E - 1, of a straggler that is the first to train in a round."""
    selected, _ = select(num_clients, round_index, size, num_active)
    rng = np.random.RandomState(round_index)
    rng.choice(selected, num_active, replace=False)
    return int(rng.randint(1, num_epochs))


@cache
def straggler_epochs_after(num_examples: int, num_epochs: int) -> int:
    """Return the epochs, 1 .. E - 1, of a straggler that trains after a client with this number of examples.

    The last draw before it was the shuffle of that client's labels.
    """
    rng = np.random.RandomState(SHUFFLE_SEED)
    rng.shuffle(np.arange(num_examples))
    return int(rng.randint(1, num_epochs))


def epoch_orders(num_examples: int, epochs_before: int, num_epochs: int) -> Integers:
    """Return each epoch's order of a client's examples as rows; every epoch shuffles the order of the one before.

    Args:
        num_examples: n_k.
        epochs_before: Epochs that the client has done in earlier rounds.
        num_epochs: Epochs in this round.
    """
    shuffle = _shuffle(num_examples)
    orders = [_power(shuffle, epochs_before)]
    for _ in range(num_epochs):
        orders.append(orders[-1][shuffle])
    return np.stack(orders[1:])


@lru_cache(maxsize=4096)
def _shuffle(num_examples: int) -> Integers:
    order = np.arange(num_examples)
    np.random.RandomState(SHUFFLE_SEED).shuffle(order)
    return order


def _power(permutation: Integers, exponent: int) -> Integers:
    """Return a permutation applied `exponent` times, by repeated squaring."""
    result, square = np.arange(len(permutation)), permutation
    while exponent:
        if exponent & 1:
            result = result[square]
        square, exponent = square[square], exponent >> 1
    return result
