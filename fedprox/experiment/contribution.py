"""Assembly of the measurement of contributions from the configuration, and what does not go with it."""

from collections.abc import Callable

import torch
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedprox.config.instantiate import build
from fedprox.config.schema import Config
from fedprox.data.federated import FederatedData
from fedprox.errors import UserError
from fedprox.evaluation.evaluators import evaluator_on_test_set
from fedprox.evaluation.shapley import Shapley
from fedprox.experiment.objective import loss as own_loss
from fedprox.federation.contribution import MAX_CLIENTS, Contribution
from fedprox.strategies.fedprox import FedProx
from fedprox.strategies.updates import Arrays

Loss = Callable[[Arrays], float]


def check_contribution(config: Config) -> None:
    """Raise UserError for settings under which an update has no value that this process could measure."""
    if _settings(config) is None:
        return
    if config.has_sites or config.client.script is not None or config.is_deployment:
        raise UserError(
            "contribution=shapley measures models on the server's test set, which a federation's server, dataset=sites "
            "and client=script do not have; use a data set that this process divides"
        )
    if config.secure_aggregation.name != "none":
        raise UserError(
            "contribution=shapley needs every single update, which secure_aggregation=masked hides; leave one of them "
            "out"
        )
    averaged = {
        "privacy=client": config.privacy.is_on,
        "arrival=buffered": config.arrival.name == "buffered",
        f"personalisation={config.personalisation.name}": config.personalisation.keeps_parts,
    }
    if refused := next((name for name, is_given in averaged.items() if is_given), None):
        raise UserError(
            "contribution=shapley measures weighted means of whole models that start at one model, which the server "
            f"does not make with {refused}; leave one of them out"
        )
    if not config.strategy.target.startswith("fedprox.strategies.fedprox."):
        raise UserError(
            "contribution=shapley needs a strategy whose model is the weighted mean of the updates, got "
            f"strategy._target_={config.strategy.target}; use strategy=fedprox, fedavg or feddane"
        )


def test_loss(config: Config, device: str, data: FederatedData, model: nn.Module) -> Loss | None:
    """Return the function that measures a model's test loss for contributions; None unless they are measured."""
    if _settings(config) is None:
        return None
    measure = evaluator_on_test_set(model, data, device, loss=own_loss(config))

    def loss(arrays: Arrays) -> float:
        found = measure({name: torch.from_numpy(array) for name, array in arrays.items()}).loss
        assert found is not None
        return found

    return loss


def contribution(config: Config, num_clients: int, strategy: Strategy, loss: Loss | None) -> Contribution | None:
    """Return what measures the clients' contributions; None if nobody asks for them.

    Raises:
        UserError: If a round has too many clients.
    """
    settings = _settings(config)
    if settings is None or loss is None:
        return None
    num = num_clients if config.sampling == "poisson" else config.clients_per_round or num_clients
    if num > MAX_CLIENTS:
        raise UserError(
            f"contribution=shapley takes at most {MAX_CLIENTS} clients a round, which come one by one in every "
            f"permutation, got {num}; lower clients_per_round"
        )
    assert isinstance(strategy, FedProx)
    weighted_by = None if config.sampling == "proportional" else strategy.weighted_by_key
    return Contribution(settings, loss, weighted_by, config.seed, config.repeat_num)


def _settings(config: Config) -> Shapley | None:
    made: Shapley | None = build("contribution", config.contribution, Shapley | None)
    return made
