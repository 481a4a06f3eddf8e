"""Runs that were made before a setting existed: what they did, so that they can be compared with later ones."""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

_LATER: Settings = {  # settings that came later, with the values that say what runs did before
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


def completed(settings: Settings, later: Settings = _LATER) -> dict[str, Any]:
    """Return the settings of a run of any version with all that the present one has; those it has are kept."""
    whole = {**later, **settings}
    for key, value in later.items():
        if isinstance(value, Mapping) and isinstance(whole[key], Mapping):
            whole[key] = completed(whole[key], value)
    return whole
