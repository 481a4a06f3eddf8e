"""Work divided into shares that take about equally long."""

import heapq
from collections.abc import Sequence

import numpy as np

_SWAPS = 100  # at most; a cohort of ten needs two or three


def balance(work: Sequence[int], num_shares: int) -> list[list[int]]:
    """Return positions of `work` in `num_shares` lists of about equal sums.

    Longest first, each to the least loaded (Graham 1969); then pieces change places between the most and the least
    loaded as long as that brings the two together.
    """
    loads = [(0, share) for share in range(num_shares)]
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for position in sorted(range(len(work)), key=lambda position: -work[position]):
        load, share = heapq.heappop(loads)
        shares[share].append(position)
        heapq.heappush(loads, (load + work[position], share))
    for _ in range(_SWAPS):
        by_load = sorted(shares, key=lambda share: sum(work[position] for position in share))
        if not _brought_together(by_load[-1], by_load[0], work):
            break
    return shares


def _brought_together(heavy: list[int], light: list[int], work: Sequence[int]) -> bool:
    """Exchange two pieces of work so that half the difference moves, as nearly as it can.

    Returns:
        Whether the two sums are closer than before.
    """
    gap = sum(work[position] for position in heavy) - sum(work[position] for position in light)
    given, back = (np.array([work[position] for position in share]) for share in (heavy, light))
    moved = given[:, None] - back
    miss = np.where((moved > 0) & (moved < gap), np.abs(2 * moved - gap), gap)
    if not miss.size or miss.min() >= gap:
        return False
    one, other = np.unravel_index(miss.argmin(), miss.shape)
    heavy[one], light[other] = light[other], heavy[one]
    return True
