"""Everything random in a round, fixed beforehand: cohort, stragglers, local work, batch order.

A plan is a pure function of (settings, seed, round). So FedAvg and FedProx see the same clients, stragglers and
batches, every engine gives the same numbers, and a longer run starts like a shorter one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedprox.data.augmentation import PadCropFlip, Shifts
from fedprox.plan import authors_draws
from fedprox.plan.epoch_batches import KEEP, epoch_batches
from fedprox.seeds import Stream, generator


@dataclass(frozen=True)
class ClientTask:
    """The work of one client in one round.

    Attributes:
        client: Number of the client, 0 .. num_clients - 1.
        num_epochs: Passes over its examples; the last one may be partial.
        num_steps: Mini-batch steps in all, at most num_epochs times the batches of an epoch.
        is_straggler: Whether it has time for only a part of the full work.
        batch_key: (seed, repetition, round_num, client), with `draw` appended if that is not 0; determines the order
            of examples. Empty if `epochs_before` determines it, as in the authors' program.
        epochs_before: Epochs that the client has done in earlier rounds, if its order depends on them.
        is_dropped: Whether it is left out because it is a straggler; then nothing is computed.
        draw: How often the client was drawn before in this round; always 0 with sampling=uniform, unless updates are
            buffered and a fast client sends several.
        staleness: tau, how many models the server has made since the one at which the client starts; 0 unless updates
            are buffered.
    """

    client: int
    num_epochs: int
    num_steps: int
    is_straggler: bool
    batch_key: tuple[int, ...]
    epochs_before: int = 0
    is_dropped: bool = False
    draw: int = 0
    staleness: int = 0


class CohortPlan(Protocol):
    """The cohorts of a run: a pure function of settings, seed and round."""

    @property
    def client_sizes(self) -> NDArray[np.int64]:
        """Number of training examples of each client (n_k), shape (num_clients,)."""

    @property
    def drops_stragglers(self) -> bool:
        """Whether stragglers are left out."""

    @property
    def sampling(self) -> str:
        """One of "uniform", "proportional" to n_k, and "poisson"; see `Plan`."""

    def tasks(self, round_num: int) -> tuple[ClientTask, ...]:
        """Return the round's tasks in the order of aggregation, dropped ones included."""


class WorkModel(Protocol):
    """Choice of stragglers, and of the work that a straggler does."""

    def stragglers(self, rng: np.random.Generator, size: int, fraction: float) -> NDArray[np.bool_]:
        """Return which of the `size` clients of a cohort are stragglers, shape (size,)."""

    def straggler_epochs(self, rng: np.random.Generator, num_epochs: int) -> int:
        """Return how many of num_epochs >= 2 epochs a straggler does."""


@dataclass(frozen=True)
class Plan:
    """The cohorts of a run.

    Attributes:
        client_sizes: Number of training examples of each client (n_k), shape (num_clients,).
        clients_per_round: K, the size of a cohort.
        num_epochs: E, the full local work in epochs.
        batch_size: B, in examples.
        stragglers_fraction: Expected or exact share of stragglers in a cohort, 0 .. 1.
        protocol: Choice of the stragglers and of their work.
        seed: The run's seed.
        repetition: Number of the repetition of the run, 0 for the first.
        sampling: "uniform": K distinct clients, all equally likely. "proportional": K independent draws, client k with
            probability p_k = n_k / n, so that a client may be drawn several times (Li et al. 2020, algorithm 2 and
            app. A.1: the expected simple mean over the draws is then sum p_k w_k). Each draw is a separate
            task with its own straggler status, work and batch order. "poisson": each client independently with
            probability K / num_clients, in the order of their numbers, so that a cohort may have any size.
        drops_stragglers: Whether stragglers are left out.
        last_batch: Treatment of an epoch's last, short batch; see `fedprox.plan.epoch_batches`.

    Examples:
        A plan knows no mu and no strategy, so FedAvg and FedProx see the same clients with the same work.

        >>> from fedprox.plan.protocols import PaperProtocol
        >>> settings = {"num_epochs": 5, "batch_size": 10, "stragglers_fraction": 0.5, "seed": 0}
        >>> plan = Plan(np.array([30, 20, 10, 40]), clients_per_round=2, protocol=PaperProtocol(), **settings)
        >>> [(task.client, task.num_steps, task.is_straggler) for task in plan.tasks(round_num=1)]
        [(1, 10, True), (0, 15, False)]
    """

    client_sizes: NDArray[np.int64]
    clients_per_round: int
    num_epochs: int
    batch_size: int
    stragglers_fraction: float
    protocol: WorkModel
    seed: int
    repetition: int = 0
    sampling: str = "uniform"
    drops_stragglers: bool = False
    last_batch: str = KEEP

    def tasks(self, round_num: int) -> tuple[ClientTask, ...]:
        """Return the round's tasks, one per draw of a client, in the order of aggregation."""
        cohort = self._cohort(Stream.COHORT, round_num)
        straggler_rng = self._rng(Stream.STRAGGLERS, round_num)
        is_straggler = self.protocol.stragglers(straggler_rng, len(cohort), self.stragglers_fraction)
        return tuple(
            self._task(round_num, client, draw, bool(straggles))
            for (client, draw), straggles in zip(numbered(cohort.tolist()), is_straggler, strict=True)
        )

    def gradient_clients(self, round_num: int) -> tuple[int, ...]:
        """Return a second cohort, sampled like the first and independent of it (FedDANE)."""
        return tuple(self._cohort(Stream.GRADIENTS, round_num).tolist())

    def _cohort(self, stream: Stream, round_num: int) -> NDArray[np.int64]:
        rng, num_clients = self._rng(stream, round_num), len(self.client_sizes)
        if self.sampling == "proportional":  # with replacement; without it, large clients would get less than p_k
            return rng.choice(num_clients, self.clients_per_round, p=self.client_sizes / self.client_sizes.sum())
        if self.sampling == "poisson":
            return np.flatnonzero(rng.random(num_clients) < self.clients_per_round / num_clients)
        return rng.choice(num_clients, self.clients_per_round, replace=False)

    def _task(self, round_num: int, client: int, draw: int, is_straggler: bool) -> ClientTask:
        num_batches = epoch_batches(int(self.client_sizes[client]), self.batch_size, self.last_batch).num_batches
        num_steps = self.num_epochs * num_batches
        ids = (round_num, client, draw) if draw else (round_num, client)
        if is_straggler:  # drawn from the client's own stream: its work is the same at every stragglers_fraction
            rng = self._rng(Stream.STRAGGLERS, *ids)
            if self.num_epochs == 1:  # partial work is then part of the epoch, 1 .. num_batches steps
                num_steps = int(rng.integers(1, num_batches, endpoint=True))
            else:
                num_steps = self.protocol.straggler_epochs(rng, self.num_epochs) * num_batches
        return ClientTask(
            client,
            -(-num_steps // num_batches),
            num_steps,
            is_straggler,
            batch_key=(self.seed, self.repetition, *ids),
            is_dropped=is_straggler and self.drops_stragglers,
            draw=draw,
        )

    def _rng(self, stream: Stream, *ids: int) -> np.random.Generator:
        return generator(self.seed, stream, *ids, repetition=self.repetition)


def numbered(clients: Iterable[int]) -> list[tuple[int, int]]:
    """Return each client with the number of its earlier occurrences.

    >>> numbered([7, 2, 7])
    [(7, 0), (2, 0), (7, 1)]
    """
    seen = Counter[int]()
    pairs = []
    for client in clients:
        pairs.append((client, seen[client]))
        seen[client] += 1
    return pairs


def epoch_orders(task: ClientTask, num_examples: int) -> NDArray[np.int64]:
    """Return each epoch's order of a client's examples: permutations of 0 .. num_examples - 1 as rows.

    Batches are consecutive pieces of a row; see `fedprox.plan.epoch_batches`.
    """
    if not task.batch_key:
        return authors_draws.epoch_orders(num_examples, task.epochs_before, task.num_epochs)
    rng = _of_task(task, Stream.BATCHES)
    # Draws the same as rng.permutation(num_examples), once per epoch
    return rng.permuted(np.tile(np.arange(num_examples), (task.num_epochs, 1)), axis=1)


def epoch_shifts(task: ClientTask, num_examples: int, augmentation: PadCropFlip) -> Shifts:
    """Return the augmentation of a client's images in each epoch, shape (num_epochs, num_examples, 3)."""
    return augmentation.draw(_of_task(task, Stream.AUGMENTATION), task.num_epochs, num_examples)


def _of_task(task: ClientTask, stream: Stream) -> np.random.Generator:
    seed, repetition, *ids = task.batch_key or (0, 0, task.epochs_before, task.client)
    return generator(seed, stream, *ids, repetition=repetition)
