"""Composition of configurations, done only here: Hydra's files and a command's arguments in, a Config out."""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from fedprox.config.schema import SEVERAL, TARGETS, Config, unknown
from fedprox.errors import UserError, joined_lines, one_line, printable

_PACKAGE = Path(__file__).parents[1]
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())  # installed, checkout

_HAVE_MU = ("fedprox.strategies.fedprox.FedProx", "fedprox.strategies.fedprox.FedDane")
_ALPHA = {"fedprox.strategies.corrected.FedDyn": 0.01}  # strategies whose mu has another meaning, and its default
_FLOWER = "fedprox.plan.protocols.FlowerProtocol"


def _of_fedprox(mu: float, *, _root_: DictConfig) -> float:
    """Return a default for mu, as ${of_fedprox:1.0} in conf/: the value for FedProx and FedDANE, FedDyn's alpha, or 0.

    So mu is a number in every configuration, and a data set or a preset can have its own default.
    """
    target = OmegaConf.select(_root_, "strategy._target_")
    return float(mu) if target in _HAVE_MU else _ALPHA.get(target, 0.0)


def _of_flower(value: float, *, _root_: DictConfig) -> float:
    """Return a default, as ${of_flower:0.001} in conf/: the value with protocol=flower, 0 with any other."""
    return float(value) if OmegaConf.select(_root_, "protocol._target_") == _FLOWER else 0.0


def _of_synchronous(value: float, *, _root_: DictConfig) -> float:
    """Return a default, as ${of_synchronous:0.9} in conf/: the value with arrival=synchronous, 0 with any other."""
    return float(value) if OmegaConf.select(_root_, "arrival.name") == "synchronous" else 0.0


def _of_buffer(value: int, *, _root_: DictConfig) -> int:
    """Return a default, as ${of_buffer:10} in conf/: arrival.buffer with arrival=buffered, the value with any other."""
    buffer = OmegaConf.select(_root_, "arrival.buffer")
    return value if buffer is None else buffer


OmegaConf.register_new_resolver(
    "of_fedprox", _of_fedprox, replace=True
)  # at import: a sweep's jobs may run in other processes
OmegaConf.register_new_resolver("of_flower", _of_flower, replace=True)
OmegaConf.register_new_resolver("of_synchronous", _of_synchronous, replace=True)
OmegaConf.register_new_resolver("of_buffer", _of_buffer, replace=True)


@contextmanager
def _conf_known() -> Iterator[None]:
    """Let Hydra read conf/, unless it is running a command, which may have added folders."""
    is_running = GlobalHydra.instance().is_initialized()
    with (
        nullcontext()
        if is_running
        else hydra.initialize_config_dir(version_base=None, config_dir=str(CONF), job_name="main")
    ):
        yield


_one_at_a_time = threading.RLock()
_GLOBALS = ((GlobalHydra, "hydra"), (HydraConfig, "cfg"), (JobRuntime, "conf"), (VersionBase, "version_base"))


@contextmanager
def apart() -> Iterator[None]:
    """Compose as if no program of Hydra's ran in this process; afterwards one that does is as it was."""
    with _one_at_a_time:
        earlier = [(kind, name, getattr(kind(), name)) for kind, name in _GLOBALS]
        GlobalHydra().clear()
        JobRuntime().conf = OmegaConf.create()
        try:
            yield
        finally:
            for kind, name, value in earlier:
                setattr(kind(), name, value)


class HydraJob:
    """What Hydra would give to the job of a command, composed without running it.

    Attributes:
        run_dir: The run directory that the command would have, relative to the working directory.
        sweep_dir: The directory that a sweep would have.
        log_format: Of the lines in main.log.
    """

    def __init__(self, overrides: Sequence[str], config_name: str) -> None:
        """Compose.

        Raises:
            UserError: If the configuration cannot be composed.
        """
        with apart(), _conf_known(), errors_explained():
            self._whole = hydra.compose(config_name, [*overrides, "hydra.mode=RUN"], return_hydra_config=True)
            HydraConfig.instance().set_config(self._whole)
            self.run_dir = str(OmegaConf.select(self._whole, "hydra.run.dir"))
            self.sweep_dir = str(OmegaConf.select(self._whole, "hydra.sweep.dir"))
            self.log_format = str(OmegaConf.select(self._whole, "hydra.job_logging.formatters.simple.format"))

    def settings(self, run_dir: Path) -> Config:
        """Return the settings of a job in this directory.

        Raises:
            UserError: If a reference leads nowhere, or a setting breaks a rule.
        """
        with read_write(self._whole.hydra.runtime), open_dict(self._whole.hydra.runtime):
            self._whole.hydra.runtime.output_dir = str(run_dir.absolute())
        with apart():
            HydraConfig.instance().set_config(self._whole)
            return checked(self.config)

    @property
    def hydra(self) -> DictConfig:
        """Hydra's own configuration."""
        return OmegaConf.masked_copy(self._whole, "hydra")

    @property
    def config(self) -> DictConfig:
        """Ours, with references unresolved."""
        return OmegaConf.masked_copy(self._whole, [str(name) for name in self._whole if name != "hydra"])


@contextmanager
def errors_explained() -> Iterator[None]:
    """Turn the errors of Hydra and OmegaConf into a UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error)) from None  # what Hydra did says no more


def compose(overrides: Sequence[str] = (), config_name: str = "config") -> Config:
    """Return the configuration of `python -m fedprox.main --config-name NAME OVERRIDES`, without sweeps.

    Raises:
        UserError: If it cannot be composed, or a setting breaks a rule.
    """
    return checked(composed(overrides, config_name))


def composed(overrides: Sequence[str], config_name: str) -> DictConfig:
    """Return what Hydra composes, with references unresolved."""
    with _conf_known(), errors_explained():
        return hydra.compose(config_name, list(overrides))


def checked(config: DictConfig) -> Config:
    """Return a composed configuration with all references resolved.

    Raises:
        UserError: If a reference leads nowhere, or a setting breaks a rule.
    """
    with errors_explained():
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return Config.of(_unsigned_zeros(plain))


def _unsigned_zeros(value: Any) -> Any:
    """Return a setting with 0.0 for every -0.0, which passes checks for >= 0 but which NumPy refuses as negative."""
    if isinstance(value, dict):
        return {key: _unsigned_zeros(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_unsigned_zeros, value))
    return value + 0.0 if isinstance(value, float) else value


def as_given(overrides: Any) -> list[str]:
    """Return overrides as text, with references such as mu=${...} unresolved."""
    return OmegaConf.to_container(overrides, resolve=False)  # type: ignore[return-value]


def each_value_once(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield lists of overrides without sweeps, in which each value of each swept setting occurs.

    One setting is varied at a time, with the others at their first value: there are as many lists as values, not as
    jobs. A setting whose values cannot be listed, such as interval(0, 1), is left out: the sweeper chooses its values.

    Raises:
        UserError: If a swept setting has no value.
    """
    choices = [values for override in parsed(overrides) if (values := values_of(override))]
    first = [values[0] for values in choices]
    yield first
    for position, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:position], value, *first[position + 1 :]]


def values_of(override: Override) -> list[str]:
    """Return an override for each value of a swept override; none if the values cannot be listed.

    Raises:
        UserError: If there is no value.
    """
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        return []
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise UserError(f"{override.input_line} gives no value, so the sweep has no job; give one or more")
    return values


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Return parsed overrides."""
    with _conf_known(), errors_explained():
        loader = GlobalHydra.instance().config_loader()  # which expands glob(*)
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def explained(error: BaseException) -> str:
    """Return in one line what is wrong with a configuration that could not be composed or used."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return one_line(error)
    message = str(error)
    if misspelt := re.match(r"Could not override '([\w.]+)'", message):
        name, group = misspelt[1], misspelt[1].partition(".")[0]
        if group not in (*TARGETS, *SEVERAL) and (name != "evaluation"):
            return unknown(name)
        key = getattr(error.__cause__, "full_key", name) if name == group else name  # an object is merged into a group
        return f"{key} is not a key of {group} as chosen; add one with a plus: +{key}=<value>"
    lines = _relevant_lines(message)
    if override := getattr(error, "override", None):  # grammar errors know the override but do not name it
        lines.insert(0, f"cannot parse {override}:")
    if key := getattr(error, "full_key", None):
        lines.insert(0, f"{key}:")
    if message.startswith("Error merging override") and error.__cause__:
        lines += _relevant_lines(str(error.__cause__))[:1]  # the cause says what is wrong with the value
    if message.startswith("Cannot find primary config"):
        lines.append("there are config (the default) and fedavg")
    return printable(joined_lines("\n".join(lines)))


def _relevant_lines(message: str) -> list[str]:
    """Return the lines of a message of Hydra's or OmegaConf's that help the user."""
    lines = [line.strip() for line in message.partition("Config search path:")[0].splitlines()]
    return [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https://"))]
