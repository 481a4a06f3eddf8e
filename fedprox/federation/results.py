"""What is known after a round: the model, how it was measured, and what became of each client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message

from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.messages import client_of, draw_of
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.plan.plan import ClientTask
from fedprox.strategies.updates import Metrics, metrics_of


@dataclass(frozen=True)
class ClientOutcome:
    """What one client of a cohort did in a round; one that was drawn twice has two of these.

    Attributes:
        task: What was planned for it.
        num_examples: n_k.
        num_steps: Mini-batch steps done; 0 if it was dropped.
        train_loss: Mean cross-entropy over the examples as they were processed; None if it was dropped.
        counted: Whether its model is part of the average.
        gamma: How inexactly it solved its problem (Definition 2), where that is measured.
        drift: ||w_k - w^t|| over the trained parameters; None if it was dropped, or its app does not tell.
        weight: Of its values in the round's means: n_k, or with sampling=proportional 1; None for n_k.
    """

    task: ClientTask
    num_examples: int
    num_steps: int
    train_loss: float | None
    counted: bool
    gamma: float | None = None
    drift: float | None = None
    weight: int | None = None


@dataclass(frozen=True)
class Round:
    """What is known after a round.

    Attributes:
        round_num: 0 for the initial model, then 1 .. num_rounds.
        arrays: The global model after the round.
        test: The model as measured; None in a round that is not evaluated.
        clients: The cohort in the order of the plan; empty in round 0.
        time_s: Seconds since the first round began, when the model was there and not yet measured.
        mu: Weight of the proximal term in this round's training, or for round 0, in the first.
        carried: What the next round depends on besides the model: the state of the strategy and of mu, as
            `fedprox.runs.checkpoint` can write it.
        metrics: What the strategy adds to what clients report: a number for each name.
    """

    round_num: int
    arrays: ArrayRecord
    test: Evaluation | None
    clients: tuple[ClientOutcome, ...]
    time_s: float
    mu: float = 0.0
    carried: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gammas(self) -> list[float]:
        """The gammas of the clients for which it was measured."""
        return [client.gamma for client in self.clients if client.gamma is not None]

    @property
    def num_clients_counted(self) -> int:
        """Number of clients whose models were averaged."""
        return sum(client.counted for client in self.clients)

    @property
    def train_loss_cohort(self) -> float | None:
        """Mean training loss of the clients that count, with the weights of the average; None if there are none."""
        return self._cohort_mean([client.train_loss for client in self.clients])

    @property
    def drift(self) -> float | None:
        """Mean ||w_k - w^t|| of the clients that count, weighted likewise; None if there are none.

        With the weights of the average, it is the largest distance that the averaged model can have moved.
        """
        return self._cohort_mean([client.drift for client in self.clients])

    def _cohort_mean(self, values: Sequence[float | None]) -> float | None:
        known = [
            (client.num_examples if client.weight is None else client.weight, value)
            for client, value in zip(self.clients, values, strict=True)
            if client.counted and value is not None
        ]
        total = sum(weight for weight, _ in known)
        return sum(weight * value for weight, value in known) / total if total else None


def outcomes(strategy: PlannedStrategy, round_num: int, replies: Sequence[Message]) -> tuple[ClientOutcome, ...]:
    """Return what became of every draw of the cohort, those that were left out included."""
    metrics = {(client_of(reply), draw_of(reply)): metrics_of(reply) for reply in replies}
    sizes, is_proportional = strategy.plan.client_sizes, strategy.plan.sampling == "proportional"
    return tuple(
        _outcome(task, int(sizes[task.client]), metrics.get((task.client, task.draw)), is_proportional)
        for task in strategy.cohort(round_num)
    )


def _outcome(task: ClientTask, num_examples: int, metrics: Metrics | None, is_proportional: bool) -> ClientOutcome:
    return ClientOutcome(
        task=task,
        num_examples=num_examples,
        num_steps=int(metrics["num-steps"]) if metrics else 0,
        train_loss=_metric(metrics, "train-loss"),
        counted=metrics is not None,
        gamma=_metric(metrics, "gamma"),
        drift=_metric(metrics, "drift"),
        weight=1 if is_proportional else num_examples,
    )


def _metric(metrics: Metrics | None, name: str) -> float | None:
    return float(metrics[name]) if metrics and name in metrics else None
