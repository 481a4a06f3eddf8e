"""The rounds of federated learning: START READING HERE.

A round of FedProx (Li et al. 2020, algorithm 2) turns the global model w^t into w^{t+1} in four steps:

1. Cohort: the server draws K clients, and the work of each; a straggler has time for only part of the full E epochs.
2. Local work: client k starts at w^t and reduces h_k(w; w^t) = F_k(w) + (mu / 2) * ||w - w^t||^2 by SGD.
3. Aggregation: w^{t+1} is the weighted mean of the clients' models, including those with partial work.
4. Evaluation: the new model is measured.

FedAvg is the same loop with mu = 0 and a strategy that drops stragglers.

Steps 1 and 3 belong to the strategy (`planned_strategy`), step 2 to the engine (`fedprox.engines`), which plays the
clients (`client_app`), and step 4 to `fedprox.evaluation`. Everything random in a round is in the strategy's plan, a
pure function of (settings, seed, round). So all methods see the same clients, stragglers and batches, all engines give
the same numbers, and a resumed run continues exactly.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self, cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedprox.config.schema import Config
from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.channel import Channel
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import Engine
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import ClientOutcome, Round, Start, outcomes
from fedprox.federation.schedules import ConstantMu, MuSchedule, epoch_factors, learning_rate_factor, mu_schedule
from fedprox.federation.strategy_checks import annotated

Evaluate = Callable[[int, ArrayRecord], Evaluation]


@dataclass(frozen=True)
class RoundSettings:
    """Settings that all rounds of a run share.

    Attributes:
        num_rounds: T.
        mu: Weight of the proximal term, round by round.
        learning_rate_factor: Factor on the clients' learning rate, by round number.
        epoch_factors: Factors on it in the epochs of a round, by round number; None if it stays within a round.
        server_rate_factor: Factor on the server's, by round number; None if it stays.
        evaluate_every: Rounds from one evaluation to the next; the last round is always evaluated.
        measure_gamma: Whether clients measure how inexactly they solved their problems (Definition 2).
        failures: Policy for clients that fail, diverge or are late.
    """

    num_rounds: int
    mu: MuSchedule = field(default_factory=lambda: ConstantMu(0.0))
    learning_rate_factor: Callable[[int], float] = lambda round_num: 1.0
    epoch_factors: Callable[[int], list[float]] | None = None
    server_rate_factor: Callable[[int], float] | None = None
    evaluate_every: int = 1
    measure_gamma: bool = False
    failures: FailurePolicy = field(default_factory=FailurePolicy)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the settings of a run with this configuration."""
        rate, server, num_rounds = config.schedule, config.server_schedule, config.num_rounds
        by_epoch = rate.step == "epoch"
        return cls(
            num_rounds,
            mu=mu_schedule(config.mu, config.adaptive_mu),
            learning_rate_factor=lambda t: learning_rate_factor(
                "constant" if by_epoch else rate.name, t, num_rounds, rate.final
            ),
            epoch_factors=(lambda t: epoch_factors(t, num_rounds, config.num_epochs, rate.final)) if by_epoch else None,
            server_rate_factor=None
            if server.name == "constant"
            else lambda t: learning_rate_factor(server.name, t, num_rounds, server.final),
            evaluate_every=config.evaluation.every,
            measure_gamma=config.evaluation.name == "clients",
            failures=FailurePolicy(
                config.on_client_error, config.on_divergence, config.round_timeout, config.on_timeout
            ),
        )

    def config(self, round_num: int) -> ConfigRecord:
        """Return the settings that every client receives with the model."""
        factor = self.learning_rate_factor(round_num)
        settings: dict[str, float | list[float]] = {
            "proximal-mu": self.mu.value,
            "learning-rate-factor": factor,
            "measure-gamma": self.measure_gamma,
        }
        if self.epoch_factors:
            settings["epoch-factors"] = self.epoch_factors(round_num)
        if self.server_rate_factor:
            settings["server-learning-rate-factor"] = self.server_rate_factor(round_num)
        return ConfigRecord({**settings, "server-round": round_num})

    def evaluates(self, round_num: int) -> bool:
        """Return whether the model is measured after a round."""
        return round_num % self.evaluate_every == 0 or round_num == self.num_rounds


def run_rounds(
    arrays: ArrayRecord,
    strategy: PlannedStrategy,
    grid: Engine,
    evaluate: Evaluate,
    settings: RoundSettings,
    start: Start | None = None,
    channel: Channel | None = None,
) -> Iterator[Round]:
    """Yield round 0, which is the initial model, and then each round of training as it ends.

    Args:
        arrays: w^0.
        strategy: Asks the cohort (`configure_train`) and makes the next model of its replies (`aggregate_train`).
        grid: The engine that computes the clients.
        evaluate: Measures the global model after a round, given the round's number.
        settings: Settings that all rounds share.
        start: The round after which to resume; its model and state replace the initial ones, and the first round
            yielded is the next one. None begins with round 0.
        channel: What happens to updates between the engine and the strategy; None for nothing.
    """
    mu, failures, channel = settings.mu, settings.failures, channel or Channel()
    begin = time.perf_counter() - (start.time_s if start else 0.0)

    def finish(
        round_num: int,
        arrays: ArrayRecord,
        clients: tuple[ClientOutcome, ...] = (),
        metrics: MetricRecord | None = None,
    ) -> Round:
        """Measure the model after a round, let mu follow its loss, and return all that is known about the round."""
        time_s, mu_of_round = time.perf_counter() - begin, mu.value
        with annotated(f"round {round_num}: evaluation"):  # the user's model may raise
            test = evaluate(round_num, arrays) if settings.evaluates(round_num) else None
        mu.observe(test)  # an adaptive mu grows if the loss has risen; a constant one stays
        # What a resumed run needs besides the model:
        carried = {"strategy": strategy.state(), "mu": mu.state(), "channel": channel.state()}
        return Round(
            *(round_num, arrays, test, clients, time_s, mu_of_round, carried),
            metrics=metrics or {},
            traffic=channel.totals,
            virtual_time_s=strategy.virtual_time_s,
        )

    if start is None:
        first_round = 1
        yield finish(0, arrays)  # the initial model, before any training
    else:
        first_round, arrays = start.round_num + 1, start.arrays
        strategy.restore(start.carried["strategy"])
        mu.restore(start.carried["mu"])
        channel.restore(start.carried["channel"])

    for round_num in range(first_round, settings.num_rounds + 1):
        # `engine` returns only replies that count: clients that fail, diverge or are late are dropped, or end the run.
        # The channel lets attackers change what they send.
        engine = channel.between(failures.filtering(grid, round_num), round_num)
        config = settings.config(round_num)

        # 1. Cohort: one message for each planned client, with w^t, mu and the client's own task.
        messages = strategy.configure_train(round_num, arrays, config, cast(Grid, engine))

        # 2. Local work: each reply holds w_k and the client's metrics, in the order of the plan.
        replies = engine.send_and_receive(messages)

        # 3. Aggregation: w^{t+1}; without replies the model stays as it is.
        aggregated, metrics = strategy.aggregate_train(round_num, replies)
        failures.check_aggregate(round_num, strategy, aggregated)
        arrays = arrays if aggregated is None else aggregated

        # 4. Evaluation. The caller then records the round, saves a checkpoint, and may stop.
        yield finish(round_num, arrays, outcomes(strategy, round_num, replies, channel), metrics)
