"""Results of a round: the model, its measurements, and the outcome of each client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message

from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.channel import Channel
from fedprox.federation.messages import client_of, draw_of
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.plan.plan import ClientTask
from fedprox.strategies.updates import Metrics, metrics_of


@dataclass(frozen=True)
class ClientOutcome:
    """What one client of a cohort did in a round; a client that was drawn twice has two of these.

    Attributes:
        task: The planned work.
        num_examples: n_k; None if only the client knows it and was dropped.
        num_steps: Mini-batch steps done; 0 if the client was dropped.
        train_loss: Mean cross-entropy over the examples as they were processed; None if the client was dropped.
        counted: Whether its model is part of the average.
        gamma: How inexactly it solved its problem (Definition 2), if measured.
        drift: ||w_k - w^t|| over the trained parameters; None if the client was dropped or does not report it.
        is_malicious: Whether it attacks; None if no client can.
        bytes_up: Bytes that it sent; None if it did not, or bytes are not counted.
        is_clipped: Whether its update was shortened (privacy=client); None if it sent none.
        contribution: Its update's Shapley value for the test loss; None if it is not in the average or not measured.
        num_clipped: Values of its update that were clipped for a secure sum; None if it is not in one.
        metrics: What else it reports, as a training script may (client=script): name -> number.
        weight: Weight of its values in the round's means: n_k, or 1 if the strategy takes a simple mean; None for n_k.
    """

    task: ClientTask
    num_examples: int | None
    num_steps: int
    train_loss: float | None
    counted: bool
    gamma: float | None = None
    drift: float | None = None
    weight: int | None = None
    is_malicious: bool | None = None
    bytes_up: int | None = None
    is_clipped: bool | None = None
    contribution: float | None = None
    num_clipped: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def staleness(self) -> int:
        """How many models the server has made since the one at which the client started."""
        return self.task.staleness


@dataclass(frozen=True)
class Round:
    """What is known after a round.

    Attributes:
        round_num: 0 for the initial model, then 1 .. num_rounds.
        arrays: The global model after the round.
        test: Measurements of the model; None if this round is not evaluated.
        clients: The cohort in the order of the plan; empty in round 0.
        time_s: Seconds from the start of the first round until this round's model was made, before its evaluation.
        mu: Weight of the proximal term in this round; in round 0, that of the first round.
        carried: State that the next round needs besides the model: the strategy's and mu's, in the form that
            `fedprox.runs.checkpoint` can write.
        metrics: Metrics of the strategy's own: name -> number.
        traffic: Bytes that clients have sent, and that were sent to them, in all rounds until this one.
        virtual_time_s: Virtual seconds from the start of the first round until this round's model was made; None
            without devices.
    """

    round_num: int
    arrays: ArrayRecord
    test: Evaluation | None
    clients: tuple[ClientOutcome, ...]
    time_s: float
    mu: float = 0.0
    carried: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    traffic: tuple[int, int] = (0, 0)
    virtual_time_s: float | None = None

    @property
    def gammas(self) -> list[float]:
        """Gammas of the clients that measured it."""
        return [client.gamma for client in self.clients if client.gamma is not None]

    @property
    def staleness(self) -> list[int]:
        """Staleness of the updates that are part of the average."""
        return [client.staleness for client in self.clients if client.counted]

    @property
    def num_clients_counted(self) -> int:
        """Number of clients whose models are part of the average."""
        return sum(client.counted for client in self.clients)

    @property
    def num_malicious(self) -> int:
        """Number of attackers among the clients whose models are part of the average."""
        return sum(client.counted and bool(client.is_malicious) for client in self.clients)

    @property
    def train_loss_cohort(self) -> float | None:
        """Mean training loss of the clients that count, weighted like the average; None if none counts."""
        return self._cohort_mean([client.train_loss for client in self.clients])

    @property
    def drift(self) -> float | None:
        """Mean ||w_k - w^t|| of the clients that count, weighted like the average; None if none counts.

        The averaged model cannot have moved farther than this.
        """
        return self._cohort_mean([client.drift for client in self.clients])

    @property
    def client_metrics(self) -> dict[str, float | None]:
        """Means of what else the clients that count report, weighted like the average; name -> mean."""
        names = dict.fromkeys(name for client in self.clients for name in client.metrics)
        return {name: self._cohort_mean([client.metrics.get(name) for client in self.clients]) for name in names}

    def _cohort_mean(self, values: Sequence[float | None]) -> float | None:
        known = [
            (client.num_examples or 0 if client.weight is None else client.weight, value)
            for client, value in zip(self.clients, values, strict=True)
            if client.counted and value is not None
        ]
        total = sum(weight for weight, _ in known)
        return sum(weight * value for weight, value in known) / total if total else None


class Start(Protocol):
    """The round after which a run resumes: a `Round`, or a checkpoint of one."""

    @property
    def round_num(self) -> int:
        """Number of the round."""

    @property
    def arrays(self) -> ArrayRecord:
        """Model after the round."""

    @property
    def carried(self) -> Mapping[str, Any]:
        """State that the next round needs besides the model."""

    @property
    def time_s(self) -> float:
        """Seconds that the rounds took so far."""


def outcomes(
    strategy: PlannedStrategy, round_num: int, replies: Sequence[Message], channel: Channel
) -> tuple[ClientOutcome, ...]:
    """Return the outcome of every draw of the cohort, including clients that were left out."""
    metrics = {(client_of(reply), draw_of(reply)): metrics_of(reply) for reply in replies}
    sizes, weighs_equally = strategy.plan.client_sizes, strategy.weighs_equally

    def outcome(task: ClientTask) -> ClientOutcome:
        size = int(sizes[task.client]) if strategy.has_sizes else None
        made = _outcome(task, size, metrics.get((task.client, task.draw)), weighs_equally)
        draw = task.client, task.draw
        return replace(
            made,
            is_malicious=channel.attacks(task.client),
            bytes_up=channel.bytes_up.get(draw),
            is_clipped=strategy.is_clipped(task.client),
            contribution=channel.contribution.values.get(draw) if channel.contribution else None,
            num_clipped=channel.secure.num_clipped.get(draw) if channel.secure else None,
        )

    return tuple(map(outcome, strategy.cohort(round_num)))


_OWN = ("num-examples", "num-steps", "train-loss", "gamma", "drift")


def _outcome(
    task: ClientTask, num_examples: int | None, metrics: Metrics | None, weighs_equally: bool
) -> ClientOutcome:
    if metrics and num_examples is None:
        num_examples = int(metrics["num-examples"])
    return ClientOutcome(
        task=task,
        num_examples=num_examples,
        num_steps=int(metrics["num-steps"]) if metrics else 0,
        train_loss=_metric(metrics, "train-loss"),
        counted=metrics is not None,
        gamma=_metric(metrics, "gamma"),
        drift=_metric(metrics, "drift"),
        weight=1 if weighs_equally else num_examples,
        metrics={name: value for name, value in metrics.items() if name not in _OWN} if metrics else {},
    )


def _metric(metrics: Metrics | None, name: str) -> float | None:
    return float(metrics[name]) if metrics and name in metrics else None
