"""The schema of the whole configuration."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from fedprox.errors import UserError, one_line


@dataclass
class ClientResources:
    """What one Ray actor gets.

    Attributes:
        num_cpus: CPUs, > 0.
        num_gpus: GPUs, >= 0; with more than 0 clients compute on CUDA.
    """

    num_cpus: float = 2.0
    num_gpus: float = 0.0


@dataclass
class AdaptiveMuSettings:
    """How mu follows the training loss; needs evaluation=clients.

    Attributes:
        enabled: Whether it does.
        initial: The first value; None for `mu`.
        step: What is added after a rise, and taken away after `patience` falls in a row.
        patience: See step.
    """

    enabled: bool = False
    initial: float | None = None
    step: float = 0.1
    patience: int = 5


@dataclass
class ScheduleSettings:
    """The clients' learning rate over the rounds; see `fedprox.federation.schedules`.

    Attributes:
        name: "constant" or "cosine".
        final: The factor that a cosine falls to, 0 .. 1.
    """

    name: str = "constant"
    final: float = 0.0


@dataclass
class CheckpointSettings:
    """Which rounds a run can be resumed from; see `fedprox.runs.checkpoint`.

    Attributes:
        every: Rounds from one checkpoint to the next; None for none at all.
        keep: How many of the last are kept, besides the best; None for all.
    """

    every: int | None = 10
    keep: int | None = 2


@dataclass
class EarlyStoppingSettings:
    """When a run ends early; see `fedprox.experiment.early_stopping`.

    Attributes:
        metric: A column of metrics.csv; None for never.
        patience: Evaluated rounds without an improvement, >= 1.
        min_delta: What an improvement exceeds, >= 0.
    """

    metric: str | None = None
    patience: int = 10
    min_delta: float = 0.0


@dataclass
class Config:
    """All settings. The groups (dataset, partition, ...) name a function or class under `_target_`.

    What a group's other keys may be is what that function or class takes; the rest is explained in the
    README's table of settings.
    """

    num_clients: int | None = MISSING  # None: as many as the data set has
    num_epochs: int = MISSING
    batch_size: int = MISSING
    last_batch: str = MISSING
    num_rounds: int = MISSING
    clients_per_round: int = MISSING
    stragglers_fraction: float = MISSING
    learning_rate: float = MISSING
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    mu: float = MISSING
    adaptive_mu: AdaptiveMuSettings = field(default_factory=AdaptiveMuSettings)
    sampling: str = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    mixed_precision: bool = MISSING
    server_device: str = MISSING
    client_resources: ClientResources = field(default_factory=ClientResources)
    solver: str = MISSING
    batch_statistics: str = MISSING
    on_client_error: str = MISSING
    on_divergence: str = MISSING
    round_timeout: float | None = None
    on_timeout: str = MISSING
    early_stopping: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)
    seed: int = MISSING
    data_dir: str = MISSING
    hold_out: float = MISSING
    dataset: dict[str, Any] = MISSING
    partition: dict[str, Any] = MISSING
    feature_skew: dict[str, Any] = MISSING
    model: dict[str, Any] = MISSING
    strategy: dict[str, Any] = MISSING
    protocol: dict[str, Any] = MISSING
    engine: dict[str, Any] = MISSING
    evaluation: dict[str, Any] = MISSING
    augmentation: dict[str, Any] = MISSING
    logger: dict[str, Any] = field(default_factory=dict)  # name -> its settings, any number
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    resume: str | None = None
    branch_from: str | None = None
    branch_round: int | None = None


SETTINGS = [setting.name for setting in fields(Config)]
GROUPS = [setting.name for setting in fields(Config) if setting.type == dict[str, Any]]


def client_device(config: Mapping[str, Any]) -> str:
    """Return where clients compute: engine=ray has GPUs of its own."""
    if "num_gpus" in config["engine"]:
        return "cuda" if config["engine"]["num_gpus"] else "cpu"
    return str(config["server_device"])


def explained(error: BaseException) -> str:
    """Return in one line what is wrong with a configuration that could not be composed or used."""
    message = str(error)
    if misspelt := re.match(r"Could not override '(\w+)'", message):
        if misspelt[1] in GROUPS:  # an object that is merged into the group
            key = getattr(error.__cause__, "full_key", misspelt[1])
            return f"{key} is not a key of {misspelt[1]}; add one with a plus: +{key}=<value>"
        return str(unknown(misspelt[1]))
    if message.startswith("Cannot find primary config"):
        return f"{one_line(error)} There are config (the default) and fedavg"
    return one_line(error)


def unknown(name: str) -> UserError:
    """Return the error for a setting that does not exist, with the nearest one that does."""
    if name == "repeat_num":
        return UserError("repeat_num is added with a plus: +repeat_num=3 or '+repeat_num=range(5)'")
    close = difflib.get_close_matches(name, SETTINGS, n=1)
    return UserError(
        f"{name} is no setting; " + (f"did you mean {close[0]}?" if close else "see --help for all of them")
    )
