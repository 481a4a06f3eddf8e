"""The way of updates from the clients to the server: where attackers change what they send.

The channel is a pure function of (settings, seed, round, client, w^t, w_k), so it is the same on every engine and
behind every solver. It works on updates u_k = w_k - w^t of the trained parameters in float64, one client after another;
other arrays, such as batch norm's running statistics, pass unchanged, and so does every update that nothing changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType

from fedprox.channel.attacks import Attack, Cohort, Mask, Vector
from fedprox.federation.messages import Exchange, client_of, draw_of, record_of
from fedprox.seeds import Stream, generator
from fedprox.strategies.arrays import to_numpy
from fedprox.strategies.averaging import in_type
from fedprox.strategies.updates import Arrays, arrays_of, replace_arrays


@dataclass(frozen=True)
class Channel:
    """What happens to updates between the clients and the strategy.

    Attributes:
        names: The trained parameters.
        attack: What hostile clients send; None if nobody attacks.
        is_malicious: Which clients attack, shape (num_clients,); None if nobody does.
        seed: The run's.
        repetition: See `fedprox.seeds.generator`.
    """

    names: Sequence[str] = ()
    attack: Attack | None = None
    is_malicious: Mask | None = None
    seed: int = 0
    repetition: int = 0

    def between(self, engine: Exchange, round_num: int) -> Exchange:
        """Return an engine for one round whose replies have passed this channel."""
        return Passing(self, engine, round_num) if self.attack and self.attack.changes_updates else engine

    def attacks(self, client: int) -> bool | None:
        """Return whether a client attacks; None if no client can."""
        return None if self.is_malicious is None else bool(self.is_malicious[client])

    def transmit(self, round_num: int, arrays: ArrayRecord, replies: Sequence[Message]) -> None:
        """Let the replies to train messages with the model w^t arrive as the channel delivers them."""
        assert self.attack
        attackers = [reply for reply in replies if self.attacks(client_of(reply))]
        if not attackers:
            return
        start = self._flat({name: to_numpy(array) for name, array in arrays.items()})
        honest = [reply for reply in replies if reply not in attackers]

        def update(reply: Message) -> Vector:
            return self._flat(arrays_of(reply)) - start

        mean = std = start[:0]
        if self.attack.watches_others:
            mean, std = moments(lambda position: update((honest or attackers)[position]), len(honest or attackers))
        cohort = Cohort(len(replies), len(attackers), mean, std)
        forged = [self.attack.forge(update(reply), cohort, self._rng(round_num, reply)) for reply in attackers]
        for reply, sent in zip(attackers, forged, strict=True):
            replace_arrays(reply, self._with(arrays_of(reply), start + sent))

    def _rng(self, round_num: int, reply: Message) -> np.random.Generator:
        ids = (round_num, client_of(reply), draw_of(reply))
        return generator(self.seed, Stream.ATTACK, *ids, repetition=self.repetition)

    def _flat(self, model: Arrays) -> Vector:
        return np.concatenate([np.asarray(model[name], dtype=np.float64).ravel() for name in self.names])

    def _with(self, model: Arrays, values: Vector) -> Arrays:
        """Return a model with other values of the trained parameters."""
        made, at = dict(model), 0
        for name in self.names:
            array = model[name]
            made[name] = in_type(values[at : at + array.size].reshape(array.shape), array.dtype)
            at += array.size
        return made


def moments(update: Callable[[int], Vector], num: int) -> tuple[Vector, Vector]:
    """Return mean and standard deviation (ddof = 1; 0 for one) by coordinate of updates that are computed one by one.

    Args:
        update: Returns an update by its position, shape (d,).
        num: How many there are, >= 1.
    """
    mean: Vector = sum(map(update, range(1, num)), update(0)) / num
    squares: Vector = sum((np.square(update(position) - mean) for position in range(num)), np.zeros_like(mean))
    return mean, np.sqrt(squares / max(1, num - 1))


class Passing:
    """An engine for one round behind a channel."""

    def __init__(self, channel: Channel, engine: Exchange, round_num: int) -> None:
        """Put the channel between the engine and the strategy."""
        self._channel, self._engine, self._round_num = channel, engine, round_num

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies as they arrive; queries such as FedDANE's for gradients pass unchanged."""
        messages = list(messages)
        replies = self._engine.send_and_receive(messages, timeout=timeout)
        if messages and messages[0].metadata.message_type == MessageType.TRAIN:
            arrays = record_of(messages[0], "arrays")
            assert isinstance(arrays, ArrayRecord)
            self._channel.transmit(self._round_num, arrays, replies)
        return replies
