"""Division of work into shares of about equal sums."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.engines.balance import balance

WORK = st.lists(st.integers(0, 10_000), max_size=30)


@given(work=WORK, num_shares=st.integers(1, 8))
def test_every_piece_of_work_is_in_exactly_one_share(work, num_shares):
    shares = balance(work, num_shares)
    assert len(shares) == num_shares
    assert sorted(position for share in shares for position in share) == list(range(len(work)))


@settings(max_examples=30, deadline=None)
@given(work=st.lists(st.integers(1, 100), min_size=1, max_size=6), num_shares=st.integers(1, 3))
def test_longest_first_takes_at_most_four_thirds_of_the_best_split(work, num_shares):
    # Graham (1969): at most 4/3 - 1/(3 m) of the best for m shares; the best is found by trying all.
    best = min(
        max(sum(piece for piece, at in zip(work, places, strict=True) if at == share) for share in range(num_shares))
        for places in itertools.product(range(num_shares), repeat=len(work))
    )
    loads = [sum(work[position] for position in share) for share in balance(work, num_shares)]
    assert 3 * num_shares * max(loads) <= (4 * num_shares - 1) * best


def test_balance_by_hand():
    # Longest first, each to the least loaded: 7 | 5 | 4 -> 4, 3 to the third (7), 2 to the second (7), 1 anywhere.
    assert balance([1, 2, 3, 4, 5, 7], 3) == [[5, 0], [4, 1], [3, 2]]


def test_equal_pieces_alternate():
    assert balance([5, 5, 5, 5], 2) == [[0, 2], [1, 3]]


def test_shares_exchange_pieces_if_longest_first_is_uneven():
    # Longest first: 8, 5, 4 (17) and 7, 6 (13). Half the difference is 2: 8 for 6 makes it 15 and 15.
    assert sorted(map(sorted, balance([8, 7, 6, 5, 4], 2))) == [[0, 1], [2, 3, 4]]


@given(work=WORK, num_shares=st.integers(2, 4))
def test_no_exchange_would_bring_the_extremes_closer(work, num_shares):
    shares = sorted(balance(work, num_shares), key=lambda share: sum(work[at] for at in share))
    light, heavy = shares[0], shares[-1]
    gap = sum(work[at] for at in heavy) - sum(work[at] for at in light)
    for given_away, back in itertools.product(heavy, light):
        assert not 0 < work[given_away] - work[back] < gap
