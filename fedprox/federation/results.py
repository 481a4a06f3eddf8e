"""What is known after a round: the model, how it was measured, and what became of each client."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord

from fedprox.evaluation.metrics import Evaluation
from fedprox.plan.plan import ClientTask


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
        tested: Returns it as measured, and waits for that; None in a round that is not evaluated.
        clients: The cohort in the order of the plan; empty in round 0.
        time_s: Seconds since the first round began, when the model was there; it may not have been measured yet.
        mu: Weight of the proximal term in this round's training, or for round 0, in the first.
        carried: What the next round depends on besides the model: the state of the strategy and of adaptive mu, as
            `fedprox.runs.checkpoint` can write it.
        metrics: What the strategy adds to what clients report: a number for each name.
    """

    round_num: int
    arrays: ArrayRecord
    tested: Callable[[], Evaluation] | None
    clients: tuple[ClientOutcome, ...]
    time_s: float
    mu: float = 0.0
    carried: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def test(self) -> Evaluation | None:
        """The model as measured; None in a round that is not evaluated."""
        return self.tested() if self.tested else None

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
