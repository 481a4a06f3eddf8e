"""A configuration made ready to run: data, model, plan, strategy, engine, evaluation; it goes no further than here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flwr.app import ArrayRecord

from fedprox.config.checks import check
from fedprox.config.instantiate import build
from fedprox.data.federated import FederatedData
from fedprox.errors import UserError
from fedprox.experiment import build as assembly
from fedprox.experiment import data as data_assembly
from fedprox.experiment.early_stopping import EarlyStopping
from fedprox.federation import strategy_checks
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import Round
from fedprox.federation.rounds import Engine, Evaluate, RoundSettings, run_rounds
from fedprox.plan.protocols import ExperimentProtocol
from fedprox.process import announced
from fedprox.runs.checkpoint import Checkpoint
from fedprox.runs.writer import FEDERATION, METRICS, SPREAD
from fedprox.strategies.arrays import to_record


@dataclass(frozen=True)
class Experiment:
    """Everything that a configuration describes, ready to run.

    Attributes:
        config: The resolved configuration as plain containers.
        data: All clients' examples.
        arrays: The initial model.
        strategy: On the planned cohorts.
        grid: Where clients compute.
        evaluate: Measures a global model.
        settings: What the rounds have in common.
    """

    config: Mapping[str, Any]
    data: FederatedData
    arrays: ArrayRecord
    strategy: PlannedStrategy
    grid: Engine
    evaluate: Evaluate
    settings: RoundSettings

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return what a configuration describes.

        Raises:
            UserError: If a setting or a data file is wrong; nothing is computed then.
        """
        protocol, strategy = check_settings(config), assembly.strategy(config)
        with announced("reading and dividing the data", after_s=2.0):
            data = data_assembly.divided_data(config)
        model = assembly.initial_model(config, data)
        arrays = to_record(model.state_dict())
        plan = assembly.plan(config, data, protocol)
        streams = {"seed": config["seed"], "repetition": config.get("repeat_num", 0)}
        planned = PlannedStrategy(strategy, plan, assembly.local_statistics(config, arrays), **streams)
        grid = assembly.engine(config, data, model)
        evaluate = assembly.evaluation(config, data, model)
        return cls(config, data, arrays, planned, grid, evaluate, assembly.round_settings(config))

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
        if start.round_num > self.config["num_rounds"]:
            raise UserError(
                f"num_rounds must be at least {start.round_num}, which {run_dir} has done, "
                f"got {self.config['num_rounds']}"
            )

    @property
    def tables(self) -> dict[str, Any]:
        """Which further tables there are, and what the classes in them are called."""
        per_class = self.config["evaluation"].get("per_class", False)
        return {"per_class": per_class, "class_names": self.data.data.class_names}


def columns(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of metrics.csv."""
    evaluation = config["evaluation"]
    on_clients, per_client = evaluation["name"] == "clients", evaluation.get("per_client", False)
    mu = ("mu",) if config["adaptive_mu"]["enabled"] else ()
    return (*METRICS, *(FEDERATION if on_clients else ()), *(SPREAD if per_client else ()), *mu)


def check_settings(config: Mapping[str, Any]) -> ExperimentProtocol:
    """Return the protocol, after every check that needs no data.

    Raises:
        UserError: If a setting is wrong.
    """
    check(config)
    strategy_checks.check_settings(config["strategy"])
    assembly.loggers(config)  # whether their libraries are there
    protocol: ExperimentProtocol = build(config, "protocol", ExperimentProtocol)
    protocol.check(*(config[name] for name in ("num_epochs", "stragglers_fraction", "sampling", "last_batch")))
    EarlyStopping(**config["early_stopping"]).check(columns(config))
    return protocol
