"""Configurations for tests that need no command."""

from typing import Any

from fedprox.config.compose import compose
from fedprox.config.schema import Config


def config_of(*overrides: str, **changes: Any) -> Config:
    """Return what overrides compose, with some settings replaced as a whole."""
    return Config.of(compose(overrides).plain() | changes)
