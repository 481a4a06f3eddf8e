"""The one place that composes configurations: Hydra's files and a command's words in, plain containers out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from fedprox.config.schema import Config
from fedprox.errors import UserError

_PACKAGE = Path(__file__).parents[1]


CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())  # installed, checkout


_HAVE_MU = ("fedprox.strategies.fedprox.FedProx", "fedprox.strategies.fedprox.FedDane")


def _of_fedprox(mu: float, *, _root_: DictConfig) -> float:
    """Return a default for mu, as ${of_fedprox:1.0} in conf/: the value for FedProx and FedDANE, 0 for the others.

    So every reader of a configuration meets a number, and a data set or a preset can have its own.
    """
    return float(mu) if OmegaConf.select(_root_, "strategy._target_") in _HAVE_MU else 0.0


OmegaConf.register_new_resolver("of_fedprox", _of_fedprox, replace=True)  # on import: jobs may be in other processes


def _unsigned_zeros(value: Any) -> Any:
    """Return a setting with 0.0 for every -0.0, which passes checks for >= 0 and which NumPy refuses as negative."""
    if isinstance(value, dict):
        return {key: _unsigned_zeros(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_unsigned_zeros, value))
    return value + 0.0 if isinstance(value, float) else value


def as_given(overrides: Any) -> list[str]:
    """Return overrides as their text is: "mu=${...}" is nothing but that."""
    return OmegaConf.to_container(overrides, resolve=False)  # type: ignore[return-value]


def each_value_once(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield lists of overrides without sweeps, in which each value of each swept setting occurs.

    Values are varied one setting at a time, the others at their first value: as many lists as there are
    values, not as there are jobs. What has no values that can be listed, such as interval(0, 1), is left out: the
    sweeper chooses them. Hydra must be initialised.

    Raises:
        UserError: If a swept setting has no value at all.
    """
    choices = []
    for override in _parsed(overrides):
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
            if not choices[-1]:
                raise UserError(f"{override.input_line} gives no value, so that the sweep has no job; give one or more")
    first = [values[0] for values in choices]
    yield first
    for position, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:position], value, *first[position + 1 :]]


def _parsed(overrides: Sequence[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()  # knows what glob(*) stands for
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def register() -> None:
    """Make the schema known to Hydra, under the name `schema` in conf/*.yaml."""
    ConfigStore.instance().store(name="schema", node=Config)


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain containers, references resolved and -0.0 as 0.0."""
    return _unsigned_zeros(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))  # type: ignore[no-any-return]
