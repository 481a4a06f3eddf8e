"""The way of updates from the clients to the server: attacks, compression, and the bytes that travel.

The order is fixed: an honest update, or what an attacker sends instead; plus what the client's earlier updates lost
(error feedback); the codec; the bytes, counted here; and what the server unpacks. With secure aggregation the server
gets only the sum of what clients have masked, see `fedprox.federation.secure_sums`.

The channel is a pure function of (settings, seed, round, client, w^t, w_k), so it is the same on every engine and
behind every solver. It works on updates u_k = w_k - w^t of the trained parameters in float64, one client after another;
other arrays, such as batch norm's running statistics, pass unchanged, and so does every update that nothing changes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType
from torch import nn

from fedprox.channel.attacks import Attack, Cohort, Mask, Vector
from fedprox.channel.codecs import Codec
from fedprox.federation.contribution import Contribution
from fedprox.federation.messages import Exchange, client_of, draw_of, record_of, task_of
from fedprox.federation.secure_sums import Draw, SecureSums
from fedprox.seeds import Stream, generator
from fedprox.strategies.arrays import to_numpy
from fedprox.strategies.updates import Arrays, arrays_of, flat, metrics_of, replace_arrays, with_values


@dataclass(frozen=True)
class Layout:
    """Which arrays of a model travel from a client.

    Attributes:
        trained: The trained parameters.
        buffers: Arrays that are not parameters, such as batch norm's running statistics.
        local: Those of both that never leave their client.
    """

    trained: Sequence[str]
    buffers: Sequence[str]
    local: Collection[str] = ()

    @classmethod
    def of(cls, model: nn.Module, local: Collection[str] = ()) -> Self:
        """Return the layout of a model; its frozen parameters need not travel."""
        trained = [name for name, own in model.named_parameters() if own.requires_grad]
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return cls(trained, [name for name in model.state_dict() if name not in parameters], local)

    @classmethod
    def unknown(cls, arrays: ArrayRecord) -> Self:
        """Return the layout of a model that only a script knows: floating-point arrays count as trained."""
        trained = [name for name, array in arrays.items() if np.dtype(array.dtype).kind == "f"]
        return cls(trained, [name for name in arrays if name not in trained])


@dataclass
class Channel:
    """What happens to updates between the clients and the strategy.

    Attributes:
        names: The parameters that travel.
        kept: Trained parameters that do not, and stay at the server's values.
        buffers: The other arrays that travel, as they are.
        local: Arrays that never leave their client.
        codec: How an update is compressed; None if bytes are not counted.
        feeds_back: Whether a client adds to an update what its earlier ones lost by compression.
        attack: What hostile clients send; None if nobody attacks.
        is_malicious: Which clients attack, shape (num_clients,); None if nobody does.
        contribution: Measures what the updates that arrive are worth; None if nobody asks.
        secure: How the server gets the mean of the updates without a single one; None if it gets them all.
        more_bytes: Bytes that travel besides a model and an update, each way: SCAFFOLD's control variates.
        seed: The run's.
        repetition: See `fedprox.seeds.generator`.
        bytes_up: Bytes that the clients of the last round have sent, by client and draw.
        totals: Bytes that clients have sent and that were sent to them, in all rounds so far.
    """

    names: Sequence[str] = ()
    kept: Sequence[str] = ()
    buffers: Sequence[str] = ()
    local: Collection[str] = ()
    codec: Codec | None = None
    feeds_back: bool = False
    attack: Attack | None = None
    is_malicious: Mask | None = None
    contribution: Contribution | None = None
    secure: SecureSums | None = None
    more_bytes: int = 0
    seed: int = 0
    repetition: int = 0
    bytes_up: dict[Draw, int] = field(default_factory=dict)
    totals: tuple[int, int] = (0, 0)
    _lost: dict[int, Vector] = field(default_factory=dict)  # by client that has trained

    def state(self) -> dict[str, Any]:
        """Return what later rounds need: the bytes so far, and what each client's updates have lost."""
        return {"totals": list(self.totals), "lost": dict(self._lost)} if self.codec else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._lost = dict(state.get("lost", {}))
        up, down = state.get("totals", (0, 0))
        self.totals = (int(up), int(down))

    def between(self, engine: Exchange, round_num: int) -> Exchange:
        """Return an engine for one round whose replies have passed this channel."""
        is_idle = not (self._forges or self.codec or self.kept or self.contribution or self.secure)
        return engine if is_idle else Passing(self, engine, round_num)

    @property
    def _forges(self) -> bool:
        return self.attack is not None and self.attack.changes_updates

    def attacks(self, client: int) -> bool | None:
        """Return whether a client attacks; None if no client can."""
        return None if self.is_malicious is None else bool(self.is_malicious[client])

    def transmit(self, round_num: int, messages: Sequence[Message], replies: Sequence[Message]) -> None:
        """Let the replies to train messages, each with the model w^t, arrive as the channel delivers them."""
        starts = self._starts(messages)
        forged = self._forged(round_num, starts, replies)
        self.bytes_up = {}
        for reply in replies:
            draw, model = _draw(reply), arrays_of(reply)
            before, start = starts[draw]
            sent = forged.get(draw)
            if self.codec:
                update = self._flat(model) - start if sent is None else sent
                arrived, num_bytes = self._compressed(update, draw, self._rng(Stream.COMPRESSION, round_num, draw))
                self.bytes_up[draw] = num_bytes + sum(model[name].nbytes for name in self.buffers) + self.more_bytes
                sent = sent if self.codec.is_exact else arrived
            if sent is not None:
                model = with_values(model, self.names, start + sent)
            if sent is not None or self.kept:
                replace_arrays(reply, {**model, **{name: before[name] for name in self.kept}})

    def _starts(self, messages: Sequence[Message]) -> dict[Draw, "_Start"]:
        """Return the model that each client was sent, which an earlier round made if the client is late."""
        read: dict[int, _Start] = {}  # by the record, which most messages share
        starts = {}
        for message in messages:
            task, arrays = task_of(message), _model(message)
            if id(arrays) not in read:
                before = {name: to_numpy(array) for name, array in arrays.items()}
                read[id(arrays)] = _Start(before, self._flat(before))
            starts[task.client, task.draw] = read[id(arrays)]
        return starts

    def _forged(
        self, round_num: int, starts: Mapping[Draw, "_Start"], replies: Sequence[Message]
    ) -> dict[Draw, Vector]:
        """Return what attackers send instead of their updates."""
        attackers = [reply for reply in replies if self._forges and self.attacks(client_of(reply))]
        if not attackers or not self.attack:
            return {}
        honest = [reply for reply in replies if reply not in attackers]

        def update(reply: Message) -> Vector:
            return self._flat(arrays_of(reply)) - starts[_draw(reply)].values

        mean = std = np.zeros(0)
        if self.attack.watches_others:
            mean, std = moments(lambda position: update((honest or attackers)[position]), len(honest or attackers))
        cohort = Cohort(len(replies), len(attackers), mean, std)
        return {
            draw: self.attack.forge(update(reply), cohort, self._rng(Stream.ATTACK, round_num, draw))
            for reply in attackers
            for draw in [_draw(reply)]
        }

    def _compressed(self, update: Vector, draw: Draw, rng: np.random.Generator) -> tuple[Vector, int]:
        """Return the update as the server unpacks it, and the bytes that travelled."""
        assert self.codec
        client, _ = draw
        if self.feeds_back and client in self._lost:
            update = update + self._lost[client]
        data = self.codec.packed(update, rng)
        arrived = self.codec.unpacked(data, len(update))
        if self.feeds_back:
            self._lost[client] = update - arrived
        return arrived, len(data)

    def bytes_of_a_round_trip(self, arrays: ArrayRecord) -> int:
        """Return the bytes of a model that a client receives and of the update that it sends, whatever its values."""
        model = {name: to_numpy(array) for name, array in arrays.items()}
        size = sum(array.nbytes for array in model.values()) + self.more_bytes
        if not self.codec:
            return 2 * size
        update = self.codec.packed(np.zeros_like(self._flat(model)), np.random.default_rng(0))
        return size + len(update) + sum(model[name].nbytes for name in self.buffers) + self.more_bytes

    def aggregated(self, round_num: int, arrays: ArrayRecord, replies: Sequence[Message]) -> list[Message]:
        """Return the replies that a secure sum contains, each with the model w^t + mean update; none if it is lost.

        So a strategy that averages gets the average, and none gets a single update.
        """
        assert self.secure
        before = {name: to_numpy(array) for name, array in arrays.items()}
        start = self._flat(before)
        delivering = self.secure.delivering(round_num, list(map(_draw, replies)))
        delivered = [reply for reply in replies if _draw(reply) in delivering]
        if self.codec:
            self.bytes_up, more_down = self.secure.bytes_of(round_num, delivering, len(start))
            self.totals = (self.totals[0], self.totals[1] + more_down)
        if delivered:
            updates = {_draw(reply): (self._flat(arrays_of(reply)) - start, self._weight(reply)) for reply in delivered}
            model = with_values(before, self.names, start + self.secure.mean(round_num, updates))
            for reply in delivered:
                own = {name: arrays_of(reply)[name] for name in self.local}  # which never leaves the client
                replace_arrays(reply, {**model, **own})
        return delivered

    def _weight(self, reply: Message) -> int:
        assert self.secure
        return int(metrics_of(reply)["num-examples"]) if self.secure.weighs_examples else 1

    def count(self, arrays: ArrayRecord, num_asked: int) -> None:
        """Add the bytes of a round, in which the server has sent all that is shared to each client that it asked."""
        model = sum(to_numpy(array).nbytes for name, array in arrays.items() if name not in self.local)
        up, down = self.totals
        self.totals = (up + sum(self.bytes_up.values()), down + num_asked * (model + self.more_bytes))

    def _rng(self, stream: Stream, round_num: int, draw: Draw) -> np.random.Generator:
        return generator(self.seed, stream, round_num, *draw, repetition=self.repetition)

    def _flat(self, model: Arrays) -> Vector:
        return flat(model, self.names)


def _draw(reply: Message) -> Draw:
    return client_of(reply), draw_of(reply)


def _model(message: Message) -> ArrayRecord:
    arrays = record_of(message, "arrays")
    assert isinstance(arrays, ArrayRecord)
    return arrays


class _Start(NamedTuple):
    """The model at which a client starts, and the values of its trained parameters that travel."""

    arrays: Arrays
    values: Vector


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
            arrays = _model(messages[0])
            self._channel.transmit(self._round_num, messages, replies)
            if self._channel.contribution:
                self._channel.contribution.measure(self._round_num, arrays, replies)
            if self._channel.secure:
                replies = self._channel.aggregated(self._round_num, arrays, replies)
            self._channel.count(arrays, len(messages))
        return replies
