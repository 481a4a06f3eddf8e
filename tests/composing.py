"""Hydra's work on this checkout's configuration files, done once per test process and not once per command.

A command in this process that is refused costs 0.3 s, nearly all of which Hydra needs to read the same forty files and
to merge them, twice: it composes everything once more to learn hydra.mode. What it reads and merges depends on the
files and on the choices in groups alone, so both are remembered. Commands that may say more (hydra.mode,
hydra.searchpath, another folder of configurations) take Hydra's own way.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf

from fedprox.config.compose import CONF

OURS = {("file", str(CONF)), ("pkg", "hydra.conf"), ("structured", "")}
MAY_SET_THE_MODE = re.compile(r"[+~]*hydra(=|$|\.(mode|searchpath))")
_get_mode, _read = Hydra.get_mode, ConfigRepository.load_config
_merge = ConfigLoaderImpl._compose_config_from_defaults_list
_files: dict[str, Any] = {}
_merged: dict[tuple, Any] = {}


@contextmanager
def remembered() -> Iterator[None]:
    """Let Hydra remember what it has read and merged."""
    Hydra.get_mode = _mode
    ConfigRepository.load_config = _read_once
    ConfigLoaderImpl._compose_config_from_defaults_list = _merged_once
    try:
        yield
    finally:
        Hydra.get_mode = _get_mode
        ConfigRepository.load_config = _read
        ConfigLoaderImpl._compose_config_from_defaults_list = _merge


def _mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    if _is_ours(self.config_loader.get_sources()) and not any(map(MAY_SET_THE_MODE.match, overrides)):
        return None  # the files of conf/ leave it open
    return _get_mode(self, config_name, overrides)


def _read_once(self: ConfigRepository, config_path: str) -> Any:
    if not _is_ours(self.sources):
        return _read(self, config_path)
    if config_path not in _files:
        _files[config_path] = _read(self, config_path)
    return copy.deepcopy(_files[config_path])


def _merged_once(self: ConfigLoaderImpl, defaults: list, repo: Any) -> Any:
    if not _is_ours(repo.get_sources()):
        return _merge(self, defaults, repo)
    key = tuple((each.config_path, each.parent, each.package, each.is_self, each.primary) for each in defaults)
    if key not in _merged:
        _merged[key] = _merge(self, defaults, repo)
    config = copy.deepcopy(_merged[key])
    OmegaConf.clear_cache(config)  # of ${now:}, which copies share
    return config


def _is_ours(sources: list) -> bool:
    return {(source.scheme(), source.path) for source in sources} <= OURS
