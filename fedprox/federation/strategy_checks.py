"""Checks of a strategy: its settings before a run, and what it raises and returns during one; each error is one line.

Flower's settings for sampling and evaluation have no effect here, because the plan says which clients train and the
server evaluates; a setting that is silently ignored would be believed.
"""

import pkgutil
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType

from fedprox.errors import USER_CODE_ERRORS, RunStopped, UserError, with_location
from fedprox.federation.strategy_state import layers
from fedprox.strategies.arrays import to_numpy

Metrics = dict[str, int | float]
REPORTED = ("num-examples", "train-loss", "num-steps", "drift")  # the metrics in every client's reply

_SAMPLING = "has no effect: clients_per_round sets how many clients train; remove it"
_EVALUATION = "has no effect: no client is asked to evaluate; use evaluation=clients and remove it"
_NO_EFFECT = {
    "fraction_train": _SAMPLING,
    "min_train_nodes": _SAMPLING,
    "min_available_nodes": _SAMPLING,
    "fraction_evaluate": _EVALUATION,
    "min_evaluate_nodes": _EVALUATION,
    "evaluate_metrics_aggr_fn": _EVALUATION,
}
_RECORD_KEYS = {"arrayrecord_key": "arrays", "configrecord_key": "config"}  # the names that clients read
_PRIVATE = (
    "is refused: Flower's differential privacy does not protect anything here. Its client-side wrappers add noise but "
    "no client clips, its noise is not seeded, and its sensitivity is too low if clients are weighted by examples or "
    "stragglers are dropped; name the wrapped strategy instead"
)
_METRIC_NAME = re.compile(r"[\w.:/()%-][\w.:/()% -]*", re.ASCII)  # safe as the name of a CSV column


# Before a run


def check_settings(node: Mapping[str, Any], name: str = "strategy") -> None:
    """Raise UserError if a setting of a strategy, or of one that it wraps, is refused or has no effect.

    Args:
        node: The strategy's configuration; its class has been imported.
        name: Path of the node in the configuration.
    """
    if isinstance(path := node.get("_target_"), str):
        _refuse_private(_class(path), f"{name}._target_={path}")
    for key, value in node.items():
        if key in _NO_EFFECT:
            raise UserError(f"{name}.{key}={value} {_NO_EFFECT[key]}")
        if key == "proximal_mu":
            raise UserError(f"{name}.proximal_mu={value} has no effect: clients get the run's mu; set mu={value}")
        if isinstance(value, Mapping):
            check_settings(value, f"{name}.{key}")


def fit(strategy: Any, mu: float) -> None:
    """Let a strategy read the clients' metrics by the names that they have here.

    Args:
        strategy: A new instance.
        mu: The run's.

    Raises:
        UserError: If the strategy is refused, or cannot work with the clients here.
    """
    for layer in layers(strategy):
        kind = type(layer).__name__
        _refuse_private(type(layer), kind)
        own_mu = getattr(layer, "proximal_mu", None)
        if own_mu and own_mu != mu:
            raise UserError(f"{kind} has proximal_mu={own_mu}, but clients get the run's mu={mu:g}; set mu={own_mu}")
        if getattr(layer, "train_loss_key", None) == "train_loss":  # QFedAvg's default
            layer.train_loss_key = "train-loss"
        for key, needed in _RECORD_KEYS.items():
            if getattr(layer, key, needed) != needed:
                raise UserError(f"{kind} has {key}={getattr(layer, key)}, which no client reads; it must be {needed}")
        for key in ("weighted_by_key", "train_loss_key"):
            if getattr(layer, key, REPORTED[0]) not in REPORTED:
                raise UserError(
                    f"{kind} has {key}={getattr(layer, key)}, which no client reports; set +strategy.{key} to one of "
                    f"{', '.join(REPORTED)}"
                )


def check_cohort(strategy: Any, clients_per_round: int) -> None:
    """Raise UserError if a strategy refuses cohorts of this size, by a method `check_cohort`."""
    for layer in layers(strategy):
        if hasattr(layer, "check_cohort"):
            layer.check_cohort(clients_per_round)


def _class(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except Exception:  # of a nested strategy; building it reports the error
        return None


def _refuse_private(kind: Any, name: str) -> None:
    """Raise UserError if a class is, or inherits from, one of Flower's differential-privacy wrappers."""
    for each in getattr(kind, "__mro__", ()):
        if each.__module__.startswith("flwr.") and each.__name__.startswith("DifferentialPrivacy"):
            raise UserError(f"{name} {_PRIVATE}")


# During a run


@contextmanager
def annotated(call: str) -> Iterator[None]:
    """Turn whatever the user's code raises in this context into RunStopped, with the place in that code.

    Args:
        call: The call, such as "round 3: Mine.aggregate_train".
    """
    try:
        yield
    except (UserError, RunStopped, MemoryError):
        raise
    except USER_CODE_ERRORS as error:
        raise RunStopped(f"{call}: {with_location(error)}") from error


def checked_messages(messages: Any, call: str) -> list[Message]:
    """Return the result of configure_train as a list.

    Raises:
        RunStopped: If it is not messages that ask clients to train a model.
    """
    try:
        listed = list(messages)
    except TypeError:
        raise RunStopped(f"{call} must return messages, got {_kind(messages)}") from None
    for message in listed:
        if not isinstance(message, Message):
            raise RunStopped(f"{call} must return messages, got {_kind(message)} among them")
        if message.metadata.message_type != MessageType.TRAIN:
            raise RunStopped(f"{call} must return messages of type train, got {message.metadata.message_type}")
        if not isinstance(message.content.get("arrays"), ArrayRecord):
            raise RunStopped(f"{call} must send the model as the ArrayRecord 'arrays', got a message without it")
    return listed


def checked_result(
    result: Any, shapes: Mapping[str, tuple[int, ...]] | None, call: str
) -> tuple[ArrayRecord | None, Metrics]:
    """Return the arrays and the metrics that aggregate_train returned.

    Args:
        result: The return value.
        shapes: Shapes of the model's arrays by name; None if unknown.
        call: The call, for errors.

    Raises:
        RunStopped: If it is not a model of these names and shapes with one number per metric, or None for either.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise RunStopped(f"{call} must return a tuple of arrays and metrics, got {_kind(result)}")
    arrays, metrics = result
    if arrays is not None and shapes is not None:
        _check_arrays(arrays, shapes, call)
    return arrays, _numbers(metrics, call)


def _check_arrays(arrays: Any, shapes: Mapping[str, tuple[int, ...]], call: str) -> None:
    if not isinstance(arrays, ArrayRecord):
        raise RunStopped(f"{call} must return arrays as an ArrayRecord or None, got {_kind(arrays)}")
    if unlike := set(arrays) ^ set(shapes):
        name = min(unlike)
        fault = "is not one of them" if name in arrays else "is missing"
        raise RunStopped(f"{call} must return the arrays of the model by name: {name!r} {fault}")
    for name, shape in shapes.items():
        array = to_numpy(arrays[name])
        if array.dtype.kind not in "fiub":
            raise RunStopped(f"{call} must return numbers, got {name!r} of type {array.dtype}")
        if array.shape != tuple(shape):
            raise RunStopped(f"{call} must return {name!r} of shape {tuple(shape)}, got {array.shape}")


def _numbers(metrics: Any, call: str) -> Metrics:
    """Return metrics as plain numbers by name."""
    try:
        named = dict({} if metrics is None else metrics)
    except (TypeError, ValueError):
        raise RunStopped(f"{call} must return metrics as a MetricRecord or None, got {_kind(metrics)}") from None
    for name, value in named.items():
        if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
            raise RunStopped(f"{call} must name metrics by letters, digits, spaces and any of _-.:/()%, got {name!r}")
        if not isinstance(value, (int, float, np.integer, np.floating, np.bool_)):
            raise RunStopped(
                f"{call} must return one number for each metric, which metrics.csv can hold; {name!r} is {_kind(value)}"
            )
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in named.items()}
    return {name: int(value) if isinstance(value, bool) else value for name, value in plain.items()}


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
