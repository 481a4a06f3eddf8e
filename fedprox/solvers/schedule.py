"""The batches of all clients of a cohort, laid out step by step before the first step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedprox.data.augmentation import Shifts
from fedprox.plan.epoch_batches import EpochBatches
from fedprox.solvers.dropout import dropout_keys, first_key
from fedprox.solvers.problem import LocalProblem

Integers = NDArray[np.int64]
Number = TypeVar("Number", bound=np.number[Any])


@dataclass(frozen=True)
class ClientBatches:
    """The batches of one client.

    Attributes:
        positions: Positions among its examples, shape (steps, width); batches shorter than the longest are padded with
            their first example.
        sizes: Number of positions that count, shape (steps,).
        shifts: Augmentation of each position, shape (steps, width, 3); None for none.
        first_key: See `fedprox.solvers.dropout`.
        factors: Factor of its epoch on the learning rate of each step, shape (steps,); None for 1.
    """

    positions: Integers
    sizes: Integers
    shifts: Shifts | None
    first_key: np.uint32
    factors: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, problem: LocalProblem, epoch: EpochBatches) -> Self:
        """Return the batches of a problem, given the division of an epoch of its examples."""
        work, (columns, sizes) = problem.work, _columns(epoch)
        orders = work.orders if isinstance(work.orders, np.ndarray) else np.array(list(work.orders))
        positions = orders.reshape(len(orders), problem.num_examples)[:, columns].reshape(-1, columns.shape[1])
        positions = positions[: work.num_steps].astype(np.int64, copy=False)
        shifts = None
        if work.shifts is not None:
            of_step = np.arange(len(positions)) // epoch.num_batches
            shifts = work.shifts[of_step[:, None], positions]
        factors = None
        if work.epoch_factors:
            factors = np.repeat(np.array(work.epoch_factors), epoch.num_batches)[: len(positions)]
        return cls(positions, np.tile(sizes, len(orders))[: work.num_steps], shifts, first_key(work.seed), factors)


@lru_cache(maxsize=1024)
def _columns(epoch: EpochBatches) -> tuple[Integers, Integers]:
    """Return which examples of an epoch's order are in each batch, shape (batches, width), and the batches' sizes."""
    starts = np.arange(epoch.num_batches) * epoch.batch_size
    ends = np.append(starts[1:], epoch.num_taken)
    columns = starts[:, None] + np.arange(epoch.largest)
    return np.where(columns < ends[:, None], columns, starts[:, None]), ends - starts


@dataclass(frozen=True)
class Schedule:
    """The examples of every step of every client: one row for each, sorted by step and then by client.

    Attributes:
        positions: Positions in the examples of all clients, shape (rows, width); short batches are padded with one of
            their examples.
        sizes: Number of positions that count, shape (rows,).
        shifts: Augmentation of each position, shape (rows, width, 3); None for none.
        keys: Key of each dropout layer, shape (rows, layers).
        num_steps: Steps of each client, in descending order, shape (clients,).
        num_seen: Examples that each client processes, shape (clients,).
        factors: Factors on the learning rate, shape (rows,): clients of unequal size end their epochs at unequal steps.
            None for 1.
    """

    positions: Integers
    sizes: Integers
    shifts: Shifts | None
    keys: NDArray[np.int32]
    num_steps: list[int]
    num_seen: list[int]
    factors: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls, clients: Sequence[ClientBatches], places: Sequence[Integers], width: int = 0, num_dropouts: int = 0
    ) -> Self:
        """Return the schedule of clients, of which those with the most steps come first.

        Args:
            clients: Their batches.
            places: Place of each client's examples among those of all clients.
            width: Smallest width of a row; rows of narrower batches are padded.
            num_dropouts: Number of the model's dropout layers.
        """
        num_steps = [len(client.sizes) for client in clients]
        width = max(width, *(client.positions.shape[1] for client in clients))
        steps = np.concatenate([np.arange(each) for each in num_steps])
        by_step = np.argsort(steps, kind="stable")

        def laid_out(parts: list[NDArray[Number]]) -> NDArray[Number]:
            return np.concatenate(parts)[by_step]

        def padded(rows: NDArray[Number]) -> NDArray[Number]:
            more = (0, width - rows.shape[1])
            return np.pad(rows, ((0, 0), more, (0, 0))[: rows.ndim], mode="edge") if more[1] else rows

        shifts = [padded(client.shifts) for client in clients if client.shifts is not None]
        factors = [client.factors for client in clients if client.factors is not None]
        first_keys = np.repeat(np.array([client.first_key for client in clients], np.uint32), num_steps)
        return cls(
            laid_out([padded(place[each.positions]) for each, place in zip(clients, places, strict=True)]),
            laid_out([client.sizes for client in clients]),
            laid_out(shifts) if shifts else None,
            dropout_keys(first_keys[by_step], steps[by_step], num_dropouts),
            num_steps,
            [int(client.sizes.sum()) for client in clients],
            laid_out(factors) if factors else None,
        )

    def phases(self) -> Iterator[tuple[int, list[slice]]]:
        """Yield the number of clients at work and the rows of each step, for each period between two clients' ends."""
        row = done = 0
        for active in range(len(self.num_steps), 0, -1):
            finished = self.num_steps[active - 1]
            end = row + active * (finished - done)
            yield active, [slice(at, at + active) for at in range(row, end, active)]
            row, done = end, finished
