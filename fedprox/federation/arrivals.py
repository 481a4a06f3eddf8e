"""Late clients on the server: the virtual clock, and the models that clients in flight have started from.

No client is computed before its update arrives: then it trains from the model that it was sent, at the mu and the
learning rate of that time. So only these models must be kept, at most as many as clients train at the same time.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedprox.errors import UserError
from fedprox.federation.messages import TaskMessage, client_of, draw_of
from fedprox.plan.arrivals import Tasks, TimedPlan
from fedprox.plan.plan import ClientTask
from fedprox.strategies.arrays import to_numpy
from fedprox.strategies.updates import Arrays, arrays_of, in_type, replace_arrays

Sent = tuple[ArrayRecord, Mapping[str, Any]]  # the model and the settings of a message


class Arrivals:
    """The virtual clock of a run, and what clients that still train were sent.

    Attributes:
        time_s: Virtual seconds that all rounds so far have taken.
    """

    def __init__(self, plan: TimedPlan, trained: Sequence[str]) -> None:
        """Begin at virtual time 0.

        Args:
            plan: Says how long rounds take, and which clients train meanwhile.
            trained: Names of the trained parameters.
        """
        self.time_s = 0.0
        self._plan, self._trained = plan, trained
        self._sent: dict[int, Sent] = {}  # by the round that made the model; 0: the initial one

    def begin(
        self, round_num: int, arrays: ArrayRecord, settings: Mapping[str, Any], messages: Iterable[TaskMessage]
    ) -> None:
        """Keep what clients that start now are sent, and let the messages of late ones have what those were sent."""
        self._sent[round_num - 1] = (arrays, settings)
        for message in messages:
            if message.task.staleness:
                earlier, its_settings = self._sent[round_num - 1 - message.task.staleness]
                config = ConfigRecord({**its_settings})
                message.records = {**message.records, "arrays": earlier, "config": config}

    def end(self, round_num: int, tasks: Tasks, replies: Sequence[Message]) -> None:
        """End a round: weigh the updates, let its time pass, and forget models from which no client trains any more.

        A reply's w_k becomes w^t + eta s(tau) (w_k - w^{t - tau}), so that the simple mean of all replies is the next
        model. Arrays that are not trained, such as batch norm's running variances, stay as the client has them: a
        sum of differences could be negative.
        """
        of_draw = {(task.client, task.draw): task for task in tasks}
        for reply in replies:
            task = of_draw[client_of(reply), draw_of(reply)]
            if task.staleness or self._plan.weight(task) != 1.0:
                replace_arrays(reply, self._weighted(round_num - 1, task, arrays_of(reply)))
        self.time_s += self._plan.seconds(round_num, tasks)
        in_flight = self._plan.in_flight(round_num)
        self._sent = {model: sent for model, sent in self._sent.items() if model in in_flight}

    def _weighted(self, present: int, task: ClientTask, model: Arrays) -> Arrays:
        now, then = (self._sent[number][0] for number in (present, present - task.staleness))
        weight, made = self._plan.weight(task), dict(model)
        for name in self._trained:
            w, w_start = (to_numpy(arrays[name]).astype(np.float64) for arrays in (now, then))
            made[name] = in_type(w + weight * (model[name].astype(np.float64) - w_start), model[name].dtype)
        return made

    def check_start(self, round_num: int, state: Mapping[str, Any], source: Path) -> None:
        """Raise UserError if a state after a round, of the run in a directory, lacks a model that a client trains."""
        if lacking := sorted(self._plan.in_flight(round_num) - set(state.get("sent", ()))):
            raise UserError(
                f"{source} does not have what clients train that are late in round {round_num}: the models of rounds "
                f"{', '.join(map(str, lacking))}; keep its arrival, devices and seed, or start a new run"
            )

    def state(self) -> dict[str, Any]:
        """Return the time, and what clients in flight were sent."""
        return {"time_s": self.time_s, "sent": {model: list(sent) for model, sent in self._sent.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; that of a run without devices leaves the clock at 0."""
        self.time_s = float(state.get("time_s", 0.0))
        self._sent = {int(model): (arrays, settings) for model, (arrays, settings) in state.get("sent", {}).items()}
