"""The rounds of federated learning: the place to start reading.

Everything random in a round is in the plan, inside `strategy`; an engine, `grid`, only turns (global model, plan) into
client updates.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import Engine
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import ClientOutcome, Round, outcomes
from fedprox.federation.schedules import ConstantMu, MuSchedule

Evaluate = Callable[[ArrayRecord], Evaluation]


@dataclass(frozen=True)
class RoundSettings:
    """What the rounds of a run have in common.

    Attributes:
        num_rounds: T.
        mu: Weight of the proximal term, round by round.
        learning_rate_factor: What the clients' learning rate is multiplied by, by round.
        evaluate_every: Rounds from one evaluation to the next; the last round is always evaluated.
        measure_gamma: Whether clients measure how inexactly they solved their problems.
        failures: What is done about clients that fail, diverge or are late.
    """

    num_rounds: int
    mu: MuSchedule = field(default_factory=lambda: ConstantMu(0.0))
    learning_rate_factor: Callable[[int], float] = lambda round_num: 1.0
    evaluate_every: int = 1
    measure_gamma: bool = False
    failures: FailurePolicy = field(default_factory=FailurePolicy)

    def config(self, round_num: int) -> ConfigRecord:
        """Return what all clients are sent beside the model."""
        factor = self.learning_rate_factor(round_num)
        settings = {"proximal-mu": self.mu.value, "learning-rate-factor": factor, "measure-gamma": self.measure_gamma}
        return ConfigRecord({**settings})

    def evaluates(self, round_num: int) -> bool:
        """Return whether the model is measured after a round."""
        return round_num % self.evaluate_every == 0 or round_num == self.num_rounds


class Start(Protocol):
    """Where a run resumes: after a round that is done, such as a `Round` or a checkpoint of one."""

    @property
    def round_num(self) -> int:
        """Its number."""

    @property
    def arrays(self) -> ArrayRecord:
        """The model after it."""

    @property
    def carried(self) -> Mapping[str, Any]:
        """What the next round depends on besides the model; see `Round`."""

    @property
    def time_s(self) -> float:
        """Seconds that the rounds so far took."""


def run_rounds(
    arrays: ArrayRecord,
    strategy: PlannedStrategy,
    grid: Engine,
    evaluate: Evaluate,
    settings: RoundSettings,
    start: Start | None = None,
) -> Iterator[Round]:
    """Yield round 0, which is the initial model, and then each round of training as it ends.

    Args:
        arrays: w^0.
        strategy: Who trains (configure) and how the global model follows from the replies (aggregate).
        grid: Where clients compute.
        evaluate: Measures a global model.
        settings: What the rounds have in common.
        start: The round after which a run resumes: its model and state replace the initial ones, and neither it nor
            one before it is yielded again. None begins with round 0.
    """
    mu, failures, begin = settings.mu, settings.failures, time.perf_counter()
    if start:
        arrays, begin = start.arrays, begin - start.time_s
        strategy.restore(start.carried["strategy"])
        mu.restore(start.carried["mu"])

    def finished(round_num: int, clients: tuple[ClientOutcome, ...] = (), metrics: MetricRecord | None = None) -> Round:
        """Return a round with its model measured, after which mu may be another."""
        time_s, present_mu = time.perf_counter() - begin, mu.value
        test = evaluate(arrays) if settings.evaluates(round_num) else None
        mu.observe(test)
        carried = {"strategy": strategy.state(), "mu": mu.state()}
        return Round(round_num, arrays, test, clients, time_s, present_mu, carried, metrics or {})

    if start is None:
        yield finished(0)
    for round_num in range(start.round_num + 1 if start else 1, settings.num_rounds + 1):
        filtered = failures.filtering(grid, round_num)  # only replies that count
        messages = strategy.configure_train(round_num, arrays, settings.config(round_num), cast(Grid, filtered))
        replies = filtered.send_and_receive(messages)
        aggregated, metrics = strategy.aggregate_train(round_num, replies)
        failures.check_aggregate(round_num, strategy, aggregated)
        arrays = arrays if aggregated is None else aggregated  # without replies the model stays
        yield finished(round_num, outcomes(strategy, round_num, replies), metrics)
