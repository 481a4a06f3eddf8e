"""Calls of a strategy, which may be anyone's: what it draws repeats, what it raises or returns wrongly is one line."""

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MessageType

from fedprox.errors import USERS, RunStopped, UserError, reason
from fedprox.strategies.arrays import to_numpy

Metrics = dict[str, int | float]
_NAME = re.compile(r"[\w.:/()%-][\w.:/()% -]*", re.ASCII)  # as a column of a table that is split at commas


@contextmanager
def repeatable(rng: np.random.Generator) -> Iterator[None]:
    """Let all that is drawn from global generators meanwhile follow from this one; they are left as they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # what strategies draw from
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


@contextmanager
def annotated(call: str) -> Iterator[None]:
    """Turn whatever is raised meanwhile into RunStopped, with the place in the user's code.

    Args:
        call: What is called, such as "round 3: Mine.aggregate_train".
    """
    try:
        yield
    except (UserError, RunStopped, MemoryError):
        raise
    except USERS as error:
        raise RunStopped(f"{call}: {reason(error)}") from error


def checked_messages(messages: Any, call: str) -> list[Message]:
    """Return what configure_train has returned as a list.

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
    """Return the arrays and the metrics that aggregate_train has returned.

    Args:
        result: What it returned.
        shapes: Those of the model's arrays by name; None if they are not known.
        call: What was called.

    Raises:
        RunStopped: If it is not a model of these names and shapes and metrics of one number each, or None for either.
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
    if metrics is None:
        return {}
    try:
        named = dict(metrics)
    except (TypeError, ValueError):
        raise RunStopped(f"{call} must return metrics as a MetricRecord or None, got {_kind(metrics)}") from None
    for name, value in named.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RunStopped(f"{call} must name metrics by letters, digits, blanks and any of _-.:/()%, got {name!r}")
        if not isinstance(value, (int, float, np.integer, np.floating)):
            raise RunStopped(
                f"{call} must return one number for each metric, which metrics.csv can hold; {name!r} is {_kind(value)}"
            )
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in named.items()}


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
