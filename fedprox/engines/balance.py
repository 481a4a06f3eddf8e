"""Division of work into shares that take about the same time."""

import heapq
from collections.abc import Sequence

import numpy as np

_SWAPS = 100  # at most; a cohort of ten needs two or three


def balance(work: Sequence[int], num_shares: int) -> list[list[int]]:
    """Return the positions of `work` in `num_shares` lists of about equal sums.

    The longest piece goes first, each to the share with the least work (Graham 1969). Then the shares with the most and
    the least work exchange pieces as long as that brings their sums closer.

    Examples:
        >>> balance([6, 5, 4, 3, 2], num_shares=2)  # both shares have a sum of 10
        [[1, 3, 4], [0, 2]]
    """
    loads = [(0, share) for share in range(num_shares)]
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for position in sorted(range(len(work)), key=lambda position: -work[position]):
        load, share = heapq.heappop(loads)
        shares[share].append(position)
        heapq.heappush(loads, (load + work[position], share))
    for _ in range(_SWAPS):
        by_load = sorted(shares, key=lambda share: sum(work[position] for position in share))
        if not _exchange(by_load[-1], by_load[0], work):
            break
    return shares


def _exchange(heavy: list[int], light: list[int], work: Sequence[int]) -> bool:
    """Exchange one piece of each share so that about half the difference of their sums moves.

    Returns:
        Whether the two sums are closer than before; otherwise nothing was exchanged.
    """
    gap = sum(work[position] for position in heavy) - sum(work[position] for position in light)
    from_heavy, from_light = (np.array([work[position] for position in share]) for share in (heavy, light))
    moved = from_heavy[:, None] - from_light
    new_gap = np.where((moved > 0) & (moved < gap), np.abs(2 * moved - gap), gap)
    if not new_gap.size or new_gap.min() >= gap:
        return False
    one, other = np.unravel_index(new_gap.argmin(), new_gap.shape)
    heavy[one], light[other] = light[other], heavy[one]
    return True
