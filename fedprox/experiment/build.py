"""Assembly of an experiment from its configuration: data, model, plan, strategy, engine, evaluation."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedprox.channel.poisoning import Backdoor
from fedprox.config.checks import check_machine, check_targets
from fedprox.config.instantiate import build
from fedprox.config.schema import Config, Target
from fedprox.data.augmentation import PadCropFlip
from fedprox.data.facts import Facts
from fedprox.data.federated import FederatedData
from fedprox.engines.superlink import SuperLinkGrid
from fedprox.errors import UserError
from fedprox.evaluation.evaluators import FederationEvaluator, evaluator_on_test_set, with_attack_success, with_metrics
from fedprox.evaluation.metrics import Evaluation
from fedprox.evaluation.personal import HeldOut
from fedprox.experiment.algorithms import check_algorithm, more_bytes, prepare
from fedprox.experiment.arrival import check_arrival, cohort_size, timed
from fedprox.experiment.channel import channel
from fedprox.experiment.contribution import Loss, check_contribution, contribution, test_loss
from fedprox.experiment.data import attack_of, divided_data
from fedprox.experiment.early_stopping import EarlyStopping, improves_upwards
from fedprox.experiment.model import initial_model, new_model
from fedprox.experiment.objective import check_objective, loss, metrics, sgd_settings, solver
from fedprox.experiment.personal import (
    check_personalisation,
    client_state,
    held_out,
    local_names,
    personal_evaluation,
    personal_method,
)
from fedprox.experiment.privacy import (
    check_privacy,
    private_mean,
    rounds_within_budget,
    with_privacy_cost,
)
from fedprox.experiment.scripts import MODEL_OF_CLIENTS, check_script, facts_about, first_model, script_spec
from fedprox.experiment.secure_sums import check_secure_aggregation, secure_sums
from fedprox.experiment.sites import check_sites, connect
from fedprox.experiment.steps import check_steps, velocities
from fedprox.experiment.trial import Objective
from fedprox.federation import strategy_checks
from fedprox.federation.channel import Channel, Layout
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.client_evaluation import ClientEvaluation
from fedprox.federation.client_state import ClientState
from fedprox.federation.messages import Engine
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import Round
from fedprox.federation.rounds import Evaluate, RoundSettings, run_rounds
from fedprox.federation.script_client import ScriptSpec
from fedprox.plan.plan import CohortPlan
from fedprox.plan.protocols import ExperimentProtocol
from fedprox.process import announced, only_new_garbage
from fedprox.runs.checkpoint import Checkpoint
from fedprox.runs.loggers.interface import Logger
from fedprox.runs.reader import COMPLETE, read_record
from fedprox.runs.writer import (
    ATTACK,
    BYTES,
    CLIENTS,
    FEDERATION,
    METRICS,
    PERSONAL,
    PRIVACY,
    SPREAD,
    STALENESS,
)
from fedprox.seeds import Stream, generator
from fedprox.solvers.choice import fastest_device
from fedprox.solvers.generators import seeded
from fedprox.strategies.arrays import to_params, to_record
from fedprox.strategies.private import PrivateMean

_log = logging.getLogger("fedprox")
# Settings that a plan takes by the names that they have in the configuration
_PLAN_SETTINGS = {
    "num_epochs",
    "batch_size",
    "stragglers_fraction",
    "sampling",
    "last_batch",
    "seed",
}


@dataclass(frozen=True)
class Experiment:
    """What a configuration describes, ready to run.

    Attributes:
        config: The configuration.
        facts: What is known of the clients' data.
        arrays: The initial model.
        strategy: Runs on the planned cohorts.
        grid: Where clients compute.
        evaluate: Measures a global model.
        settings: What the rounds have in common.
        channel: What happens to updates on their way to the server.
        private: The strategy, if it is private.
    """

    config: Config
    facts: Facts
    arrays: ArrayRecord
    strategy: PlannedStrategy
    grid: Engine
    evaluate: Evaluate
    settings: RoundSettings
    channel: Channel
    private: PrivateMean | None = None

    @classmethod
    def of(cls, config: Config, flower_grid: Grid | None = None) -> Self:
        """Return the experiment that a configuration describes.

        Args:
            config: The configuration.
            flower_grid: Flower's own grid in a ServerApp, for engine=deployment; None in a simulation.

        Raises:
            UserError: If a setting or a data file is wrong; then nothing has been computed.
        """
        protocol, made = check_settings(config), strategy(config)
        check_algorithm(config, made)
        check_arrival(config, made, protocol)
        clients = _clients(config, flower_grid)
        facts, settings = clients.facts, RoundSettings.of(config)
        strategy_checks.check_cohort(made, config.clients_per_round or facts.num_clients)
        arrays = clients.arrays
        prepare(config, made, facts, clients.layout, arrays)
        secure = secure_sums(config, facts, clients.layout, lambda round_num: planned.cohort(round_num))
        measured = contribution(config, facts.num_clients, made, clients.loss)
        way = channel(config, facts.num_clients, arrays, clients.layout, measured, secure)
        way.more_bytes = more_bytes(made, arrays, clients.layout)
        private = _private(config, facts, clients.layout, way)
        state = velocities(config, arrays, clients.layout.trained, facts.num_clients) or client_state(
            config, arrays, clients.layout.local, facts.num_clients
        )
        planned = PlannedStrategy(
            private or made,
            timed(config, plan(config, facts, protocol), arrays, way),
            state,
            has_sizes=facts.has_sizes,
            trained=clients.layout.trained,
            seed=config.seed,
            repetition=config.repeat_num,
        )
        return cls(
            config,
            facts,
            arrays,
            strategy=planned,
            grid=clients.grid,
            evaluate=_evaluate(config, clients, settings, private, state),
            settings=settings,
            channel=way,
            private=private,
        )

    def rounds(self, start: Checkpoint | None = None) -> Iterator[Round]:
        """Yield the rounds from 0 on, or those after a checkpoint, from whose state the experiment continues."""
        settings = self._within_budget(start) if self.private else self.settings
        with only_new_garbage():  # libraries and data stay
            yield from run_rounds(self.arrays, self.strategy, self.grid, self.evaluate, settings, start, self.channel)

    def _within_budget(self, start: Checkpoint | None) -> RoundSettings:
        """Return the settings of rounds that end where the privacy budget does."""
        assert self.private
        done = 0
        if start:
            self.strategy.restore(start.carried["strategy"])
            done = start.round_num
        more = rounds_within_budget(self.config, self.private, self.config.num_rounds - done)
        return replace(self.settings, num_rounds=done + more)

    def check_start(self, start: Checkpoint, run_dir: Path) -> None:
        """Raise UserError unless a checkpoint holds this experiment's model and no more rounds than it has.

        Types may differ: some strategies, such as FedAdam, turn float32 into float64.
        """
        own, given = ({name: array.shape for name, array in each.items()} for each in (self.arrays, start.arrays))
        if own != given:
            raise UserError(f"{run_dir} holds a checkpoint of another model; restore its own, or start a new run")
        if start.round_num > self.config.num_rounds:
            raise UserError(
                f"num_rounds must be at least {start.round_num}, the rounds that {run_dir} has completed, "
                f"got {self.config.num_rounds}"
            )
        is_complete = read_record(run_dir / "run.json")["status"] in COMPLETE
        if is_complete and self.private and self._within_budget(start).num_rounds == start.round_num:
            spent = self.private.ledger.epsilon(self.config.privacy.delta or 0.0)
            raise UserError(
                f"{run_dir} has spent its privacy budget: epsilon {spent:.4g} after round {start.round_num}, and "
                f"another round would exceed {self.config.privacy.budget:g}; start a new run on other clients' data"
            )
        if arrivals := self.strategy.arrivals:
            arrivals.check_start(start.round_num, start.carried["strategy"].get("arrivals", {}), run_dir)


class _Clients(NamedTuple):
    """The clients of an experiment.

    Attributes:
        facts: What is known of their data.
        arrays: The initial model.
        layout: Which of its arrays are trained.
        grid: Where they compute.
        evaluate: Measures a global model; None if the clients do.
        held_out: What personal models are measured on; None without any.
        loss: Returns a model's test loss, for contributions; None unless they are measured.
    """

    facts: Facts
    arrays: ArrayRecord
    layout: Layout
    grid: Engine
    evaluate: Evaluate | None
    held_out: HeldOut | None = None
    loss: Loss | None = None


def _evaluate(
    config: Config,
    clients: _Clients,
    settings: RoundSettings,
    private: PrivateMean | None,
    state: ClientState | None,
) -> Evaluate:
    """Return the function that measures global models, what they cost, and the clients' own models."""
    num_clients, per_client = clients.facts.num_clients, config.evaluation.per_client
    by_clients = ClientEvaluation(clients.grid, num_clients, settings.failures, per_client=per_client)
    evaluate = clients.evaluate or by_clients
    if private:
        evaluate = with_privacy_cost(evaluate, private, config.privacy)
    if clients.held_out:
        evaluate = personal_evaluation(config, evaluate, clients.held_out, state, clients.grid, clients.facts)
    return evaluate


def _clients(config: Config, flower_grid: Grid | None) -> _Clients:
    """Return the clients that a configuration describes."""
    if config.client.script is not None:
        return _scripts(config, flower_grid)
    if flower_grid and config.has_sites:
        return _real_sites(config, flower_grid)
    return _own(config, flower_grid)


def _own(config: Config, flower_grid: Grid | None) -> _Clients:
    """Return clients whose data this process has."""
    with announced("reading and dividing the data", after_s=2.0):
        data = divided_data(config)
    facts = Facts.of(data)
    model = initial_model(config, facts)
    local = local_names(config, model)
    spec = client_spec(config, data, model, local)
    device = server_device(config, spec)
    examples = None if config.personalisation.name == "none" else held_out(config, model, data, device)
    grid = engine(config, spec, flower_grid)
    measured_here = None if config.has_sites else evaluation(config, device, data, model)
    layout, measured_loss = Layout.of(model, local), test_loss(config, device, data, model)
    return _Clients(facts, to_record(model.state_dict()), layout, grid, measured_here, examples, measured_loss)


def _real_sites(config: Config, flower_grid: Grid) -> _Clients:
    """Return clients that are the sites of a federation, which have their own data."""
    nodes: SuperLinkGrid = build("engine", config.engine, SuperLinkGrid, flower_grid, config.num_clients)
    facts, grid = connect(config, nodes)
    model = initial_model(config, facts)
    return _Clients(facts, to_record(model.state_dict()), Layout.of(model), grid, None)


def _scripts(config: Config, flower_grid: Grid | None) -> _Clients:
    """Return clients that are runs of a training script."""
    spec = script_spec(config)
    facts, grid = facts_about(spec), engine(config, spec, flower_grid)
    with announced("asking the script for its initial model", after_s=2.0):
        given = None if config.model.target == MODEL_OF_CLIENTS else new_model(config, None).state_dict()
        first = first_model(config, grid, given and {name: tensor.numpy() for name, tensor in given.items()})
    return _Clients(
        facts, first.arrays, Layout.unknown(first.arrays), grid, None if first.evaluates else _measure_nothing
    )


def _measure_nothing(round_num: int, arrays: ArrayRecord) -> Evaluation:
    """Return no measurement of a global model."""
    return Evaluation(None, None)


def check_settings(config: Config) -> ExperimentProtocol:
    """Return the protocol, after all checks that need no data.

    Raises:
        UserError: If a setting is wrong.
    """
    check_machine(config)
    check_targets(config)
    if config.has_sites:
        check_sites(config)
    if config.client.script is not None:
        check_script(config)
    check_privacy(config)
    check_personalisation(config)
    check_secure_aggregation(config)
    check_contribution(config)
    check_objective(config, attack_of(config))
    check_steps(config)
    strategy_checks.check_settings({"_target_": config.strategy.target, **config.strategy.arguments})
    loggers(config.logger)  # fails if a library is missing
    protocol: ExperimentProtocol = build("protocol", config.protocol, ExperimentProtocol)
    protocol.check(config.num_epochs, config.stragglers_fraction, config.sampling, config.last_batch)
    early_stopping(config).check(measured_columns(config))
    objective(config)
    return protocol


def early_stopping(config: Config) -> EarlyStopping:
    """Return what ends a run early."""
    settings = config.early_stopping
    bar = [(int(round_num), value) for round_num, value in config.pruning_bar or ()]
    upwards = settings.metric is not None and improves_upwards(settings.metric, _own_metrics(config))
    return EarlyStopping(**settings.model_dump(), upwards=upwards, bar=bar)


def objective(config: Config) -> Objective:
    """Return what a search optimises: without `objective`, the accuracy, or the loss if there is no accuracy.

    Raises:
        UserError: If it is not a column that measures the model.
    """
    known = measured_columns(config)
    default = "accuracy" if "test_accuracy" in known else "loss"
    return Objective.of(config.objective or default, known, _own_metrics(config))


def measured_columns(config: Config) -> list[str]:
    """Return the columns of metrics.csv that have values: regression has no accuracy."""
    empty = ("test_accuracy", "train_accuracy") if loss(config).task == "regression" else ()
    return [column for column in columns(config) if column not in empty]


def _own_metrics(config: Config) -> dict[str, str]:
    return {name: metric.target for name, metric in config.metrics.items()}


def columns(config: Config) -> tuple[str, ...]:
    """Return the columns of metrics.csv."""
    attack = attack_of(config)
    return (
        *METRICS,
        *(FEDERATION if config.evaluation.name == "clients" else ()),
        *(SPREAD if config.evaluation.per_client else ()),
        *(f"test_{name}" for name in config.metrics),
        *(("mu",) if config.adaptive_mu.enabled else ()),
        *(PERSONAL if config.personalisation.name != "none" else ()),
        *(BYTES if config.update.count_bytes else ()),
        *(("virtual_time_s",) if config.devices.name != "none" else ()),
        *(STALENESS if config.arrival.name == "buffered" else ()),
        *(ATTACK[: 2 if isinstance(attack, Backdoor) else 1] if attack else ()),
        *(PRIVACY if config.privacy.is_on else ()),
    )


def client_columns(config: Config) -> tuple[str, ...]:
    """Return the columns of clients.csv."""
    return (
        *CLIENTS,
        *(("bytes_up",) if config.update.count_bytes else ()),
        *(("staleness",) if config.arrival.name == "buffered" else ()),
        *(("is_malicious",) if attack_of(config) else ()),
        *(("is_clipped",) if config.privacy.is_on else ()),
        *(("contribution",) if config.contribution.name != "none" else ()),
        *(("num_clipped",) if config.secure_aggregation.name != "none" else ()),
    )


def strategy(config: Config) -> Strategy:
    """Return the strategy; what its class draws from global generators follows from the seed.

    Raises:
        UserError: If it cannot be made, or does not work here.
    """
    rng = generator(config.seed, Stream.STRATEGY, repetition=config.repeat_num)
    with seeded(int(rng.integers(2**32))):
        made: Strategy = build("strategy", config.strategy, Strategy)
    strategy_checks.fit(made, config.mu)
    return made


def _private(config: Config, facts: Facts, layout: Layout, way: Channel) -> PrivateMean | None:
    """Return the private strategy, which replaces FedProx's and FedAvg's; None without privacy."""
    if not config.privacy.is_on:
        return None
    shared = [name for name in layout.trained if name not in layout.local]
    return private_mean(config, facts, layout, way.names or shared)


def plan(config: Config, facts: Facts, protocol: ExperimentProtocol) -> CohortPlan:
    """Return the plan: which clients take part in which round, and with how much work."""
    return protocol.plan(
        client_sizes=facts.sizes,
        client_ids=facts.client_ids,
        clients_per_round=cohort_size(config, facts.num_clients),
        repetition=config.repeat_num,
        **config.model_dump(include=_PLAN_SETTINGS),
    )


def client_spec(config: Config, data: FederatedData, model: nn.Module, local: tuple[str, ...] = ()) -> ClientSpec:
    """Return what an engine's processes need to play any client, given what never leaves it."""
    augmentation = build("augmentation", config.augmentation, PadCropFlip | None)
    if augmentation:
        augmentation.check(data.examples.features.shape[1:])
    sgd, asked_solver, asked = sgd_settings(config), solver(config), config.client_device
    device = fastest_device(asked_solver, model, sgd, asked, augments=augmentation is not None)
    if device != asked:
        _log.info(
            "clients compute on the CPU, not on %s: logistic regression has a faster, compiled solver there", asked
        )
    cohort = config.clients_per_round or data.num_clients
    settings = config.personalisation
    return ClientSpec(
        *(data, model, sgd, device, asked_solver, augmentation, cohort),
        personal=personal_method(config),
        head=local if settings.name == "fedrep" else (),
        body_epochs=settings.body_epochs or 1,
    )


def server_device(config: Config, spec: ClientSpec) -> str:
    """Return the device that measures global models: the CPU if clients compute there against the settings."""
    return config.server_device if spec.device == config.client_device else spec.device


def engine(config: Config, spec: ClientSpec | ScriptSpec, flower_grid: Grid | None) -> Engine:
    """Return the engine: on a federation's SuperNodes if Flower's grid is given, else one that plays clients itself."""
    if flower_grid is None:
        made: Engine = build("engine", config.engine, Engine, spec)
    else:
        made = build("engine", config.engine, Engine, flower_grid, spec.num_clients)
    return made


def evaluation(config: Config, device: str, data: FederatedData, model: nn.Module) -> Evaluate:
    """Return the function that measures global models on data that this process has."""
    settings = config.evaluation
    given, details = loss(config), {"per_class": settings.per_class, "per_client": settings.per_client}
    measure = evaluator_on_test_set(model, data, device, **details, loss=given)
    if settings.name == "clients":
        measure = FederationEvaluator(model, data, device, test=measure, loss=given)
    if config.metrics:
        measure = with_metrics(measure, model, data, device, metrics(config))
    if isinstance(attack := attack_of(config), Backdoor):
        measure = with_attack_success(measure, model, attack.trial(data), device)
    return lambda _, arrays: measure(to_params(arrays))


def loggers(targets: Mapping[str, Target]) -> dict[str, Logger]:
    """Return the run's loggers by name; they write nothing before they begin."""
    return {name: build(f"logger.{name}", target, Logger) for name, target in targets.items()}
