"""The configuration: every setting with its type, its range or choices, and the rules between settings."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedprox.errors import UserError

END_OF_INTEGERS = 2**32  # beyond, arrays' sizes overflow
MAX_EPOCHS = 100_000  # a client's order of examples is drawn for all of its epochs at once


def _number(rule: str) -> WrapValidator:
    """Return a validator that names the whole rule of a number, and takes the text of a variable for a number.

    Variables of the environment are text, as in seed=${oc.env:TASK_ID}.
    """

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            number = json.loads(value) if isinstance(value, str) else value
            return handler(number)
        except ValueError:  # of json, or of pydantic
            raise PydanticCustomError("rule", "{rule}", {"rule": rule}) from None

    return WrapValidator(validate)


Count = Annotated[int, Field(ge=1, lt=END_OF_INTEGERS), _number("an integer >= 1 and below 2^32")]
Epochs = Annotated[int, Field(ge=1, le=MAX_EPOCHS), _number(f"an integer >= 1 and at most {MAX_EPOCHS:,}")]
Seed = Annotated[int, Field(ge=0, lt=END_OF_INTEGERS), _number("an integer >= 0 and below 2^32")]
Positive = Annotated[float, Field(gt=0), _number("finite and > 0")]
NotNegative = Annotated[float, Field(ge=0), _number("finite and >= 0")]
Fraction = Annotated[float, Field(ge=0, le=1), _number("finite and between 0 and 1")]
BelowOne = Annotated[float, Field(ge=0, lt=1), _number("finite, at least 0 and below 1")]
Name = Annotated[str, Field(strict=False)]  # of a file or folder, which may look like a number


class _Settings(BaseModel):
    """Settings that cannot be changed; a value of another type is refused, and so is an unknown name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, coerce_numbers_to_str=True)


class Target(_Settings):
    """What a group of the configuration names: a function or class, and arguments for it.

    Attributes:
        target: The group's `_target_`, such as "fedprox.models.cnn.cnn".
    """

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """The group's other keys."""
        return dict(self.model_extra or {})

    @property
    def name(self) -> str:
        """The last part of the target, such as "cnn"."""
        return self.target.rpartition(".")[2]

    def __eq__(self, other: object) -> bool:
        """Return whether two are written alike: 1, 1.0 and true are not."""
        return isinstance(other, Target) and self._text == other._text

    def __hash__(self) -> int:
        """Make it a key of caches."""
        return hash(self._text)

    @property
    def _text(self) -> str:
        return json.dumps(self.model_dump(by_alias=True), sort_keys=True)

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        for name, value in _numbers("", self.arguments):
            if abs(value) >= END_OF_INTEGERS and isinstance(value, int):
                raise ValueError(f"{name} must be between -2^32 and 2^32, got {value}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        return self


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield every number within a value, with its dotted name."""
    if isinstance(value, (Mapping, list)):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(f"{name}.{key}", each)
    elif isinstance(value, (int, float)):
        yield name, value


class Model(Target):
    """The model, and its initial weights."""

    init: str = "default"  # or zeros, or a safetensors file


class ClientResources(_Settings):
    """What one Ray actor gets; with more than 0 GPUs clients compute on CUDA."""

    num_cpus: Positive
    num_gpus: NotNegative


class AdaptiveMu(_Settings):
    """How mu follows the training loss; see `fedprox.federation.schedules`."""

    enabled: bool
    initial: NotNegative | None  # None: mu
    step: Positive
    patience: Count


class Schedule(_Settings):
    """The clients' learning rate over the rounds; see `fedprox.federation.schedules`."""

    name: Literal["constant", "cosine"]
    final: Fraction  # what a cosine falls to


class Evaluation(_Settings):
    """Which global models are measured, on whose examples, and in how much detail."""

    name: Literal["server", "clients"]
    every: Count
    per_class: bool
    per_client: bool


class EarlyStopping(_Settings):
    """When a run ends early; see `fedprox.experiment.early_stopping`."""

    metric: Name | None  # a column of metrics.csv; None: never
    patience: Count
    min_delta: NotNegative


class Checkpoint(_Settings):
    """Which rounds a run can be resumed from; see `fedprox.runs.checkpoint`."""

    every: Count | None  # rounds; None: no checkpoints
    keep: Count | None  # the last ones, besides the best; None: all


class Config(_Settings):
    """All settings; the README's table explains them, conf/config.yaml has their defaults."""

    num_clients: Count | None  # None: as many as the data set has
    num_epochs: Epochs
    batch_size: Count
    last_batch: Literal["keep", "drop", "merge"]
    num_rounds: Count
    clients_per_round: Count
    stragglers_fraction: Fraction
    learning_rate: Positive
    schedule: Schedule
    mu: NotNegative
    adaptive_mu: AdaptiveMu
    sampling: Literal["uniform", "proportional"]
    momentum: BelowOne
    weight_decay: NotNegative
    mixed_precision: bool
    server_device: Annotated[str, Field(pattern=r"^(cpu|cuda)(:\d+)?$")]
    client_resources: ClientResources
    solver: Literal["auto", "reference", "cohort"]
    batch_statistics: Literal["averaged", "local"]
    on_client_error: Literal["stop", "drop"]
    on_divergence: Literal["stop", "drop", "continue"]
    round_timeout: Positive | None
    on_timeout: Literal["stop", "drop"]
    early_stopping: EarlyStopping
    seed: Seed
    data_dir: Name
    hold_out: BelowOne
    dataset: Target
    partition: Target
    feature_skew: Target
    model: Model
    strategy: Target
    protocol: Target
    engine: Target
    evaluation: Evaluation
    augmentation: Target
    logger: dict[str, Target]  # any number, by name
    checkpoint: Checkpoint
    resume: Name | None = None
    branch_from: Name | None = None
    branch_round: Count | None = None
    repeat_num: Seed = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any], source: str = "") -> Self:
        """Return the configuration that plain settings are.

        Args:
            settings: As in run.json.
            source: Where they stand, if that is not the command.

        Raises:
            UserError: At the first one that breaks a rule; nothing is loaded.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise UserError(f"{source}: " * bool(source) + _line(error)) from None

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain containers, as in run.json; repeat_num only if it was given."""
        without = None if "repeat_num" in self.model_fields_set else {"repeat_num"}
        return self.model_dump(by_alias=True, exclude=without)

    @property
    def client_device(self) -> str:
        """Where clients compute: engine=ray has GPUs of its own."""
        if "num_gpus" in self.engine.arguments:
            return "cuda" if self.engine.arguments["num_gpus"] else "cpu"
        return self.server_device

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.num_clients is not None and self.clients_per_round > self.num_clients:
            raise ValueError(
                f"clients_per_round must be at most num_clients={self.num_clients}, got {self.clients_per_round}; "
                "lower it or raise num_clients"
            )
        if (self.branch_from is None) != (self.branch_round is None):
            raise ValueError(
                "branch_from and branch_round go together: the directory of an earlier run, and one of its rounds, "
                f"got branch_from={self.branch_from} and branch_round={self.branch_round}"
            )
        if self.adaptive_mu.enabled and (self.evaluation.name != "clients" or self.evaluation.every != 1):
            raise ValueError(
                "adaptive_mu.enabled=true follows the training loss of all clients after every round, got evaluation="
                f"{self.evaluation.name} with evaluation.every={self.evaluation.every}; use evaluation=clients with "
                "evaluation.every=1"
            )
        if self.mixed_precision and self.client_device == "cpu":
            raise ValueError(
                "mixed_precision=true needs clients on a GPU, got clients on the CPU; set server_device=cuda with "
                "engine=local, or client_resources.num_gpus with engine=ray"
            )
        return self


SETTINGS = tuple(Config.model_fields)
TARGETS = ("dataset", "partition", "feature_skew", "model", "strategy", "protocol", "engine", "augmentation")
GROUPS = (*TARGETS, "evaluation", "logger")  # of which conf/ has files to choose from

_RULES = {  # by pydantic's kind of error
    "rule": "{rule}",
    "literal_error": "{expected}",
    "bool_type": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "cpu, cuda or cuda:<number>",
}
_REMEDIES = {
    "mu": "for no proximal term use mu=0",
    "num_clients": "null for as many as the data set has",
    "round_timeout": "null for no limit",
    "checkpoint.every": "null for none",
    "checkpoint.keep": "null for all",
    "model.init": "default, zeros or a safetensors file",
    "_target_": "name a function or class as module.name",
}


def _line(error: ValidationError) -> str:
    """Return pydantic's first error as the project's line: setting, rule, value and remedy."""
    first = error.errors(include_url=False)[0]
    name, kind = ".".join(map(str, first["loc"])), first["type"]
    if kind == "value_error":  # of the validators here, which say all but where
        return f"{name}{first['ctx']['error']}"
    if kind == "missing":
        return f"{name} is missing; give it a value"
    if kind == "extra_forbidden":
        return unknown(name)
    rule = _RULES.get(kind, "a group of settings").format(**first.get("ctx", {})).replace("'", "")
    got, remedy = (
        first["input"] if first["input"] != "" else "''",
        _REMEDIES.get(name, _REMEDIES.get(str(first["loc"][-1]))),
    )
    return f"{name} must be {rule}, got {got}" + (f"; {remedy}" if remedy else "")


def unknown(name: str) -> str:
    """Return what is wrong with a setting that does not exist, with the nearest one that does."""
    if name == "repeat_num":
        return "repeat_num is added with a plus: +repeat_num=3 or '+repeat_num=range(5)'"
    group = Config.model_fields.get(name.partition(".")[0])
    if group and isinstance(group.annotation, type) and issubclass(group.annotation, BaseModel):
        known = ", ".join(group.annotation.model_fields)
        return f"{name} is unknown: {name.partition('.')[0]} takes {known}"
    close = difflib.get_close_matches(name, SETTINGS, n=1)
    return f"{name} is no setting; " + (f"did you mean {close[0]}?" if close else "see --help for all of them")
