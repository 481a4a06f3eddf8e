"""Hydra's composition with each file of conf/ read once, and the same files merged once, for a process of tests.

Composing takes most of the time of hundreds of small commands, and does this work again each time. What is kept is
copied by pickle, because a composition changes it.
"""

import pickle
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository

CONF = Path(__file__).parents[1] / "conf"
_read, _merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
_choices = defaults_list._create_interpolation_map
_kept: dict[Hashable, bytes] = {}


@contextmanager
def quick_composition() -> Iterator[None]:
    """Let Hydra compose faster until the block ends."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ConfigRepository, "load_config", _read_once)
        patched.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merge_once)
        patched.setattr(defaults_list, "_create_interpolation_map", _choices_if_needed)
        yield


@contextmanager
def hydras_composition() -> Iterator[None]:
    """Let Hydra compose as it does without these tests until the block ends."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ConfigRepository, "load_config", _read)
        patched.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merge)
        patched.setattr(defaults_list, "_create_interpolation_map", _choices)
        yield


def _read_once(repository: Any, config_path: str) -> Any:
    if not _is_conf_alone(repository):
        return _read(repository, config_path)
    return _once(config_path, lambda: _read(repository, config_path))


def _merge_once(loader: Any, defaults: list[Any], repo: Any) -> Any:
    if not _is_conf_alone(repo):
        return _merge(loader, defaults, repo)
    return _once(("merged", repr(defaults)), lambda: without_time(_merge(loader, defaults, repo)))


def without_time(config: Any) -> Any:
    """Return a configuration that does not remember when it was made, as ${now:...} would."""
    (config.config if hasattr(config, "config") else config)._metadata.resolver_cache.clear()
    return config


def _choices_if_needed(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
    """Return the map of choices only if one of the files names another by a reference such as ${dataset}."""
    is_needed = any(default.is_interpolation() for default in defaults if not default.is_self())
    return _choices(overrides, defaults, self_added) if is_needed else None


def _is_conf_alone(repository: Any) -> bool:
    """Return whether conf/ is the only folder in which configurations are looked up."""
    return {source.path for source in repository.get_sources() if source.scheme() == "file"} == {str(CONF)}


def _once(key: Hashable, make: Callable[[], Any]) -> Any:
    if key not in _kept:
        _kept[key] = pickle.dumps(make())
    return pickle.loads(_kept[key])
