"""Protocol of the authors' own program (protocol=authors): its cohorts, stragglers and batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError
from fedprox.plan import authors_draws
from fedprox.plan.epoch_batches import KEEP
from fedprox.plan.plan import ClientTask


class AuthorsProtocol:
    """The protocol of litian96/FedProx at commit 3eed82e; a run's seed changes only the initial weights."""

    def check(
        self, num_epochs: int, stragglers_fraction: float, sampling: str = "uniform", last_batch: str = KEEP
    ) -> None:
        """Raise UserError for settings that the authors' program does not have."""
        if num_epochs == 1 and stragglers_fraction > 0:
            raise UserError(
                "protocol=authors needs num_epochs >= 2 if there are stragglers, because a straggler does 1 to "
                f"num_epochs - 1 epochs, got num_epochs=1 with stragglers_fraction={stragglers_fraction}; "
                "use protocol=paper, in which a straggler does part of the epoch, or stragglers_fraction=0"
            )
        for setting, value, theirs in (("sampling", sampling, "uniform"), ("last_batch", last_batch, KEEP)):
            if value != theirs:
                raise UserError(f"protocol=authors does not support {setting}={value}; use it with protocol=paper")

    def plan(
        self,
        *,
        client_sizes: NDArray[np.int64],
        client_ids: Sequence[str],
        clients_per_round: int,
        num_epochs: int,
        batch_size: int,
        stragglers_fraction: float,
        **_: object,
    ) -> "AuthorsPlan":
        """Return the plan of a run.

        Raises:
            UserError: If the clients are not sorted by id: the authors' program draws positions in that order.
        """
        if not client_ids or list(client_ids) != sorted(client_ids):
            raise UserError(
                "protocol=authors needs clients that are sorted by id, which those of this data set are not; "
                "let it return FederatedData with sorted client_ids, or use protocol=paper"
            )
        return AuthorsPlan(client_sizes, clients_per_round, num_epochs, batch_size, stragglers_fraction)


@dataclass(frozen=True)
class AuthorsPlan:
    """The cohorts of a run; see `fedprox.plan.plan.Plan` for the attributes.

    A client's examples stay shuffled from round to round, so a round depends on how often its clients have trained
    before. Asking for a round therefore computes all earlier ones, once.
    """

    client_sizes: NDArray[np.int64]
    clients_per_round: int
    num_epochs: int
    batch_size: int
    stragglers_fraction: float
    drops_stragglers: bool = False
    sampling: str = "uniform"
    _rounds: list[tuple[ClientTask, ...]] = field(default_factory=list, init=False, repr=False, compare=False)
    _epochs_done: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tasks(self, round_num: int) -> tuple[ClientTask, ...]:
        """Return the round's tasks: first those that train, in their order, and then the dropped ones."""
        while len(self._rounds) < round_num:
            tasks = self._next_tasks(round_index=len(self._rounds))
            for task in tasks:
                if not task.is_dropped:
                    self._epochs_done[task.client] = self._epochs_done.get(task.client, 0) + task.num_epochs
            self._rounds.append(tasks)
        return self._rounds[round_num - 1]

    def _next_tasks(self, round_index: int) -> tuple[ClientTask, ...]:
        num_active = round(self.clients_per_round * (1 - self.stragglers_fraction))
        drawn = (len(self.client_sizes), round_index, self.clients_per_round, num_active)
        selected, active = authors_draws.select(*drawn)
        if self.drops_stragglers:
            dropped = [client for client in selected.tolist() if client not in active]
            trained = [self._task(client, self.num_epochs, is_straggler=False) for client in active.tolist()]
            return (*trained, *(self._task(client, 0, is_straggler=True) for client in dropped))
        tasks: list[ClientTask] = []
        for client in selected.tolist():
            epochs = self.num_epochs
            if client not in active and not tasks:
                epochs = authors_draws.first_straggler_epochs(*drawn, self.num_epochs)
            elif client not in active:
                epochs = authors_draws.straggler_epochs_after(int(self.client_sizes[tasks[-1].client]), self.num_epochs)
            tasks.append(self._task(client, epochs, is_straggler=client not in active))
        return tuple(tasks)

    def _task(self, client: int, num_epochs: int, is_straggler: bool) -> ClientTask:
        num_batches = -(-int(self.client_sizes[client]) // self.batch_size)
        return ClientTask(
            client,
            num_epochs,
            num_epochs * num_batches,
            is_straggler,
            batch_key=(),
            epochs_before=self._epochs_done.get(client, 0),
            is_dropped=is_straggler and self.drops_stragglers,
        )
