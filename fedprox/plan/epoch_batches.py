"""Division of an epoch's examples into mini-batches, and treatment of a last batch that is short."""

from typing import NamedTuple

KEEP, DROP, MERGE = "keep", "drop", "merge"


class EpochBatches(NamedTuple):
    """The mini-batches of an epoch: consecutive pieces of its order, all of size batch_size except the last.

    Attributes:
        num_batches: Number of batches, >= 1.
        num_taken: Number of examples in all batches together; the others are left out of this epoch.
        batch_size: B, the size of all batches but the last.
    """

    num_batches: int
    num_taken: int
    batch_size: int

    @property
    def last(self) -> int:
        """Size of the last batch."""
        return self.num_taken - (self.num_batches - 1) * self.batch_size

    @property
    def largest(self) -> int:
        """Size of the largest batch."""
        return max(self.last, self.batch_size) if self.num_batches > 1 else self.last

    @property
    def smallest(self) -> int:
        """Size of the smallest batch."""
        return min(self.last, self.batch_size) if self.num_batches > 1 else self.last

    def slices(self) -> list[slice]:
        """Return the slice of the epoch's order for each batch."""
        starts = range(0, self.num_batches * self.batch_size, self.batch_size)
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], self.num_taken], strict=True)]


def epoch_batches(num_examples: int, batch_size: int, last_batch: str = KEEP) -> EpochBatches:
    """Return the batches of an epoch.

    A client with fewer than batch_size examples always has one batch with all of them.

    Args:
        num_examples: n_k, >= 1.
        batch_size: B, >= 1.
        last_batch: Treatment of the n_k mod B examples that do not fill a batch: "keep" makes a short batch of them;
            "drop" leaves them out of this epoch (another epoch leaves out others); "merge" adds them to the previous
            batch, which then has B .. 2 B - 1 examples.

    >>> epoch_batches(23, 10, "keep"), epoch_batches(23, 10, "drop").num_taken, epoch_batches(23, 10, "merge").last
    (EpochBatches(num_batches=3, num_taken=23, batch_size=10), 20, 13)
    """
    if last_batch == KEEP:
        return EpochBatches(-(-num_examples // batch_size), num_examples, batch_size)
    num_batches = max(1, num_examples // batch_size)
    num_taken = num_examples if last_batch == MERGE else min(num_examples, num_batches * batch_size)
    return EpochBatches(num_batches, num_taken, batch_size)
