"""Assembly of secure aggregation from the configuration, and what does not go with it."""

from collections.abc import Callable, Sequence

import numpy as np

from fedprox.channel.masking import Masked
from fedprox.config.instantiate import build
from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.errors import UserError
from fedprox.federation.channel import Layout
from fedprox.federation.secure_sums import SecureSums
from fedprox.plan.plan import ClientTask

# Strategies whose step follows from the weighted mean alone
_OF_MEANS = ("FedProx", "FedAvgWithStragglerDrop", "FedAvg", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi")


def check_secure_aggregation(config: Config) -> None:
    """Raise UserError for settings under which masked sums would protect nothing, or would not suffice."""
    if not _settings(config):
        return
    strategy, update = config.strategy, config.update
    refusals = {
        f"engine={config.engine.name}": config.is_deployment,
        "client=script": config.client.script is not None,
    }
    if refused := next((name for name, is_given in refusals.items() if is_given), None):
        raise UserError(
            f"secure_aggregation=masked is a simulation, in which one process has all keys: with {refused} the server "
            "would still receive every update; leave one of them out"
        )
    if strategy.name not in _OF_MEANS or "weighted_by_key" in strategy.arguments:
        raise UserError(
            "secure_aggregation=masked gives the server one mean, weighted by examples, and no single update, which "
            f"strategy._target_={strategy.target} as set needs; use strategy=fedprox or fedavg"
        )
    if config.privacy.is_on or config.arrival.name == "buffered":
        setting, needed = ("privacy=client", "clips") if config.privacy.is_on else ("arrival=buffered", "discounts")
        raise UserError(
            f"{setting} {needed} each single update on the server, which secure_aggregation=masked hides; leave one of "
            "them out"
        )
    if update.top_k or update.quantise:
        raise UserError(
            f"secure_aggregation=masked sums values at the same positions and of one scale, but update="
            f"{'top_k' if update.top_k else 'quantise'} sends others; use update=float32, partial or none"
        )
    if config.on_divergence == "continue":
        raise UserError(
            "on_divergence=continue lets updates pass that are nan, which no masked sum can hold; with "
            "secure_aggregation=masked use stop or drop"
        )


def _settings(config: Config) -> Masked | None:
    made: Masked | None = build("secure_aggregation", config.secure_aggregation, Masked | None)
    return made


def secure_sums(
    config: Config, facts: Facts, layout: Layout, cohort: Callable[[int], Sequence[ClientTask]]
) -> SecureSums | None:
    """Return how a run sums masked updates; None if the server gets every update.

    Args:
        config: The run's.
        facts: The clients' sizes.
        layout: Of the model.
        cohort: Returns a round's tasks, dropped ones included.

    Raises:
        UserError: If the largest possible sum does not fit, a round has too few clients, or the model has buffers.
    """
    settings = _settings(config)
    if settings is None:
        return None
    if layout.buffers:
        raise UserError(
            "secure_aggregation=masked sums trained parameters only, but this model has "
            f"{layout.buffers[0]}; use a model without batch norm, such as model=resnet18_gn or cnn"
        )
    num = config.clients_per_round or facts.num_clients
    if config.sampling == "poisson":  # a cohort may have any size
        num = facts.num_clients
    settings.threshold_of(num)
    weighs_examples = config.sampling != "proportional"
    most = int(np.sort(facts.sizes)[-num:].sum()) if weighs_examples else num
    return SecureSums(
        settings,
        settings.ring(most, num),
        cohort=lambda round_num: [(task.client, task.draw) for task in cohort(round_num)],
        weighs_examples=weighs_examples,
        seed=config.seed,
        repetition=config.repeat_num,
    )
