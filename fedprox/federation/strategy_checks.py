"""Strategies that are refused, and settings of strategies that would have no effect: one line each, before any data.

What Flower's strategies say of sampling and evaluation does not apply here, because the plan says who trains and the
server evaluates; a setting that is passed over in silence would be believed.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any

from fedprox.errors import UserError
from fedprox.federation.strategy_state import layers

_SAMPLING = "has no effect: clients_per_round says how many clients train; leave it out"
_EVALUATION = "has no effect: no client is asked to evaluate; use evaluation=clients, and leave it out"
_NO_EFFECT = {
    "fraction_train": _SAMPLING,
    "min_train_nodes": _SAMPLING,
    "min_available_nodes": _SAMPLING,
    "fraction_evaluate": _EVALUATION,
    "min_evaluate_nodes": _EVALUATION,
    "evaluate_metrics_aggr_fn": _EVALUATION,
}
_READ_HERE = {"arrayrecord_key": "arrays", "configrecord_key": "config"}  # where clients look
REPORTED = ("num-examples", "train-loss", "num-steps", "drift")  # the metrics of every client's reply
_PRIVATE = (
    "is refused: Flower's differential privacy is void here. Its client-side wrappers add noise while no client clips, "
    "its noise is not seeded, and its sensitivity is understated where clients are weighted by examples or stragglers "
    "are dropped; name the wrapped strategy instead"
)


def check_settings(node: Mapping[str, Any], name: str = "strategy") -> None:
    """Raise UserError for a setting of a strategy, or of one that it wraps, that is refused or has no effect.

    Args:
        node: What the configuration says of the strategy; its class has been imported.
        name: How the node is called in the configuration.
    """
    if isinstance(path := node.get("_target_"), str):
        _refuse_private(_named(path), f"{name}._target_={path}")
    for key, value in node.items():
        if key in _NO_EFFECT:
            raise UserError(f"{name}.{key}={value} {_NO_EFFECT[key]}")
        if key == "proximal_mu":
            raise UserError(f"{name}.proximal_mu={value} has no effect: clients are sent the run's mu; set mu={value}")
        if isinstance(value, Mapping):
            check_settings(value, f"{name}.{key}")


def fit(strategy: Any, mu: float) -> None:
    """Let a strategy read clients' metrics under their names here.

    Args:
        strategy: As its class has made it.
        mu: The run's.

    Raises:
        UserError: If it is refused, or its class has made it unfit for the clients here.
    """
    for layer in layers(strategy):
        kind = type(layer).__name__
        _refuse_private(type(layer), kind)
        own_mu = getattr(layer, "proximal_mu", None)
        if own_mu and own_mu != mu:
            raise UserError(f"{kind} has proximal_mu={own_mu}, but clients get the run's mu={mu:g}; set mu={own_mu}")
        if getattr(layer, "train_loss_key", None) == "train_loss":  # QFedAvg's default
            layer.train_loss_key = "train-loss"
        for key, needed in _READ_HERE.items():
            if getattr(layer, key, needed) != needed:
                raise UserError(f"{kind} has {key}={getattr(layer, key)}, where no client looks; it must be {needed}")
        for key in ("weighted_by_key", "train_loss_key"):
            if getattr(layer, key, REPORTED[0]) not in REPORTED:
                raise UserError(
                    f"{kind} has {key}={getattr(layer, key)}, which no client reports; set +strategy.{key} to one of "
                    f"{', '.join(REPORTED)}"
                )


def _named(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except Exception:  # of a nested one; making the strategy says what is wrong with it
        return None


def _refuse_private(kind: Any, name: str) -> None:
    """Raise UserError if a class is one of Flower's differential-privacy wrappers, or made from one."""
    for each in getattr(kind, "__mro__", ()):
        if each.__module__.startswith("flwr.") and each.__name__.startswith("DifferentialPrivacy"):
            raise UserError(f"{name} {_PRIVATE}")
