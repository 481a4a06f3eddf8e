"""The rounds of federated learning: the place to start reading.

Everything random in a round is in the plan, inside `strategy`; an engine, `grid`, only turns (global
model, plan) into client updates.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.deferred import Evaluate, Measuring
from fedprox.federation.failures import Faults
from fedprox.federation.messages import client_of, draw_of
from fedprox.federation.planned_strategy import Planned
from fedprox.federation.results import ClientOutcome, Round
from fedprox.federation.schedules import AdaptiveMu
from fedprox.plan.plan import ClientTask, CohortPlan
from fedprox.strategies.arrays import only


@runtime_checkable
class Engine(Protocol):
    """Where the clients of a round are computed: the part of a Flower Grid that is needed."""

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to a round's messages, in their order; errors for clients that failed or were late."""

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of the engine's processes besides this one."""


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
    faults: Faults | None = None,
    rounds_done: int | None = None,
    time_s: float = 0.0,
) -> Iterator[Round]:
    """Yield round 0, which is the initial model, and then each round of training as it ends.

    A model is measured when somebody asks for that, and then all models are that wait for it: see
    `fedprox.federation.deferred`.

    Args:
        arrays: w^0; where a run goes on, the model after the rounds that are done.
        strategy: Who trains (configure) and how the global model follows from the replies (aggregate).
        grid: Where clients compute.
        evaluate: Measures global models.
        mu: Weight of the proximal term, sent to the clients; adaptive mu follows the training loss that
            `evaluate` gives.
        num_rounds: T.
        evaluate_every: Rounds from one evaluation to the next; the last round is always evaluated.
        measure_gamma: Let clients measure how inexactly they solved their problems.
        learning_rate_factor: What the clients' learning rate is multiplied by, by round.
        faults: What is done about clients that fail, diverge or are late; None stops at all but the last.
        rounds_done: Rounds that a run which goes on has behind it, besides round 0; none of them is yielded again.
            None begins with round 0.
        time_s: What those took.
    """
    start, measuring, faults = time.perf_counter() - time_s, Measuring(evaluate), faults or Faults()

    def ended(
        round_num: int,
        tested: Callable[[], Evaluation] | None,
        clients: tuple[ClientOutcome, ...] = (),
        metrics: MetricRecord | None = None,
    ) -> Round:
        present_s, present_mu = time.perf_counter() - start, _present(mu)
        _adapt(mu, tested)
        carried = {"strategy": strategy.state(), "mu": mu.state() if isinstance(mu, AdaptiveMu) else None}
        return Round(round_num, arrays, tested, clients, present_s, present_mu, carried, metrics or {})

    if rounds_done is None:
        yield ended(0, measuring.later(arrays))
    for round_num in range((rounds_done or 0) + 1, num_rounds + 1):
        factor = learning_rate_factor(round_num)
        settings = {"proximal-mu": _present(mu), "learning-rate-factor": factor, "measure-gamma": measure_gamma}
        nodes = faults.sifted(grid, round_num)  # those whose replies count
        messages = strategy.configure_train(round_num, arrays, ConfigRecord({**settings}), cast(Grid, nodes))
        replies = nodes.send_and_receive(messages)
        new_arrays, metrics = strategy.aggregate_train(round_num, replies)
        if not strategy.is_ours:
            faults.check_model(new_arrays, f"round {round_num}: {strategy.name}")
        arrays = arrays if new_arrays is None else new_arrays  # nobody left: the model stays
        is_evaluated = round_num % evaluate_every == 0 or round_num == num_rounds
        tested = measuring.later(arrays) if is_evaluated else None
        clients = _outcomes(strategy, round_num, replies)
        yield ended(round_num, tested, clients, metrics)


def _present(mu: AdaptiveMu | float) -> float:
    return mu.mu if isinstance(mu, AdaptiveMu) else mu


def _adapt(mu: AdaptiveMu | float, tested: Callable[[], Evaluation] | None) -> None:
    """Let mu see the training loss, which has to be measured now for that; a mu that does not adapt waits for none."""
    if isinstance(mu, AdaptiveMu) and tested and (federation := tested().federation):
        mu.observe(federation.train_loss)


def _outcomes(strategy: Planned, round_num: int, replies: Sequence[Message]) -> tuple[ClientOutcome, ...]:
    """Return what became of every draw of the cohort, those that were left out included."""
    metrics = {(client_of(reply), draw_of(reply)): only(MetricRecord, reply.content) for reply in replies}
    return tuple(
        _outcome(strategy.plan, task, metrics.get((task.client, task.draw))) for task in strategy.cohort(round_num)
    )


def _outcome(plan: CohortPlan, task: ClientTask, metrics: MetricRecord | None) -> ClientOutcome:
    num_examples = int(plan.client_sizes[task.client])
    return ClientOutcome(
        task=task,
        num_examples=num_examples,
        num_steps=int(metrics["num-steps"]) if metrics else 0,  # type: ignore[arg-type]
        train_loss=_metric(metrics, "train-loss"),
        counted=metrics is not None,
        gamma=_metric(metrics, "gamma"),
        drift=_metric(metrics, "drift"),
        weight=1 if plan.sampling == "proportional" else num_examples,
    )


def _metric(metrics: MetricRecord | None, name: str) -> float | None:
    return float(metrics[name]) if metrics and name in metrics else None  # type: ignore[arg-type]
