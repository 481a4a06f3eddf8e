"""What clients keep from round to round: parts of the model that are their own, personal models, or velocities.

Simulated clients keep nothing between rounds, so the server holds it: a client's message carries its own arrays, and
they come back with its reply. Only clients that have trained have any, and they are part of the checkpoint.

Batch norm's running means and variances are buffers of the state dict. By default they are averaged like any other
array: the strategy averages them, weighted by n_k, and every client continues from the average. Kept local, each client
continues from its own last statistics, as in SiloBN (Andreux et al. 2020); batch norm's scale and shift are still
averaged, unlike in FedBN (Li et al. 2021), which keeps those local too. The global model, which is evaluated and saved,
has the average of the cohort's statistics in both cases.

Batch norm normalises by the batch during training, so no training step reads running statistics. They matter when a
model is in evaluation mode: in tests, in gamma and in FedDANE's gradients. Local statistics therefore suit clients
that take part often: after few steps they are still near the initial 0 and 1, and so is their average. A strategy
that does not average, such as FedAdam, treats statistics like weights with either setting.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar

import numpy as np
from flwr.app import ArrayRecord, Message

from fedprox.errors import RunStopped
from fedprox.federation.messages import client_of
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.updates import Arrays, arrays_of, replace_arrays, take_personal

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of torch's batch norm, and of instance norm


class ClientState:
    """Arrays that each client keeps.

    Attributes:
        record: Name of the record in which a client's message carries them.
        initial: What a client has before it has trained.
        unshared: Names of the global model's arrays that no client sends, so the server's never change.
    """

    record: ClassVar[str]
    unshared: Collection[str] = ()

    def __init__(self, initial: ArrayRecord) -> None:
        """Let every client start with these."""
        self.initial = initial
        self._own: dict[int, ArrayRecord] = {}

    def of(self, client: int) -> ArrayRecord:
        """Return a client's arrays after the last round in which it trained."""
        return self._own.get(client, self.initial)

    def state(self) -> dict[int, ArrayRecord]:
        """Return the arrays of all clients that have trained."""
        return dict(self._own)

    def restore(self, state: Mapping[int, ArrayRecord]) -> None:
        """Continue from a state."""
        self._own = dict(state)

    def keep(self, round_num: int, replies: Iterable[Message], arrays: ArrayRecord) -> None:
        """Keep the arrays of the clients that have trained; the last draw's if a client was drawn twice.

        Args:
            round_num: The round.
            replies: To train messages; what the strategy must not see is taken out of them.
            arrays: w^t.
        """
        raise NotImplementedError


class LocalArrays(ClientState):
    """Parts of the model that each client continues from: its own statistics, or parameters that never leave it."""

    record = "local"

    def __init__(self, arrays: ArrayRecord, statistics: Collection[str] = (), unshared: Collection[str] = ()) -> None:
        """Let every client start with the initial model's.

        Args:
            arrays: The initial model.
            statistics: Names of arrays that are averaged, too.
            unshared: Names of arrays that are not.
        """
        super().__init__(ArrayRecord({name: arrays[name] for name in statistics if name not in unshared}))
        self.unshared = unshared
        self._names = list(dict.fromkeys((*statistics, *unshared)))

    def keep(self, round_num: int, replies: Iterable[Message], arrays: ArrayRecord) -> None:
        """Keep each client's arrays; those that are not shared become the server's in the replies."""
        servers = {name: to_numpy(arrays[name]) for name in self.unshared}
        for reply in replies:
            if reply.has_content():
                model = arrays_of(reply)
                self._own[client_of(reply)] = to_record({name: model[name] for name in self._names})
                if servers:
                    replace_arrays(reply, {**model, **servers})


class PersonalModels(ClientState):
    """A whole model of each client's own, beside the one that it sends."""

    record, what = "personal", "personal model"

    def __init__(self, arrays: ArrayRecord, on_divergence: str = "stop") -> None:
        """Let every client start with the same.

        Args:
            arrays: The initial model.
            on_divergence: What to do about one that is nan or infinite: "stop"; "drop", so that the client keeps its
                last one; or "continue".
        """
        super().__init__(arrays)
        self._on_divergence = on_divergence

    def keep(self, round_num: int, replies: Iterable[Message], arrays: ArrayRecord) -> None:
        """Take what the clients keep out of their replies.

        Raises:
            RunStopped: If one is not finite and the policy is "stop".
        """
        for reply in replies:
            model = take_personal(reply)
            if self._on_divergence == "continue" or _is_finite(model):
                self._own[client_of(reply)] = to_record(model)
            elif self._on_divergence == "stop":
                raise RunStopped(
                    f"round {round_num}: the {self.what} of client {client_of(reply)} is nan or infinite; lower "
                    "learning_rate, or set on_divergence=drop or continue",
                    "diverged",
                )


class Velocities(PersonalModels):
    """Each client's velocity of SGD with momentum, with which its next round begins."""

    record, what = "velocity", "velocity"

    def __init__(self, arrays: ArrayRecord, trained: Collection[str], on_divergence: str = "stop") -> None:
        """Let every client start with zeros.

        Args:
            arrays: The initial model.
            trained: Names of the parameters that are trained.
            on_divergence: See `PersonalModels`.
        """
        zeros = {name: np.zeros_like(to_numpy(arrays[name])) for name in trained}
        super().__init__(to_record(zeros), on_divergence)


def statistics_of(arrays: ArrayRecord) -> list[str]:
    """Return the names of a model's running statistics."""
    return [name for name in arrays if name.rpartition(".")[2] in _STATISTICS]


def _is_finite(model: Arrays) -> bool:
    return all(np.isfinite(array).all() for array in model.values() if array.dtype.kind == "f")
