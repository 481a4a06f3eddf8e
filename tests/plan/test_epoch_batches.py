"""Treatment of an epoch's last, short batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.plan.epoch_batches import DROP, KEEP, MERGE, epoch_batches


def sizes(num_examples: int, batch_size: int, last_batch: str) -> list[int]:
    pieces = epoch_batches(num_examples, batch_size, last_batch).slices()
    return [piece.stop - piece.start for piece in pieces]


@pytest.mark.parametrize(
    ("num_examples", "kept", "dropped", "merged"),
    [
        (1, [1], [1], [1]),  # fewer than a batch: always one batch of all of them
        (3, [3], [3], [3]),
        (4, [4], [4], [4]),
        (5, [4, 1], [4], [5]),
        (7, [4, 3], [4], [7]),
        (8, [4, 4], [4, 4], [4, 4]),
        (11, [4, 4, 3], [4, 4], [4, 7]),
    ],
)
def test_a_short_last_batch_is_kept_dropped_or_merged(num_examples, kept, dropped, merged):
    found = {last_batch: sizes(num_examples, 4, last_batch) for last_batch in (KEEP, DROP, MERGE)}
    assert found == {KEEP: kept, DROP: dropped, MERGE: merged}


@given(num_examples=st.integers(1, 500), batch_size=st.integers(1, 60), last_batch=st.sampled_from([KEEP, DROP, MERGE]))
def test_batches_are_consecutive_pieces_and_only_drop_leaves_examples_out(num_examples, batch_size, last_batch):
    epoch = epoch_batches(num_examples, batch_size, last_batch)
    pieces, found = epoch.slices(), sizes(num_examples, batch_size, last_batch)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert (len(found), sum(found)) == (epoch.num_batches, epoch.num_taken)
    assert (min(found), max(found), found[-1]) == (epoch.smallest, epoch.largest, epoch.last)
    assert all(size == batch_size for size in found[:-1])
    left_out = num_examples - epoch.num_taken
    assert left_out == (num_examples % batch_size if last_batch == DROP and num_examples >= batch_size else 0)
    if last_batch != KEEP and num_examples >= batch_size:
        assert batch_size <= epoch.last < 2 * batch_size
        assert last_batch == MERGE or epoch.last == batch_size
