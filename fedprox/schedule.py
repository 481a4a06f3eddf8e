"""The clients' learning rate over the rounds."""

import math


def learning_rate_factor(name: str, round_num: int, num_rounds: int, final: float) -> float:
    """Return what the learning rate is multiplied by in a round.

    "cosine" falls from 1 in round 1 along half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts), so that
    a round after the last one would have `final`; "constant" is always 1.

    Args:
        name: "constant" or "cosine".
        round_num: 1 .. num_rounds.
        num_rounds: T.
        final: 0 .. 1.
    """
    if name == "constant":
        return 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * (round_num - 1) / num_rounds)) / 2
