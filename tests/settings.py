"""Configurations for tests that need no command."""

from functools import cache
from typing import Any

from fedprox.config.compose import compose
from fedprox.config.schema import Config


def config_of(*overrides: str, **changes: Any) -> Config:
    """Return what overrides compose, with some settings replaced as a whole."""
    return Config.of(_composed(*overrides).plain() | changes)


@cache
def _composed(*overrides: str) -> Config:
    return compose(overrides)
