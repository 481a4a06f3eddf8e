"""Assembly of personal models from the configuration: what stays at clients, how it is trained and measured."""

import logging
from collections.abc import Collection

import numpy as np
from flwr.app import ArrayRecord
from torch import nn

from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.data.federated import FederatedData
from fedprox.errors import UserError
from fedprox.evaluation.personal import HeldOut
from fedprox.experiment.data import attack_of, attackers, data_name
from fedprox.federation.client_state import ClientState, LocalArrays, PersonalModels, statistics_of
from fedprox.federation.messages import Engine
from fedprox.federation.personal_evaluation import FineTuned, PersonalEvaluation, kept_models
from fedprox.federation.rounds import Evaluate, RoundSettings
from fedprox.models import layers
from fedprox.plan.fine_tuning import FineTuning
from fedprox.solvers.personal import Apfl, Ditto, PersonalMethod
from fedprox.strategies.arrays import to_numpy, to_params

_log = logging.getLogger("fedprox")
_PARTS = {"fedper": layers.head, "fedrep": layers.head, "lg": layers.body, "fedbn": layers.norms}
_REMEDIES = {"fedbn": "a model with batch norm, such as model=mlp_bn"}
_SHOWN = 6  # names of parameters in an error
_ON_SERVER = "needs the clients' own examples in one process"


def check_personalisation(config: Config) -> None:
    """Raise UserError for settings with which personal models have no meaning."""
    name = f"personalisation={config.personalisation.name}"
    if config.personalisation.name == "none":
        return
    if config.is_deployment or config.has_sites:
        setting = "engine=deployment" if config.is_deployment else "dataset=sites"
        raise UserError(f"{name} {_ON_SERVER}, but with {setting} they stay at their site; leave it out")
    if config.client.script is not None:
        raise UserError(f"{name} {_ON_SERVER}, but with client=script only the script sees them; leave it out")
    if config.sampling == "proportional" and config.personalisation.name != "fine_tuning":
        raise UserError(
            f"{name} keeps one state of each client, but with sampling=proportional a client may train twice in a "
            "round; use sampling=uniform"
        )
    if config.personalisation.keeps_parts:
        _check_parts(config, name)
    elif config.batch_statistics == "local":
        raise UserError(
            f"batch_statistics=local goes with one model per client, but {name} has two, each with statistics of its "
            "own; use batch_statistics=averaged"
        )


def _check_parts(config: Config, name: str) -> None:
    """Raise UserError for settings that need a global model of which all parts are trained."""
    if config.strategy.name == "FedDane":
        raise UserError(
            f"{name} keeps parts of the model at clients, but strategy=feddane averages gradients of the whole model; "
            "use strategy=fedprox"
        )
    if config.adaptive_mu.enabled:
        raise UserError(
            f"adaptive_mu.enabled=true follows the global model's training loss, but with {name} no client uses that "
            "model; give mu a value"
        )


def local_names(config: Config, model: nn.Module) -> tuple[str, ...]:
    """Return the names of the model's arrays that never leave a client, in the model's order.

    Raises:
        UserError: If no parameter stays, or none is shared.
    """
    settings, target = config.personalisation, config.model
    if not settings.keeps_parts:
        return ()
    chosen = _PARTS[settings.name](model) if settings.names is None else layers.matching(model, settings.names)
    local = layers.with_tied(model, chosen)
    trained = [name for name, own in model.named_parameters() if own.requires_grad]
    staying = [name for name in trained if name in local]
    what = f"personalisation={settings.name}" if settings.names is None else f"personalisation.names={settings.names}"
    more = [f"{len(trained) - _SHOWN} more"] if len(trained) > _SHOWN else []
    known = f"model={target.name}, which has {', '.join([*trained[:_SHOWN], *more])}"
    if not staying:
        remedy = _REMEDIES.get(settings.name, "a model with several layers, such as model=mlp")
        named = f"take {remedy}, or name some in personalisation.names"
        raise UserError(
            f"{what} finds no parameter to keep at clients in {known}; "
            f"{named if settings.names is None else 'name some of these'}"
        )
    if len(staying) == len(trained):
        raise UserError(
            f"{what} would keep every parameter at clients in {known}, and nothing would be shared; take a model with "
            "several layers, such as model=mlp, or personalisation=local"
        )
    return tuple(name for name in model.state_dict() if name in local)


def personal_method(config: Config) -> PersonalMethod | None:
    """Return how clients train personal models beside the one that they send; None if they do not."""
    settings = config.personalisation
    if settings.name == "apfl":
        return Apfl(settings.alpha or 1.0)
    return Ditto(settings.weight or 0.0) if settings.keeps_models else None


def client_state(config: Config, arrays: ArrayRecord, local: Collection[str], num_clients: int) -> ClientState | None:
    """Return what clients keep from round to round; None for nothing.

    Raises:
        UserError: If it could need too much memory.
    """
    statistics = statistics_of(arrays) if config.batch_statistics == "local" else []
    if config.batch_statistics == "local" and not statistics:
        _log.warning("batch_statistics=local changes nothing: this model has no batch norm with running statistics")
    if config.personalisation.keeps_models:
        check_size(config, [*arrays], arrays, num_clients)
        return PersonalModels(arrays, config.on_divergence)
    check_size(config, local, arrays, num_clients)
    return LocalArrays(arrays, statistics, local) if statistics or local else None


def check_size(
    config: Config, names: Collection[str], arrays: ArrayRecord, num_clients: int, setting: str | None = None
) -> None:
    """Raise UserError if the clients that can have trained by the end would keep too much.

    Args:
        config: The configuration.
        names: What each of them keeps.
        arrays: The model.
        num_clients: How many there are.
        setting: Why they keep it; None for the personalisation.
    """
    most = min(num_clients, (config.clients_per_round or num_clients) * config.num_rounds)
    of_one = sum(to_numpy(arrays[name]).nbytes for name in names)
    if (size := most * of_one) > (limit := config.personalisation.max_bytes):
        setting = setting or f"personalisation={config.personalisation.name}"
        raise UserError(
            f"{setting} would keep {of_one:,} bytes of each of {most:,} clients, "
            f"{size:,} in all, more than personalisation.max_bytes={limit:,}; take fewer clients or a smaller model, "
            "or raise it"
        )


def held_out(config: Config, model: nn.Module, data: FederatedData, device: str) -> HeldOut:
    """Return the examples on which personal models are measured: those of clients that do not attack.

    Raises:
        UserError: If there are none.
    """
    attack = attack_of(config)
    counts = ~attackers(config, attack, data.num_clients) if attack else np.ones(data.num_clients, dtype=np.bool_)
    examples = HeldOut(model, data, device, counts)
    if not examples.sizes.any():
        raise UserError(
            f"personalisation={config.personalisation.name} measures every client on its own held-out examples, but no "
            f"client of dataset={data_name(config.dataset)} has any with hold_out={config.hold_out:g}; raise hold_out"
        )
    return examples


def personal_evaluation(
    config: Config, evaluate: Evaluate, examples: HeldOut, state: ClientState | None, grid: Engine, facts: Facts
) -> PersonalEvaluation:
    """Return the function that measures a global model, and the clients' own."""
    settings, rounds = config.personalisation, RoundSettings.of(config)
    if settings.name == "fine_tuning":
        plan = FineTuning(
            facts.sizes, settings.epochs or 1, config.batch_size, config.last_batch, config.seed, config.repeat_num
        )
        counted, at_once = np.flatnonzero(examples.sizes).tolist(), config.clients_per_round or facts.num_clients
        return PersonalEvaluation(
            evaluate, examples, FineTuned(grid, rounds.failures, plan, rounds.config, counted, at_once)
        )
    assert state
    if method := personal_method(config):
        initial = to_params(state.initial)
        return PersonalEvaluation(
            evaluate, examples, kept_models(state, method.model), lambda shared: method.model(shared, initial)
        )
    return PersonalEvaluation(evaluate, examples, kept_models(state, lambda shared, own: shared | own))
