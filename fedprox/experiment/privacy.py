"""Differential privacy from the configuration: what is refused, the private strategy, and what its guarantee covers."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord

from fedprox.config.schema import Config, Privacy
from fedprox.data.facts import Facts
from fedprox.errors import UserError
from fedprox.evaluation.metrics import Evaluation, PrivacyCost
from fedprox.experiment.data import attack_of
from fedprox.federation.channel import Layout
from fedprox.federation.rounds import Evaluate
from fedprox.process import announced
from fedprox.strategies.accounting import calibrated, library
from fedprox.strategies.private import AdaptiveClip, PrivateMean

_log = logging.getLogger("fedprox")
_MEANS = ("fedprox.strategies.fedprox.FedProx", "fedprox.strategies.fedprox.FedAvgWithStragglerDrop")
_INDEPENDENT = "fedprox.plan.protocols.FlowerProtocol"  # a client straggles whoever else takes part
_PUBLIC = ("test_loss", "test_accuracy")
_COVERED = (
    "the global models of all rounds, for all examples of a client together: data sets that differ by one client "
    "(add or remove), a server that is trusted, and adversaries who do not know the seed"
)
_NOT_COVERED = (
    "clients.csv and every column of metrics.csv that is measured on clients' training or held-out examples",
    "a choice of settings that was made by looking at several runs",
    "an initial model, the mean and std that normalise features, and all else made of the clients' data before round 1",
    "rounding of the noise to floating-point numbers",
)


def check_privacy(config: Config) -> None:
    """Raise UserError for settings under which differential privacy would mean nothing."""
    if not config.privacy.is_on:
        return
    attack = attack_of(config)
    for is_wrong, what, why in (
        (
            config.sampling != "poisson",
            f"sampling={config.sampling}",
            "epsilon needs clients that are drawn independently; use sampling=poisson",
        ),
        (
            config.arrival.name == "buffered",
            "arrival=buffered",
            "who is in flight depends on earlier rounds; use arrival=synchronous",
        ),
        (
            0 < config.stragglers_fraction < 1 and config.protocol.target != _INDEPENDENT,
            f"stragglers_fraction={config.stragglers_fraction:g} and protocol={config.protocol.name}",
            "one client more may make a straggler of another; use protocol=flower, which draws each on its own, or "
            "stragglers_fraction=0",
        ),
        (
            attack is not None and attack.watches_others,
            f"attack={config.attack.name}",
            "attackers whose updates follow from the others' make one client count more than once; use another attack",
        ),
        (config.adaptive_mu.enabled, "adaptive_mu.enabled=true", "mu would follow the clients' training loss; set mu"),
        (config.on_divergence == "continue", "on_divergence=continue", "nan cannot be clipped; use stop or drop"),
        (
            config.batch_statistics == "local",
            "batch_statistics=local",
            "their mean would reach the model without noise; leave it out",
        ),
    ):
        if is_wrong:
            raise UserError(f"privacy=client does not go with {what}: {why}")
    if config.strategy.target not in _MEANS:
        raise UserError(
            f"privacy=client replaces the mean of strategy=fedprox or strategy=fedavg, got {config.strategy.name}, "
            "whose sensitivity is not known; use one of these"
        )
    if (metric := config.early_stopping.metric) and metric not in _PUBLIC:
        raise UserError(
            f"privacy=client does not go with early_stopping.metric={metric}: it is measured on clients' examples, and "
            f"the moment of the end would tell of them; use {' or '.join(_PUBLIC)}"
        )
    library()


def private_mean(config: Config, facts: Facts, layout: Layout, names: Sequence[str]) -> PrivateMean:
    """Return the private strategy.

    Args:
        config: The configuration, of privacy=client.
        facts: What is known of the clients' data.
        layout: Which arrays of the model are trained.
        names: Which of these travel.

    Raises:
        UserError: If the model has more than parameters, or the numbers do not go together.
    """
    own, num_clients = config.privacy, facts.num_clients
    asked = config.clients_per_round or num_clients
    assert own.clip is not None
    assert own.delta is not None
    if config.early_stopping.metric and not facts.has_test_set:
        raise UserError(
            f"privacy=client does not go with early_stopping.metric={config.early_stopping.metric}: these data have no "
            "test set but the clients' held-out examples, and the moment of the end would tell of them; leave it out"
        )
    if buffers := [name for name in layout.buffers if name not in layout.local]:
        raise UserError(
            f"privacy=client needs a model whose clients update parameters alone, got {config.model.name} with "
            f"{buffers[0]}, which would reach the server's model without noise; use a model without batch norm, "
            "such as model=resnet18_gn"
        )
    if own.delta > 1 / num_clients:
        _log.warning(
            "privacy.delta=%g is above 1 / num_clients = %g: giving away one client's data whole would be allowed",
            *(own.delta, 1 / num_clients),
        )
    probability = asked / num_clients
    noise = own.noise_multiplier
    if noise is None:
        assert own.epsilon is not None
        with announced("finding the noise for privacy.epsilon", after_s=2.0):
            noise = calibrated(own.epsilon, own.delta, probability, config.num_rounds)
        _log.info("privacy.epsilon=%g for %d rounds: noise multiplier %.4f", own.epsilon, config.num_rounds, noise)
    return PrivateMean(
        names,
        own.clip,
        noise,
        probability,
        num_clients,
        adaptive=_adaptive(config, noise, own.noise_cohort or asked),
        noise_factor=asked / (own.noise_cohort or asked),
        drops_stragglers=config.strategy.name == "FedAvgWithStragglerDrop",
        seed=config.seed,
        repetition=config.repeat_num,
    )


def _adaptive(config: Config, noise_multiplier: float, cohort_size: int) -> AdaptiveClip | None:
    own = config.privacy
    if own.clip_quantile is None or own.clip_rate is None:
        return None
    count_noise = own.count_noise or cohort_size / 20
    if 2 * count_noise <= noise_multiplier:
        raise UserError(
            f"privacy.count_noise must be more than half the noise multiplier {noise_multiplier:g}, got "
            f"{count_noise:g}; set a larger one"
        )
    return AdaptiveClip(own.clip_quantile, own.clip_rate, count_noise)


def with_privacy_cost(evaluate: Evaluate, strategy: PrivateMean, own: Privacy) -> Evaluate:
    """Return a function that also says what the model has cost."""
    delta = own.delta
    assert delta is not None

    def measure(round_num: int, arrays: ArrayRecord) -> Evaluation:
        cost = PrivacyCost(strategy.ledger.epsilon(delta), strategy.clip)
        return replace(evaluate(round_num, arrays), privacy=cost)

    return measure


def rounds_within_budget(config: Config, strategy: PrivateMean, rounds_left: int) -> int:
    """Return how many of the remaining rounds the budget allows."""
    own = config.privacy
    if own.budget is None or own.delta is None:
        return rounds_left
    with announced("finding the rounds within the privacy budget", after_s=2.0):
        spending = strategy.noise_multiplier, strategy.probability, rounds_left
        return strategy.ledger.rounds_within(own.budget, own.delta, spending)


def privacy_facts(config: Config, strategy: PrivateMean) -> dict[str, Any]:
    """Return the entry `privacy` of run.json."""
    own = config.privacy
    return {
        "noise_multiplier": strategy.noise_multiplier,
        "sampling_probability": strategy.probability,
        "delta": own.delta,
        "accounting": "PLD, add or remove one client",
        "covered": _COVERED,
        "not_covered": list(_NOT_COVERED),
        **({"noise_of_a_cohort_of": own.noise_cohort} if own.noise_cohort else {}),
    }
