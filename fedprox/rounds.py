"""The rounds of federated learning: the place to start reading.

Everything random in a round is in the plan, inside `strategy`; an engine, `grid`, only turns (global
model, plan) into client updates.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedprox.adaptive_mu import AdaptiveMu
from fedprox.messages import only, task_of
from fedprox.metrics import Evaluation
from fedprox.plan import ClientTask, CohortPlan
from fedprox.strategy import Planned

Evaluate = Callable[[Sequence[ArrayRecord]], list[Evaluation]]


@runtime_checkable
class Engine(Protocol):
    """Where the clients of a round are computed: the part of a Flower Grid that is needed."""

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to a round's messages, in their order."""

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of the engine's processes besides this one."""


@dataclass(frozen=True)
class ClientOutcome:
    """What one client of a cohort did in a round.

    Attributes:
        task: What was planned for it.
        num_examples: n_k.
        num_steps: Mini-batch steps done; 0 if it was dropped.
        train_loss: Mean cross-entropy over the examples as they were processed; None if it was dropped.
        counted: Whether its model is part of the average.
        gamma: How inexactly it solved its problem (Definition 2), where that is measured.
        drift: ||w_k - w^t|| over the trained parameters; None if it was dropped, or its app does not tell.
    """

    task: ClientTask
    num_examples: int
    num_steps: int
    train_loss: float | None
    counted: bool
    gamma: float | None = None
    drift: float | None = None


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
    """

    round_num: int
    arrays: ArrayRecord
    tested: Callable[[], Evaluation] | None
    clients: tuple[ClientOutcome, ...]
    time_s: float
    mu: float = 0.0

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
        """Mean training loss of the clients that count, weighted by n_k; None if there are none."""
        return self._cohort_mean([client.train_loss for client in self.clients])

    @property
    def drift(self) -> float | None:
        """Mean ||w_k - w^t|| of the clients that count, weighted by n_k; None if there are none.

        With the weights of the average, it is the largest distance that the averaged model can have moved.
        """
        return self._cohort_mean([client.drift for client in self.clients])

    def _cohort_mean(self, values: Sequence[float | None]) -> float | None:
        known = [
            (client.num_examples, value)
            for client, value in zip(self.clients, values, strict=True)
            if client.counted and value is not None
        ]
        total = sum(num_examples for num_examples, _ in known)
        return sum(num_examples * value for num_examples, value in known) / total if total else None


def run_rounds(
    *,
    arrays: ArrayRecord,
    strategy: Planned,
    grid: Engine,
    evaluate: Evaluate,
    mu: AdaptiveMu | float,
    num_rounds: int,
    evaluate_every: int = 1,
    measure_gamma: bool = False,
    learning_rate_factor: Callable[[int], float] = lambda round_num: 1.0,
) -> Iterator[Round]:
    """Yield round 0, which is the initial model, and then each round of training as it ends.

    A model is measured when somebody asks for that, and then all models are that wait for it: see `several_at_once`.

    Args:
        arrays: w^0.
        strategy: Who trains (configure) and how the global model follows from the replies (aggregate).
        grid: Where clients compute.
        evaluate: Measures global models.
        mu: Weight of the proximal term, sent to the clients; adaptive mu follows the training loss that
            `evaluate` gives.
        num_rounds: T.
        evaluate_every: Rounds from one evaluation to the next; the last round is always evaluated.
        measure_gamma: Let clients measure how inexactly they solved their problems.
        learning_rate_factor: What the clients' learning rate is multiplied by, by round.
    """
    start, measuring = time.perf_counter(), Measuring(evaluate)
    tested: Callable[[], Evaluation] | None = measuring.later(arrays)
    yield Round(0, arrays, tested, (), time.perf_counter() - start, _present(mu, tested))
    for round_num in range(1, num_rounds + 1):
        present_mu = _present(mu)
        factor = learning_rate_factor(round_num)
        settings = {"proximal-mu": present_mu, "learning-rate-factor": factor, "measure-gamma": measure_gamma}
        config = ConfigRecord({**settings})
        messages = strategy.configure_train(round_num, arrays, config, cast(Grid, grid))
        replies = grid.send_and_receive(messages)
        new_arrays, _ = strategy.aggregate_train(round_num, replies)
        arrays = arrays if new_arrays is None else new_arrays  # nobody left: the model stays
        is_evaluated = round_num % evaluate_every == 0 or round_num == num_rounds
        tested = measuring.later(arrays) if is_evaluated else None
        clients = _outcomes(strategy.plan, round_num, replies, messages)
        yield Round(round_num, arrays, tested, clients, time.perf_counter() - start, present_mu)
        _present(mu, tested)


def several_at_once(rounds: Iterator[Round], at_most: int = 16, within_s: float = 0.1) -> Iterator[Round]:
    """Yield rounds a little later, so that several models are measured at once where rounds are short.

    Args:
        rounds: From `run_rounds`; what it raises comes after the rounds that have ended.
        at_most: Rounds that wait for each other.
        within_s: Seconds after which they are not waited for.
    """
    ended: list[Round] = []
    start = time.perf_counter()
    try:
        for outcome in rounds:
            ended.append(outcome)
            if len(ended) == at_most or time.perf_counter() - start > within_s:
                yield from _taken(ended)
                start = time.perf_counter()
    except (Exception, KeyboardInterrupt):
        yield from _taken(ended)
        raise
    yield from _taken(ended)


def _taken(ended: list[Round]) -> list[Round]:
    taken = ended.copy()
    ended.clear()
    return taken


class Measuring:
    """Models that wait to be measured, all together when the first of them is asked for."""

    def __init__(self, evaluate: Evaluate) -> None:
        """Begin without models."""
        self._evaluate = evaluate
        self._waiting: dict[int, ArrayRecord] = {}
        self._done: dict[int, Evaluation] = {}

    def later(self, arrays: ArrayRecord) -> Callable[[], Evaluation]:
        """Return the function that returns a model as measured."""
        number = len(self._waiting) + len(self._done)
        self._waiting[number] = arrays

        def tested() -> Evaluation:
            if number in self._waiting:
                self._done |= zip(self._waiting, self._evaluate([*self._waiting.values()]), strict=True)
                self._waiting.clear()
            return self._done[number]

        return tested


def _present(mu: AdaptiveMu | float, tested: Callable[[], Evaluation] | None = None) -> float:
    """Return the present mu, after it has seen the loss of an evaluation where it adapts to that."""
    if not isinstance(mu, AdaptiveMu):
        return mu
    if tested and (federation := tested().federation):
        mu.observe(federation.train_loss)
    return mu.mu


def _outcomes(
    plan: CohortPlan, round_num: int, replies: Sequence[Message], messages: Sequence[Message]
) -> tuple[ClientOutcome, ...]:
    """Return what became of every client of the cohort, those that were dropped included."""
    metrics = {
        task_of(message).client: only(MetricRecord, reply.content)
        for message, reply in zip(messages, replies, strict=True)
    }
    return tuple(
        ClientOutcome(
            task=task,
            num_examples=int(plan.client_sizes[task.client]),
            num_steps=int(metrics[task.client]["num-steps"]) if task.client in metrics else 0,  # type: ignore[arg-type]
            train_loss=float(metrics[task.client]["train-loss"]) if task.client in metrics else None,  # type: ignore[arg-type]
            counted=task.client in metrics,
            gamma=_metric(metrics.get(task.client), "gamma"),
            drift=_metric(metrics.get(task.client), "drift"),
        )
        for task in plan.tasks(round_num)
    )


def _metric(metrics: MetricRecord | None, name: str) -> float | None:
    return float(metrics[name]) if metrics and name in metrics else None  # type: ignore[arg-type]
