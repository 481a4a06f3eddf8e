"""An experiment, from its configuration: data, model, plan, strategy, engine, evaluation, ready to run."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedprox.config import schema
from fedprox.config.checks import check_machine, check_targets
from fedprox.config.instantiate import build
from fedprox.config.schema import Config, Target
from fedprox.data.augmentation import PadCropFlip
from fedprox.data.federated import FederatedData
from fedprox.errors import UserError, one_line
from fedprox.evaluation.evaluators import FederationEvaluator, evaluator_on_test_set
from fedprox.experiment.data import data_name, divided_data
from fedprox.experiment.early_stopping import EarlyStopping
from fedprox.experiment.model_checks import (
    check_held,
    check_smallest_batch,
    check_takes_data,
    check_trains,
    make_lazy_layers,
)
from fedprox.federation import strategy_checks
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.client_state import LocalStatistics
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import Engine
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import Round
from fedprox.federation.rounds import Evaluate, RoundSettings, run_rounds
from fedprox.federation.schedules import AdaptiveMu, ConstantMu, MuSchedule, learning_rate_factor
from fedprox.plan.plan import CohortPlan
from fedprox.plan.protocols import ExperimentProtocol
from fedprox.process import announced
from fedprox.runs.checkpoint import Checkpoint
from fedprox.runs.loggers.interface import Logger
from fedprox.runs.writer import FEDERATION, METRICS, SPREAD
from fedprox.seeds import Stream, generator
from fedprox.solvers.generators import seeded
from fedprox.solvers.problem import SgdSettings
from fedprox.strategies.arrays import to_params, to_record

_log = logging.getLogger("fedprox")


@dataclass(frozen=True)
class Experiment:
    """Everything that a configuration describes, ready to run.

    Attributes:
        config: The configuration.
        data: All clients' examples.
        arrays: The initial model.
        strategy: On the planned cohorts.
        grid: Where clients compute.
        evaluate: Measures a global model.
        settings: What the rounds have in common.
    """

    config: Config
    data: FederatedData
    arrays: ArrayRecord
    strategy: PlannedStrategy
    grid: Engine
    evaluate: Evaluate
    settings: RoundSettings

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what a configuration describes.

        Raises:
            UserError: If a setting or a data file is wrong; nothing is computed then.
        """
        protocol, made = check_settings(config), strategy(config)
        with announced("reading and dividing the data", after_s=2.0):
            data = divided_data(config)
        model = initial_model(config, data)
        arrays = to_record(model.state_dict())
        statistics = local_statistics(config.batch_statistics, arrays)
        streams = {"seed": config.seed, "repetition": config.repeat_num}
        return cls(
            config,
            data,
            arrays,
            PlannedStrategy(made, plan(config, data, protocol), statistics, **streams),
            engine(config, data, model),
            evaluation(config, data, model),
            round_settings(config),
        )

    def rounds(self, start: Checkpoint | None = None) -> Iterator[Round]:
        """Yield the rounds from 0 on, or those after a checkpoint, whose state this experiment takes over."""
        return run_rounds(self.arrays, self.strategy, self.grid, self.evaluate, self.settings, start)

    def check_start(self, start: Checkpoint, run_dir: Path) -> None:
        """Raise UserError unless a checkpoint is of this experiment's model and has no more rounds than that.

        Types may differ: some strategies, such as FedAdam, make float64 of float32.
        """
        own, given = ({name: array.shape for name, array in each.items()} for each in (self.arrays, start.arrays))
        if own != given:
            raise UserError(f"{run_dir} holds a checkpoint of another model; bring its own back, or start the run anew")
        if start.round_num > self.config.num_rounds:
            raise UserError(
                f"num_rounds must be at least {start.round_num}, which {run_dir} has done, got {self.config.num_rounds}"
            )


def check_settings(config: Config) -> ExperimentProtocol:
    """Return the protocol, after every check that needs no data.

    Raises:
        UserError: If a setting is wrong.
    """
    check_machine(config)
    check_targets(config)
    strategy_checks.check_settings({"_target_": config.strategy.target, **config.strategy.arguments})
    loggers(config.logger)  # whether their libraries are there
    protocol: ExperimentProtocol = build("protocol", config.protocol, ExperimentProtocol)
    protocol.check(config.num_epochs, config.stragglers_fraction, config.sampling, config.last_batch)
    EarlyStopping(**config.early_stopping.model_dump()).check(columns(config))
    return protocol


def columns(config: Config) -> tuple[str, ...]:
    """Return the columns of metrics.csv."""
    federation = FEDERATION if config.evaluation.name == "clients" else ()
    spread = SPREAD if config.evaluation.per_client else ()
    return (*METRICS, *federation, *spread, *(("mu",) if config.adaptive_mu.enabled else ()))


def initial_model(config: Config, data: FederatedData) -> nn.Module:
    """Return the model with its initial weights; the global generators are left as they were."""
    seed = generator(config.seed, Stream.INIT, repetition=config.repeat_num).integers(2**31)
    input_shape = data.examples.features.shape[1:]
    target, init = config.model.target, config.model.init
    with seeded(int(seed)):
        torch.manual_seed(int(seed))  # also of GPUs, on which a model may make its weights
        offered = {"input_shape": input_shape, "num_classes": data.examples.num_classes}
        model: nn.Module = build("model", config.model, nn.Module, **offered)
        make_lazy_layers(model, target, data.examples)
    check_held(model, target)
    if init == "zeros":
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    elif init != "default":
        _load_weights(model, init)
    check_takes_data(model, target, data.examples)
    check_smallest_batch(model, config.batch_size, data, config.last_batch)
    check_trains(model, target, config.batch_size, data.examples)
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


def strategy(config: Config) -> Strategy:
    """Return the strategy as its class makes it; what that draws from global generators follows from the seed.

    Raises:
        UserError: If it cannot be made like that, or is of no use here.
    """
    rng = generator(config.seed, Stream.STRATEGY, repetition=config.repeat_num)
    with seeded(int(rng.integers(2**32))):
        made: Strategy = build("strategy", config.strategy, Strategy)
    strategy_checks.fit(made, config.mu)
    return made


def plan(config: Config, data: FederatedData, protocol: ExperimentProtocol) -> CohortPlan:
    """Return who takes part in which round, and with how much work."""
    return protocol.plan(
        client_sizes=data.train.sizes,
        client_ids=data.client_ids,
        clients_per_round=config.clients_per_round,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        stragglers_fraction=config.stragglers_fraction,
        sampling=config.sampling,
        last_batch=config.last_batch,
        seed=config.seed,
        repetition=config.repeat_num,
    )


def local_statistics(batch_statistics: str, arrays: ArrayRecord) -> LocalStatistics | None:
    """Return the clients' own batch statistics, None where they are averaged; a model without any is only told of."""
    if batch_statistics == "averaged":
        return None
    statistics = LocalStatistics(arrays)
    if not statistics:
        _log.warning("batch_statistics=local changes nothing: this model has no batch norm with running statistics")
    return statistics


def engine(config: Config, data: FederatedData, model: nn.Module) -> Engine:
    """Return where the clients compute."""
    augmentation = build("augmentation", config.augmentation, PadCropFlip | None)
    if augmentation:
        augmentation.check(data.examples.features.shape[1:])
    sgd = SgdSettings(
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        mixed_precision=config.mixed_precision,
        last_batch=config.last_batch,
    )
    spec = ClientSpec(data, model, sgd, config.client_device, config.solver, augmentation)
    return build("engine", config.engine, Engine, spec)  # type: ignore[no-any-return]


def mu(value: float, adaptive: schema.AdaptiveMu) -> MuSchedule:
    """Return the mu of every round, or what adapts it to the training loss."""
    if not adaptive.enabled:
        return ConstantMu(value)
    return AdaptiveMu(value if adaptive.initial is None else adaptive.initial, adaptive.step, adaptive.patience)


def schedule(settings: schema.Schedule, num_rounds: int) -> Callable[[int], float]:
    """Return what the learning rate is multiplied by, by round."""
    return lambda round_num: learning_rate_factor(settings.name, round_num, num_rounds, settings.final)


def evaluation(config: Config, data: FederatedData, model: nn.Module) -> Evaluate:
    """Return the function that measures global models, on server_device."""
    device, settings = config.server_device, config.evaluation
    if settings.per_client and not len(data.held_out.indices):
        raise UserError(
            "evaluation.per_client=true measures every client on its own held-out examples, and no client of "
            f"dataset={data_name(config.dataset)} has any with hold_out={config.hold_out:g}; raise hold_out"
        )
    measure = evaluator_on_test_set(model, data, device, per_class=settings.per_class, per_client=settings.per_client)
    if settings.name == "clients":
        measure = FederationEvaluator(model, data, device, test=measure)
    return lambda arrays: measure(to_params(arrays))


def round_settings(config: Config) -> RoundSettings:
    """Return what the rounds have in common."""
    return RoundSettings(
        config.num_rounds,
        mu=mu(config.mu, config.adaptive_mu),
        learning_rate_factor=schedule(config.schedule, config.num_rounds),
        evaluate_every=config.evaluation.every,
        measure_gamma=config.evaluation.name == "clients",
        failures=FailurePolicy(config.on_client_error, config.on_divergence, config.round_timeout, config.on_timeout),
    )


def loggers(targets: Mapping[str, Target]) -> dict[str, Logger]:
    """Return the run's loggers by name; nothing is written before they begin."""
    return {name: build(f"logger.{name}", target, Logger) for name, target in targets.items()}
