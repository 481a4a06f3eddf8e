"""The parts of an experiment, each from the checked configuration: model, plan, engine, evaluation."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedprox.config.instantiate import build
from fedprox.config.schema import client_device
from fedprox.data.augmentation import PadCropFlip
from fedprox.data.federated import FederatedData
from fedprox.errors import UserError, one_line
from fedprox.evaluation.evaluators import FederationEvaluator, evaluator_on_test_set
from fedprox.experiment.data import data_name
from fedprox.experiment.model_checks import (
    check_held,
    check_smallest_batch,
    check_takes_data,
    check_trains,
    make_lazy_layers,
)
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.client_state import LocalStatistics
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.rounds import Engine, Evaluate, RoundSettings
from fedprox.federation.schedules import AdaptiveMu, ConstantMu, MuSchedule, learning_rate_factor
from fedprox.federation.strategy_calls import repeatable
from fedprox.federation.strategy_checks import fit
from fedprox.plan.plan import CohortPlan
from fedprox.plan.protocols import ExperimentProtocol
from fedprox.runs.loggers.interface import Logger
from fedprox.seeds import Stream, generator
from fedprox.solvers.generators import seeded
from fedprox.solvers.problem import SgdSettings
from fedprox.strategies.arrays import to_params

_log = logging.getLogger("fedprox")


def initial_model(config: Mapping[str, Any], data: FederatedData) -> nn.Module:
    """Return the model with its initial weights; the global generators are left as they were."""
    seed = generator(config["seed"], Stream.INIT, repetition=config.get("repeat_num", 0)).integers(2**31)
    input_shape = data.data.features.shape[1:]
    init = config["model"].get("init", "default")
    node = {key: value for key, value in config["model"].items() if key != "init"}
    target = node["_target_"]
    with seeded(int(seed)):
        torch.manual_seed(int(seed))  # also of GPUs, on which a model may make its weights
        model: nn.Module = build(
            {"model": node}, "model", nn.Module, input_shape=input_shape, num_classes=data.data.num_classes
        )
        make_lazy_layers(model, target, data.data)
    check_held(model, target)
    if init == "zeros":
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    elif init != "default":
        _load_weights(model, init)
    check_takes_data(model, target, data.data)
    check_smallest_batch(model, config["batch_size"], data, config["last_batch"])
    check_trains(model, target, config["batch_size"], data.data)
    return model


def _load_weights(model: nn.Module, file: str) -> None:
    """Put the weights of a safetensors file into a model.

    Raises:
        UserError: If there is no such file, or it is another model's.
    """
    try:
        weights = load_file(file)
        _check_weights(weights, model.state_dict())
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"model.init={file} gives this model no weights: {one_line(error)}; "
            "name a model.safetensors of the same model, or use default or zeros"
        ) from error


def _check_weights(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for a tensor that torch would take and that no model of ours has."""
    for name, tensor in weights.items():
        if name in own and tensor.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{name} is of type {tensor.dtype}, but the model's is of {own[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has numbers that are not finite")


def strategy(config: Mapping[str, Any]) -> Strategy:
    """Return the strategy as its class makes it; what that draws from global generators follows from the seed.

    Raises:
        UserError: If it cannot be made like that, or is of no use here.
    """
    rng = generator(config["seed"], Stream.STRATEGY, repetition=config.get("repeat_num", 0))
    with repeatable(rng):
        made: Strategy = build(config, "strategy", Strategy)
    fit(made, config["mu"])
    return made


def plan(config: Mapping[str, Any], data: FederatedData, protocol: ExperimentProtocol) -> CohortPlan:
    """Return who takes part in which round, and with how much work."""
    return protocol.plan(
        client_sizes=data.train.sizes,
        client_ids=data.client_ids,
        clients_per_round=config["clients_per_round"],
        num_epochs=config["num_epochs"],
        batch_size=config["batch_size"],
        stragglers_fraction=config["stragglers_fraction"],
        sampling=config["sampling"],
        last_batch=config["last_batch"],
        seed=config["seed"],
        repetition=config.get("repeat_num", 0),
    )


def local_statistics(config: Mapping[str, Any], arrays: ArrayRecord) -> LocalStatistics | None:
    """Return the clients' own batch statistics, None where they are averaged; a model without any is only told of."""
    if config["batch_statistics"] == "averaged":
        return None
    statistics = LocalStatistics(arrays)
    if not statistics:
        _log.warning("batch_statistics=local changes nothing: this model has no batch norm with running statistics")
    return statistics


def engine(config: Mapping[str, Any], data: FederatedData, model: nn.Module) -> Engine:
    """Return where the clients compute."""
    augmentation = build(config, "augmentation", PadCropFlip | None)
    if augmentation:
        augmentation.check(data.data.features.shape[1:])
    sgd = SgdSettings(
        learning_rate=config["learning_rate"],
        batch_size=config["batch_size"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        mixed_precision=config["mixed_precision"],
        last_batch=config["last_batch"],
    )
    spec = ClientSpec(data, model, sgd, client_device(config), config["solver"], augmentation)
    return build(config, "engine", Engine, spec)  # type: ignore[no-any-return]


def mu(config: Mapping[str, Any]) -> MuSchedule:
    """Return the mu of every round, or what adapts it to the training loss."""
    settings = config["adaptive_mu"]
    if not settings["enabled"]:
        return ConstantMu(float(config["mu"]))
    initial = config["mu"] if settings["initial"] is None else settings["initial"]
    return AdaptiveMu(initial, settings["step"], settings["patience"])


def schedule(config: Mapping[str, Any]) -> Callable[[int], float]:
    """Return what the learning rate is multiplied by, by round."""
    settings = config["schedule"]
    return lambda round_num: learning_rate_factor(settings["name"], round_num, config["num_rounds"], settings["final"])


def evaluation(config: Mapping[str, Any], data: FederatedData, model: nn.Module) -> Evaluate:
    """Return the function that measures global models, on server_device."""
    device, settings = config["server_device"], config["evaluation"]
    details = {name: settings.get(name, False) for name in ("per_class", "per_client")}
    if details["per_client"] and not len(data.held_out.indices):
        raise UserError(
            "evaluation.per_client=true measures every client on its own held-out examples, and no client of "
            f"dataset={data_name(config)} has any with hold_out={config['hold_out']:g}; raise hold_out"
        )
    measure = evaluator_on_test_set(model, data, device, **details)
    if settings["name"] == "clients":
        measure = FederationEvaluator(model, data, device, test=measure)
    return lambda arrays: measure(to_params(arrays))


def round_settings(config: Mapping[str, Any]) -> RoundSettings:
    """Return what the rounds have in common."""
    on_failure = ("on_client_error", "on_divergence", "round_timeout", "on_timeout")
    return RoundSettings(
        config["num_rounds"],
        mu=mu(config),
        learning_rate_factor=schedule(config),
        evaluate_every=config["evaluation"]["every"],
        measure_gamma=config["evaluation"]["name"] == "clients",
        failures=FailurePolicy(*(config[name] for name in on_failure)),
    )


def loggers(config: Mapping[str, Any]) -> dict[str, Logger]:
    """Return the run's loggers by name; nothing is written before they begin."""
    groups = {name: f"logger.{name}" for name in config["logger"]}
    return {name: build({group: config["logger"][name]}, group, Logger) for name, group in groups.items()}
