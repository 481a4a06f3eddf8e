"""Configurations as YAML files, with every reference resolved; reading one does not need Hydra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with omegaconf

from fedprox.config.schema import Config
from fedprox.errors import UserError, one_line


def write_yaml(content: Mapping[str, Any] | Sequence[str], file: Path) -> None:
    """Write plain containers as YAML."""
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")  # type: ignore[call-overload]


def read_config(file: Path) -> Config:
    """Return the configuration in a file.

    Raises:
        UserError: If the file cannot be read, or a setting breaks a rule.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    return Config.of(plain, source=str(file))  # type: ignore[arg-type]
