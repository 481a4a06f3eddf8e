"""Settings that tests leave out of a configuration that they write themselves."""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

DEFAULTS: Settings = {
    "schedule": {"name": "constant", "final": 0.0},
    "mixed_precision": False,
    "last_batch": "keep",
    "augmentation": {"_target_": "fedprox.data.augmentation.none"},
    "batch_statistics": "averaged",
    "feature_skew": {"_target_": "fedprox.data.feature_skew.none"},
    "on_client_error": "stop",
    "on_divergence": "continue",
    "round_timeout": None,
    "on_timeout": "stop",
    "early_stopping": {"metric": None, "patience": 10, "min_delta": 0.0},
    "evaluation": {"per_class": False, "per_client": False},
    "logger": {},
    "checkpoint": {"every": 10, "keep": 2},
    "resume": None,
    "branch_from": None,
    "branch_round": None,
}


def completed(settings: Settings, defaults: Settings = DEFAULTS) -> dict[str, Any]:
    """Return settings with the defaults of those that are left out."""
    whole = {**defaults, **settings}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(whole[key], Mapping):
            whole[key] = completed(whole[key], value)
    return whole
