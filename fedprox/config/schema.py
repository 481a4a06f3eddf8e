"""The configuration: every setting with its type, range or choices, meaning, and the rules between settings.

The string below a setting is its documentation: `--help` and docs/configuration.md are made from it, see
`fedprox.config.documentation`. Defaults are in conf/config.yaml. The file is long because it has every setting, once.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import CoreSchema, no_info_wrap_validator_function

from fedprox.errors import UserError
from fedprox.held import is_held

END_OF_INTEGERS = 2**32  # array sizes overflow beyond this
DEPLOYMENT = "fedprox.engines.superlink.SuperLinkGrid"  # the target of engine=deployment
CHOOSE = "fedprox.solvers.choice.choose"  # the target of solver=auto, reference and cohort
SITES = "fedprox.data.sources.sites.sites"  # the target of dataset=sites
MAX_EPOCHS = 100_000  # the order of a client's examples is drawn for all epochs at once


@dataclass(frozen=True)
class Rule:
    """A validator whose errors state the whole rule of a number; it reads numbers from text, too.

    Environment variables are text, as in seed=${oc.env:TASK_ID}.

    Attributes:
        text: The rule as errors and the documentation state it.
    """

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Wrap the validation of the annotated type."""
        return no_info_wrap_validator_function(self._validate, handler(source))

    def _validate(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(json.loads(value) if isinstance(value, str) else value)
        except ValueError:  # from json or pydantic
            raise PydanticCustomError("rule", "{rule}", {"rule": self.text}) from None


Count = Annotated[int, Field(ge=1, lt=END_OF_INTEGERS), Rule("an integer >= 1 and below 2^32")]
Epochs = Annotated[int, Field(ge=1, le=MAX_EPOCHS), Rule(f"an integer >= 1 and at most {MAX_EPOCHS:,}")]
Seed = Annotated[int, Field(ge=0, lt=END_OF_INTEGERS), Rule("an integer >= 0 and below 2^32")]
Positive = Annotated[float, Field(gt=0), Rule("finite and > 0")]
NotNegative = Annotated[float, Field(ge=0), Rule("finite and >= 0")]
Fraction = Annotated[float, Field(ge=0, le=1), Rule("finite and between 0 and 1")]
BelowOne = Annotated[float, Field(ge=0, lt=1), Rule("finite, at least 0 and below 1")]
Name = Annotated[str, Field(strict=False)]  # of a file or folder; it may look like a number
Device = Annotated[str, Field(pattern=r"^(cpu|cuda)(:\d+)?$")]
DEVICE_RULE = "cpu, cuda or cuda:<number>"


class _Settings(BaseModel):
    """A frozen group of settings that rejects unknown names and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @classmethod
    def of(cls, settings: Mapping[str, Any], source: str = "") -> Self:
        """Return the object of plain settings, such as the configuration of those in run.json.

        Args:
            settings: Plain containers.
            source: Where they are from, if not from the command; errors begin with it.

        Raises:
            UserError: If a setting breaks a rule; the error reports the first one.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise UserError(f"{source}: " * bool(source) + _line(error)) from None


class Target(_Settings):
    """A group that names a function or class and its arguments.

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

    @property
    def is_ours(self) -> bool:
        """Whether this package has the target, and not the user."""
        return self.target.startswith("fedprox.") and not is_held(self.target)

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same text: 1, 1.0 and true differ."""
        return isinstance(other, Target) and self._text == other._text

    def __hash__(self) -> int:
        """Return a hash of the text, so that a target can be a cache key."""
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


def _not_tiny(value: float) -> float:
    """Raise ValueError for noise that is too little to mean anything, whose epsilon takes minutes to compute."""
    if value and not 0.05 <= value < math.inf:
        raise ValueError
    return value


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield every number within a value, with its dotted name."""
    if isinstance(value, (Mapping, list)):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(f"{name}.{key}", each)
    elif isinstance(value, (int, float)):
        yield name, value


class Model(Target):
    """The model and its initial weights."""

    init: str = "default"
    """Initial weights: `default` (drawn from the seed), `zeros`, or the path of a `model.safetensors`."""


class ClientResources(_Settings):
    """Resources of one Ray actor."""

    num_cpus: Positive
    """CPUs of one Ray actor; a machine with n CPUs runs n / `num_cpus` actors."""
    num_gpus: NotNegative
    """GPUs of one Ray actor; above 0 clients train on CUDA."""


class AdaptiveMu(_Settings):
    """An adaptive mu; see `fedprox.federation.schedules`."""

    enabled: bool
    """Adapt mu to the training loss after every round. Needs `evaluation=clients` with `evaluation.every=1`; adds the
    column `mu` to metrics.csv."""
    initial: NotNegative | None
    """First value of the adaptive mu; null: `mu`."""
    step: Positive
    """Added to mu after a round in which the loss rose, subtracted after `patience` falls in a row."""
    patience: Count
    """Falls of the loss in a row after which mu is lowered."""


class Schedule(_Settings):
    """The clients' learning rate over the rounds; see `fedprox.federation.schedules`."""

    name: Literal["constant", "cosine"] = "constant"
    """Factor of `learning_rate` over the rounds. `cosine` falls from 1 in round 1 towards `schedule.final` after the
    last round."""
    final: Fraction = 0.0
    """Factor of `learning_rate` at the end of the cosine."""
    step: Literal["round", "epoch"] = "round"
    """When the cosine falls: before every `round`, or before every local `epoch`, of which a run has `num_rounds` times
    `num_epochs`. A straggler leaves out its round's last epochs; the next round begins where it does for all."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.step == "epoch" and self.name == "constant":
            raise ValueError(
                ".step=epoch changes nothing with schedule.name=constant, whose factor is always 1; use "
                "schedule.name=cosine, or leave it out"
            )
        return self


class ServerSchedule(_Settings):
    """The server's learning rate over the rounds, likewise."""

    name: Literal["constant", "cosine"] = "constant"
    """Factor of `strategy.server_learning_rate` over the rounds, as `schedule.name`; with fedavgm, fedadagrad, fedadam,
    fedyogi and scaffold."""
    final: Fraction = 0.0
    """Factor of `strategy.server_learning_rate` at the end of the cosine."""


class Evaluation(_Settings):
    """When, on which examples and in how much detail global models are measured."""

    name: Literal["server", "clients"]
    """Set by the choice of the group: `evaluation=server` or `evaluation=clients`."""
    every: Count
    """Rounds from one evaluation to the next; the last round is always evaluated."""
    per_class: bool
    """Write the accuracy of each class to classes.csv."""
    per_client: bool
    """Measure how accuracy on the clients' own held-out examples varies, every client counting the same. Adds the
    columns `client_accuracy_std`, `client_accuracy_worst` and `client_accuracy_best`: the standard deviation, and the
    means of the worst and the best tenth of the clients."""


Share = Annotated[float, Field(gt=0, le=1), Rule("finite, above 0 and at most 1")]
Bits = Annotated[int, Field(ge=2, le=16), Rule("an integer >= 2 and at most 16")]


class TopK(_Settings):
    """Sparse updates."""

    fraction: Share
    """Share of an update's values that is sent, the largest ones, rounded down."""


class Quantise(_Settings):
    """Quantised updates; see `fedprox.channel.codecs.Quantise`."""

    bits: Bits
    """Bits of a value, one of them for its sign. Values are rounded at random, without bias."""
    bucket: Annotated[int, Field(ge=0, lt=END_OF_INTEGERS), Rule("an integer >= 0 and below 2^32")] = 0
    """Values that share a scale, which takes four bytes; 0: all of an update."""
    scale: Literal["norm", "max"] = "norm"
    """Scale of the values: the Euclidean norm of the bucket, as in QSGD, or its largest value, which loses less."""


class Update(_Settings):
    """What clients send instead of their whole models."""

    count_bytes: bool = False
    """Add the columns `bytes_up` and `bytes_down`, sent by and to clients in all rounds so far, to metrics.csv, and
    `bytes_up` to clients.csv."""
    top_k: TopK | None = None
    quantise: Quantise | None = None
    names: list[str] | None = None
    """Patterns of the trained parameters that travel, such as `[fc*]`; all others stay at the server's values. null:
    all trained parameters."""
    error_feedback: bool = False
    """Let a client add to its next update what compression took from the earlier ones."""
    bits: Bits | None = None
    """Short for `update.quantise.bits`."""
    fraction: Share | None = None
    """Short for `update.top_k.fraction`."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.error_feedback and not (self.top_k or self.quantise):
            raise ValueError(
                ".error_feedback=true changes nothing if nothing is lost; choose update=top_k or quantise, or drop it"
            )
        return self


Delta = Annotated[float, Field(gt=0, lt=1), Rule("above 0 and below 1")]
Noise = Annotated[float, AfterValidator(_not_tiny), Rule("0, or finite and at least 0.05")]


class Privacy(_Settings):
    """Client-level differential privacy; see `fedprox.strategies.private`."""

    name: Literal["none", "client"] = "none"
    """Set by the choice of the group: `privacy=none` or `privacy=client`."""
    clip: Positive | None = None
    """Largest Euclidean norm of a client's update, C: longer ones are shortened to it. The first value if the clip is
    adaptive."""
    clip_quantile: Delta | None = None
    """Share of the updates that an adaptive clip leaves whole, such as 0.5; null: the clip stays."""
    clip_rate: Positive | None = None
    """Learning rate of an adaptive clip."""
    count_noise: Positive | None = None
    """Standard deviation of the noise on the number of updates that an adaptive clip leaves whole; null: a twentieth of
    `clients_per_round`."""
    noise_multiplier: Noise | None = None
    """Standard deviation of the noise on the sum of a round's updates, in clips; null: it follows from `epsilon`."""
    epsilon: Positive | None = None
    """Privacy that all `num_rounds` rounds cost, from which the noise follows; null: it follows from
    `noise_multiplier`."""
    delta: Delta | None = None
    """Probability with which the guarantee of epsilon may fail; below one in `num_clients`."""
    max_epsilon: Positive | None = None
    """Budget: the run ends before the round that would cost more, with the status `budget`. null: `epsilon`."""
    noise_cohort: Count | None = None
    """Clients of a round in a larger federation whose noise the run has; epsilon is then that federation's. null:
    `clients_per_round`."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not self.is_on:
            given = [name for name, value in self if name != "name" and value is not None]
            if given:
                raise ValueError(
                    f".{given[0]}={getattr(self, given[0])} has no effect; use privacy=client or leave it out"
                )
            return self
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError(
                "=client needs privacy.noise_multiplier or privacy.epsilon, and only one of them, got "
                f"{self.noise_multiplier} and {self.epsilon}; such as privacy.epsilon=2"
            )
        for name, example in (("clip", 1.0), ("delta", 1e-3)):
            if getattr(self, name) is None:
                raise ValueError(f".{name} must be given with privacy=client; such as privacy.{name}={example:g}")
        if self.clip_quantile is not None and self.clip_rate is None:
            raise ValueError(".clip_rate must be given with privacy.clip_quantile; such as privacy.clip_rate=0.2")
        if self.max_epsilon is not None and self.noise_multiplier == 0:
            raise ValueError(f".max_epsilon={self.max_epsilon:g} is exceeded by one round without noise; leave it out")
        return self

    @property
    def is_on(self) -> bool:
        """Whether anything is protected."""
        return self.name == "client"

    @property
    def budget(self) -> float | None:
        """The epsilon that the run must not exceed; None for no limit."""
        return self.max_epsilon or self.epsilon


# The settings of each method of personalisation
_METHODS = {
    "none": (),
    "local": (),
    "fine_tuning": ("epochs",),
    "fedper": ("names",),
    "fedrep": ("names", "body_epochs"),
    "lg": ("names",),
    "fedbn": ("names",),
    "apfl": ("alpha",),
    "ditto": ("weight",),
}


class Personalisation(_Settings):
    """Models of the clients' own; see docs/personalisation.md."""

    name: Literal["none", "local", "fine_tuning", "fedper", "fedrep", "lg", "fedbn", "apfl", "ditto"] = "none"
    """Set by the choice of the group, such as `personalisation=ditto`."""
    names: list[str] | None = None
    """Patterns of the parameters that never leave a client, such as `[fc*]`; null: the method's own."""
    body_epochs: Epochs | None = None
    """With `fedrep`: the last epochs of a client's work, which train the body; those before train the head."""
    epochs: Epochs | None = None
    """With `fine_tuning`: epochs in which every client trains the global model further, at each evaluated round."""
    weight: NotNegative | None = None
    """With `ditto`: lambda, the weight of the term that keeps a personal model near the global one."""
    alpha: Share | None = None
    """With `apfl`: share of the client's own model in its personal model, which is a mixture with the global one."""
    max_bytes: Count = 2**31
    """Memory for what clients keep between rounds. Runs that could need more are refused."""

    @property
    def keeps_models(self) -> bool:
        """Whether every client keeps a whole model of its own."""
        return self.name in ("local", "apfl", "ditto")

    @property
    def keeps_parts(self) -> bool:
        """Whether every client keeps a part of the model to itself."""
        return "names" in _METHODS[self.name]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for name in sorted({name for names in _METHODS.values() for name in names}):
            value, is_used = getattr(self, name), name in _METHODS[self.name]
            if value is None and is_used and name != "names":
                raise ValueError(f".{name} must be given with personalisation={self.name}, got null")
            if value is not None and not is_used:
                users = " and ".join(method for method, names in _METHODS.items() if name in names)
                raise ValueError(
                    f".{name}={value} means nothing with personalisation={self.name}; it is for {users}; leave it out"
                )
        return self


Bar = Annotated[list[float], Field(min_length=2, max_length=2), Rule("a round and the value to have reached in it")]


class EarlyStopping(_Settings):
    """Early end of a run; see `fedprox.experiment.early_stopping`."""

    metric: Name | None
    """Column of metrics.csv to watch, such as `test_loss`; null: never stop early."""
    patience: Count
    """The run stops after this many evaluated rounds in a row without an improvement."""
    min_delta: NotNegative
    """An improvement is a change by more than this."""


Duration = Annotated[float, Field(ge=1e-9, le=1e9), Rule("finite, at least 1e-9 and at most 1e9")]
Spread = Annotated[float, Field(ge=0, le=10), Rule("finite and between 0 and 10")]
Bandwidth = Annotated[float, Field(ge=1, le=1e15), Rule("finite, at least 1 and at most 1e15")]

ServerRate = Annotated[float, Field(gt=0, le=1000), Rule("finite, above 0 and at most 1000")]


class _Choices(_Settings):
    """A group whose choices have settings of their own, which are null with the others."""

    _OWN: ClassVar[Mapping[str, tuple[str, ...]]]  # the settings of each choice
    _OPTIONAL: ClassVar[tuple[str, ...]] = ()  # those that may be null with it, too

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        name = self.name  # type: ignore[attr-defined]
        for choice, settings in self._OWN.items():
            for setting in settings:
                is_given = getattr(self, setting) is not None
                if choice == name and not is_given and setting not in self._OPTIONAL:
                    raise ValueError(f".{setting} must be given with this choice, {name}, got null; give it a value")
                if choice != name and is_given:
                    raise ValueError(f".{setting} belongs to the choice {choice}, got {name}; choose that, or drop it")
        return self


class Devices(_Choices):
    """The clients' devices, which decide how long their work takes; see `fedprox.plan.devices`."""

    _OWN = {"lognormal": ("seconds_per_step", "sigma", "bandwidth"), "file": ("path",)}
    _OPTIONAL = ("bandwidth",)

    name: Literal["none", "lognormal", "file"] = "none"
    """Set by the choice of the group: `devices=none`, `devices=lognormal` or `devices=file`."""
    seconds_per_step: Duration | None = None
    """Median of the virtual seconds that a client takes for a mini-batch step, with `devices=lognormal`."""
    sigma: Spread | None = None
    """Standard deviation of the logarithms of the clients' seconds per step, and of their bandwidths."""
    bandwidth: Bandwidth | None = None
    """Median of the bytes that a client sends or receives in a virtual second; null: communication takes no time."""
    path: Name | None = None
    """Table with the columns `client`, `seconds_per_step` and perhaps `bandwidth`, with `devices=file`."""


class Arrival(_Choices):
    """When the server takes the clients' updates; see `fedprox.plan.arrivals`."""

    _OWN = {"deadline": ("seconds",), "buffered": ("concurrency", "buffer", "discount", "server_learning_rate")}

    name: Literal["synchronous", "deadline", "buffered"] = "synchronous"
    """Set by the choice of the group: `arrival=synchronous`, `arrival=deadline` or `arrival=buffered`."""
    seconds: Duration | None = None
    """Virtual seconds of a round, with `arrival=deadline`."""
    concurrency: Count | None = None
    """Clients that train at the same time, with `arrival=buffered`."""
    buffer: Count | None = None
    """Updates of which the server makes the next model (K), which ends a round, with `arrival=buffered`; 1 is
    FedAsync. `clients_per_round` follows it."""
    discount: NotNegative | None = None
    """Exponent a of the weight (1 + tau)^-a of an update to a model that tau newer ones have replaced."""
    server_learning_rate: ServerRate | None = None
    """Factor eta of the mean of a buffer's updates."""


class Client(_Settings):
    """How a client trains: by `solver`, or by a script of the user's; see `fedprox.federation.script_client`."""

    name: Literal["built_in", "script"]
    """Set by the choice of the group: `client=built_in` or `client=script`."""
    script: Name | None
    """Training script that is run once for each client and round, with `client=script`."""
    args: Name
    """The script's arguments, as in a shell. `{site}`, `{data}`, `{client}` and `{round}` stand for the name, the data,
    the number and the round of the client's task."""
    data: Name
    """Folder or file of a client's data in a simulation, as the script reads it from its task; `{client}` stands for
    the client's number. A site in a federation names its own."""
    at_once: Count | None
    """Processes of the script at the same time, on each Ray actor or SuperNode; they share the visible GPUs in turn.
    null: as many as `engine.num_threads`, or the CPUs of a Ray actor, are enough for."""
    num_threads: Count
    """Threads of one process of the script; the results may depend on it."""
    preload: bool
    """Import the libraries that the script imports once, and fork its processes from there. `false` starts each
    process without them, for libraries that do not stand a fork."""
    output: Name | None
    """Folder for what the processes of the script print; null: only the last line of those that fail is reported."""


class Checkpoint(_Settings):
    """Rounds from which a run can be resumed; see `fedprox.runs.checkpoint`."""

    every: Count | None
    """Rounds from one checkpoint to the next; null: no checkpoints."""
    keep: Count | None
    """How many of the latest checkpoints to keep, besides the best; null: all."""


def _solver(value: Any) -> Any:
    """Return the group of a solver's name, which is all that runs of earlier versions recorded."""
    return {"_target_": CHOOSE, "name": value} if value in ("auto", "reference", "cohort") else value


def present_form(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's settings in the form that they have now."""
    return {**settings, **({"solver": _solver(settings["solver"])} if "solver" in settings else {})}


class Config(_Settings):
    """All settings."""

    num_clients: Count | None
    """Number of clients; null: as many as the data set has. Data sets that come divided into clients fix it."""
    num_epochs: Epochs
    """Full local work E, in epochs."""
    batch_size: Count
    """Mini-batch size B, in examples."""
    last_batch: Literal["keep", "drop", "merge"]
    """Treatment of an epoch's last batch if it has fewer than B examples. `keep` trains on it; `drop` leaves its
    examples out of that epoch; `merge` joins them to the batch before, which then has B to 2B - 1 examples. A client
    with fewer than B examples always has one batch of all of them. The client's weight in the average stays its number
    of examples."""
    num_rounds: Count
    """Rounds of training."""
    clients_per_round: Count | None
    """Clients that take part in a round (K); null: all."""
    stragglers_fraction: Fraction
    """Share of each round's clients that cannot do the full work."""
    learning_rate: Positive
    """Learning rate of the clients' SGD."""
    schedule: Schedule = Schedule()
    server_schedule: ServerSchedule = ServerSchedule()
    mu: NotNegative
    """Weight of the proximal term. The default is 1.0 with `strategy=fedprox` and `strategy=feddane`, unless the data
    set or the experiment sets another, 0.01 with `strategy=feddyn`, whose alpha it is, and 0 with every other
    strategy."""
    adaptive_mu: AdaptiveMu
    sampling: Literal["uniform", "proportional", "poisson"]
    """Choice of a round's clients. `uniform`: distinct clients with equal probability, and an average weighted by
    examples. `proportional`: independent draws with probability proportional to a client's number of examples, and a
    simple mean over the draws. A client drawn twice trains twice on different batches, counts twice and has two rows
    in clients.csv. `poisson`: every client takes part independently with probability K / num_clients, so that K is
    the mean size of a cohort."""
    momentum: BelowOne
    """Momentum of the clients' SGD; other optimisers have settings of their own."""
    momentum_buffer: Literal["reset", "kept"] = "reset"
    """The velocity of the clients' momentum. `reset`: zero at the start of every round. `kept`: each client continues
    with the velocity after its last round, which a simulation holds for it."""
    weight_decay: NotNegative
    """Weight decay of the clients' optimiser. The default is 0.001 with `protocol=flower` and 0 with every other
    protocol."""
    loss: Target = Target.model_validate(
        {"_target_": "fedprox.solvers.losses.CrossEntropy", "label_smoothing": 0.0, "class_weights": None}
    )
    """Loss of which a client's F_k is the mean. Any function of outputs and labels that returns the mean loss of a
    batch can be named by `loss._target_`, or a class of such, like `torch.nn.HuberLoss`."""
    optimizer: Target = Target(_target_="torch.optim.SGD")
    """Optimiser of a client's steps, which starts anew in every round. Any `torch.optim.Optimizer` that needs no
    closure can be named by `optimizer._target_`. The proximal term is added to the gradient."""
    max_grad_norm: Positive | None = None
    """Largest Euclidean norm of a step's gradient, with the proximal term in it; a longer one is shortened to it.
    null: no limit."""
    mixed_precision: bool
    """Let clients on GPUs compute in bfloat16 under torch.autocast, and what that leaves in float32 in TF32. Without
    it, clients compute in full float32, like a CPU; global models are always measured in that."""
    server_device: Device
    """Device on which global models are tested; with `engine=local` clients train there, too."""
    client_resources: ClientResources
    solver: Annotated[Target, BeforeValidator(_solver)]
    """Solver of the local problem. `auto`: a compiled solver for logistic regression by SGD, on the CPU whatever the
    devices are; for other models `reference` on CPUs, and on GPUs the fastest in a short trial of `reference`,
    `cohort`, and `cohort` with one client after another. `reference`: autograd, the definition. `cohort`: all clients
    of a round in one batch, on GPUs by CUDA graphs. Any `fedprox.solvers.problem.Solver` can be named by
    `solver._target_`."""
    batch_statistics: Literal["averaged", "local"]
    """Batch norm's running means and variances. `averaged`: averaged like weights. `local`: each client continues from
    its own, and only the measured model has their average."""
    on_client_error: Literal["stop", "drop"]
    """Response to a client whose model or data raise an error, or that kills its Ray worker repeatedly. `stop` ends the
    run with one line that names the client; `drop` leaves the client out of the round's average."""
    on_divergence: Literal["stop", "drop", "continue"]
    """Response to an update or a global loss that is nan or infinite: end the run, `drop` such updates, or continue."""
    round_timeout: Positive | None
    """Seconds that a round's clients may take; null: no limit. With a limit, results depend on the machine's speed."""
    on_timeout: Literal["stop", "drop"]
    """Response to clients that exceed `round_timeout`: end the run, or `drop` them from the round."""
    early_stopping: EarlyStopping
    objective: Name | None = None
    """What a search optimises: a column of metrics.csv after the last round, such as `test_loss`, or `best_` and a
    column for its best round; `test_` may be left out. Accuracies and scores are maximised, all else is minimised.
    null: `accuracy`, or `loss` if there is no accuracy."""
    pruning_bar: list[Bar] | None = None
    """Rounds and values of `early_stopping.metric`, such as `[[10,0.5],[20,0.7]]`: a run that has not reached a value
    in its round ends there. A search sets it. null: no such values."""
    seed: Seed
    """Seed of everything random in the run: data division, initial weights, cohorts, stragglers and batches."""
    data_dir: Name
    """Folder in which downloaded data sets are stored. The default is `$FEDPROX_DATA_DIR` if that is set."""
    hold_out: BelowOne
    """Share of its examples that a client keeps for testing, if a `partition` divides the data, or the client is a site
    without a test set of its own."""
    dataset: Target
    """Data set. Any function can be named by `dataset._target_`."""
    partition: Target
    """Division of the training examples among clients. Any function can be named by `partition._target_`."""
    feature_skew: Target
    """Client-specific change of images, for training and held-out ones; the global test set stays as it is."""
    model: Model
    """Model. Any `torch.nn.Module` can be named by `model._target_`. `model.init` sets the initial weights."""
    strategy: Target
    """Aggregation on the server. Any Flower strategy can be named by `strategy._target_`, except the
    differential-privacy wrappers; its mu is 0 unless `mu` is given."""
    protocol: Target
    """Rule for which of a round's clients are stragglers and how much work each does. With `flower` and `paper`, if
    E = 1, a straggler does part of the epoch: 1 step to all of them."""
    engine: Target
    """Where clients compute; all engines give the same numbers."""
    evaluation: Evaluation
    """Examples on which global models are measured."""
    metrics: dict[str, Target] = {}
    """What is measured on the test examples besides loss and accuracy, each in a column `test_<name>`. Any function of
    labels and predictions can be named, such as scikit-learn's: `+metrics.kappa._target_=...`."""
    client: Client
    """How clients train. `script` makes clients of any training script, by five lines in it."""
    augmentation: Target
    """Random change of the clients' training images in every epoch."""
    update: Update
    """Compression of the clients' updates. Several at once: `'update=[top_k,quantise]'`."""
    personalisation: Personalisation = Personalisation()
    """Models of the clients' own, measured on each client's held-out examples. Adds `personal_accuracy` and more
    columns to metrics.csv, and the file personal.csv."""
    attack: Target
    """Attack of hostile clients, which a share of all clients are: on the updates that they send, or on their training
    data. Adds the columns `num_malicious` to metrics.csv and `is_malicious` to clients.csv."""
    privacy: Privacy = Privacy()
    """Client-level differential privacy of the model: clipped updates of clients drawn at random, and noise. Adds the
    columns `epsilon` and `clip` to metrics.csv and `is_clipped` to clients.csv."""
    devices: Devices = Devices()
    """How fast each client's device is, in virtual seconds. Adds the column `virtual_time_s` to metrics.csv."""
    arrival: Arrival = Arrival()
    """What the server does about late clients: wait for all, set a deadline, or take updates as they arrive."""
    secure_aggregation: Target = Target(_target_="fedprox.channel.masking.none")
    """Sum of masked updates, so that the server gets no single one; a simulation of the protocol, in which one process
    has all keys. Adds the column `num_clipped` to clients.csv."""
    contribution: Target = Target(_target_="fedprox.evaluation.shapley.none")
    """Measurement of what each client's update is worth for the test loss. Adds the column `contribution` to
    clients.csv, and the table contribution.csv at the end."""
    logger: dict[str, Target]
    """Experiment trackers that receive all settings and every round, in addition to the run directory. One or several:
    `'logger=[tensorboard,mlflow]'`."""
    checkpoint: Checkpoint
    resume: Name | None = None
    """Directory of a run to resume."""
    branch_from: Name | None = None
    """Directory of a run from which this one branches off."""
    branch_round: Count | None = None
    """Round of `branch_from`, with a checkpoint, at which this run starts."""
    repeat_num: Seed = 0
    """Repetition of the same experiment, given with a plus: `+repeat_num=3` or, in a sweep, `'+repeat_num=range(5)'`.
    Other initial weights, cohorts, stragglers and batches on the same division of the data; 0 is the run without it."""

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain containers, as in run.json; with repeat_num only if it was given."""
        without = None if "repeat_num" in self.model_fields_set else {"repeat_num"}
        return self.model_dump(by_alias=True, exclude=without)

    @property
    def is_deployment(self) -> bool:
        """Whether clients compute on a federation's SuperNodes."""
        return self.engine.target == DEPLOYMENT

    @property
    def has_sites(self) -> bool:
        """Whether every client is a site with its own data, which the server may not have."""
        return self.dataset.target == SITES

    @property
    def client_device(self) -> str:
        """Device on which clients compute: with engine=ray the actors' GPUs decide."""
        if "num_gpus" in self.engine.arguments:
            return "cuda" if self.engine.arguments["num_gpus"] else "cpu"
        return self.server_device

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.client.name == "script") != (self.client.script is not None):
            raise ValueError(
                "client=script and client.script must be given together, got "
                f"client={self.client.name} and client.script={self.client.script}; name a Python program"
            )
        if self.num_clients is not None and (self.clients_per_round or 0) > self.num_clients:
            raise ValueError(
                f"clients_per_round must be at most num_clients={self.num_clients}, got {self.clients_per_round}; "
                "lower it or raise num_clients"
            )
        if (self.branch_from is None) != (self.branch_round is None):
            raise ValueError(
                "branch_from and branch_round must be given together, got "
                f"branch_from={self.branch_from} and branch_round={self.branch_round}; "
                "name the directory of an earlier run and one of its rounds"
            )
        if self.adaptive_mu.enabled and (self.evaluation.name != "clients" or self.evaluation.every != 1):
            raise ValueError(
                "adaptive_mu.enabled=true needs the training loss of all clients after every round, got evaluation="
                f"{self.evaluation.name} with evaluation.every={self.evaluation.every}; use evaluation=clients with "
                "evaluation.every=1"
            )
        if (self.personalisation.weight or 0.0) * self.learning_rate >= 2:
            raise ValueError(
                "personalisation.weight times learning_rate must be below 2, or personal models diverge, got "
                f"{self.personalisation.weight:g} times {self.learning_rate:g}; lower one of them"
            )
        if (epochs := self.personalisation.body_epochs or 0) >= self.num_epochs:
            raise ValueError(
                f"personalisation.body_epochs must be below num_epochs={self.num_epochs}, or no head is trained, got "
                f"{epochs}; raise num_epochs"
            )
        if self.is_deployment and self.round_timeout is None:
            raise ValueError(
                "round_timeout must be given with engine=deployment, got null; a site that hangs would hold up the run "
                "for ever; the default is 3600 (seconds)"
            )
        if self.mixed_precision and self.client_device == "cpu":
            raise ValueError(
                "mixed_precision=true needs clients on a GPU, got clients on the CPU; set server_device=cuda with "
                "engine=local, or client_resources.num_gpus with engine=ray"
            )
        return self

    @model_validator(mode="after")
    def _check_virtual_time(self) -> Self:
        if self.devices.name != "none" and (self.is_deployment or self.client.script is not None):
            where, why = ("engine=deployment", "a federation takes real time")
            if not self.is_deployment:
                where, why = ("client=script", "only a script knows how many steps it does")
            raise ValueError(f"devices={self.devices.name} cannot be simulated with {where}: {why}; use devices=none")
        if self.arrival.name == "synchronous":
            return self
        arrival = f"arrival={self.arrival.name}"
        if self.devices.name == "none":
            raise ValueError(f"{arrival} needs devices of known speed, got devices=none; use devices=lognormal or file")
        if self.stragglers_fraction:
            raise ValueError(
                f"stragglers_fraction must be 0 with {arrival}, in which the devices decide who is late, got "
                f"{self.stragglers_fraction}; remove it"
            )
        if self.sampling != "uniform":
            raise ValueError(f"sampling must be uniform with {arrival}, got {self.sampling}; use arrival=synchronous")
        if self.arrival.name == "buffered":
            self._check_buffer()
        return self

    def _check_buffer(self) -> None:
        """Raise ValueError unless a buffer of updates can fill, and is what a round has."""
        buffer, concurrency = self.arrival.buffer or 0, self.arrival.concurrency or 0
        if buffer > concurrency:
            raise ValueError(
                f"arrival.buffer must be at most arrival.concurrency={concurrency}, got {buffer}; lower it, or raise "
                "arrival.concurrency"
            )
        if self.num_clients is not None and concurrency > self.num_clients:
            raise ValueError(
                f"arrival.concurrency must be at most num_clients={self.num_clients}, got {concurrency}; lower it"
            )
        if self.clients_per_round != buffer:
            raise ValueError(
                f"clients_per_round must be arrival.buffer={buffer} with arrival=buffered, in which a round ends after "
                f"so many updates, got {self.clients_per_round}; set clients_per_round={buffer}"
            )


class Search(_Settings):
    """A search: the keys of `hydra.sweeper` with hydra/sweeper=optuna; see `fedprox.cli.search`."""

    num_trials: Count
    """Runs of the search."""
    num_parallel: Count
    """Trials that are chosen and run at a time."""
    num_startup: Count
    """Trials with random values before the sampler learns, and finished ones before others are pruned."""
    sampler: Literal["tpe", "random"]
    """The tree-structured Parzen estimator, or random values."""
    prune_at: list[Delta]
    """Shares of `num_rounds` after which a trial that is worse than the median ends."""
    params: dict[str, Any]
    """Settings to search, with their values."""


SETTINGS = tuple(Config.model_fields)
DEFAULTS = {  # of settings that runs of earlier versions lack
    name: own.default.model_dump(by_alias=True) if isinstance(own.default, BaseModel) else own.default
    for name, own in Config.model_fields.items()
    if not own.is_required()
}
TARGETS = (
    *("dataset", "partition", "feature_skew", "model", "strategy", "protocol", "engine", "augmentation", "attack"),
    *("secure_aggregation", "contribution", "solver", "loss", "optimizer"),
)
# conf/ has a folder of choices for each
SEVERAL = ("logger", "metrics")  # groups of any number of targets
GROUPS = (*TARGETS, "client", "update", "privacy", "personalisation", "devices", "arrival", "evaluation", *SEVERAL)

_RULES = {  # by pydantic's kind of error
    "rule": "{rule}",
    "literal_error": "{expected}",
    "bool_type": "true or false",
    "list_type": "a list",
    "string_type": "text",
    "string_pattern_mismatch": DEVICE_RULE,
}
_REMEDIES = {
    "mu": "for no proximal term use mu=0",
    "num_clients": "null for as many as the data set has",
    "clients_per_round": "null for all",
    "round_timeout": "null for no limit",
    "devices.bandwidth": "null for communication that takes no time",
    "checkpoint.every": "null for none",
    "checkpoint.keep": "null for all",
    "model.init": "default, zeros or a safetensors file",
    "_target_": "name a function or class as module.name",
}


def _line(error: ValidationError) -> str:
    """Return pydantic's first error as one line: setting, rule, value and remedy."""
    first = error.errors(include_url=False)[0]
    name, kind = ".".join(map(str, first["loc"])), first["type"]
    if kind == "value_error":  # from this module's validators, which write all but the group's name
        return f"{name}{first['ctx']['error']}"
    if kind == "missing":
        return f"{name} is required; give it a value"
    if kind == "extra_forbidden":
        return unknown(name)
    rule = _RULES.get(kind, "a group of settings").format(**first.get("ctx", {})).replace("'", "")
    got = first["input"] if first["input"] != "" else "''"
    remedy = _REMEDIES.get(name, _REMEDIES.get(str(first["loc"][-1])))
    return f"{name} must be {rule}, got {got}" + (f"; {remedy}" if remedy else "")


def unknown(name: str) -> str:
    """Return the error line for a setting that does not exist, with the nearest one that does."""
    if name == "repeat_num":
        return "repeat_num needs a plus: +repeat_num=3 or '+repeat_num=range(5)'"
    group = Config.model_fields.get(name.partition(".")[0])
    if group and isinstance(group.annotation, type) and issubclass(group.annotation, BaseModel):
        known = ", ".join(group.annotation.model_fields)
        return f"unknown setting '{name}': {name.partition('.')[0]} takes {known}"
    close = difflib.get_close_matches(name, SETTINGS, n=1)
    return f"unknown setting '{name}'; " + (f"did you mean {close[0]}?" if close else "see --help for all settings")
