"""State that a strategy carries from round to round, such as FedAdam's momenta.

Flower's strategies do not expose it, so it is read from their attributes: those that have changed since the start.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

_log = logging.getLogger("fedprox")
_SCALARS = (type(None), bool, int, float, str)


def layers(strategy: Any) -> list[Any]:
    """Return a strategy and those it wraps, found in its attributes and in lists, tuples and dicts among them."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [strategy]
    while waiting:
        value = waiting.pop(0)
        if id(value) in seen or not isinstance(value, (Strategy, list, tuple, dict)):
            continue
        seen.add(id(value))
        if isinstance(value, Strategy):
            found.append(value)
            value = vars(value)
        waiting += value.values() if isinstance(value, dict) else value
    return found


class StrategyState:
    """Takes and restores the state of a strategy and of those it wraps.

    A user's strategy may define its state itself by `state_dict()` and `load_state_dict(state)`. State consists of
    None, numbers, strings, NumPy arrays, ArrayRecords, and lists, tuples and dicts of these.
    """

    def __init__(self, strategy: Any) -> None:
        """Remember the strategy's attributes before its first round."""
        self._layers = layers(strategy)
        self._initial = [{name: _copied(value) for name, value in vars(layer).items()} for layer in self._layers]
        self._reported: set[str] = set()

    def take(self) -> list[dict[str, Any]]:
        """Return the current state, one entry per layer; later rounds do not change it."""
        return [self._of(layer, initial) for layer, initial in zip(self._layers, self._initial, strict=True)]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Bring the strategy back to a state that `take` returned."""
        for layer, values in zip(self._layers, state, strict=True):
            if hasattr(layer, "load_state_dict"):
                layer.load_state_dict(_copied(values))
            else:
                vars(layer).update(_copied(values))

    def _of(self, layer: Any, initial: Mapping[str, Any]) -> dict[str, Any]:
        if hasattr(layer, "state_dict"):
            return dict(_copied(layer.state_dict()))
        changed = {name: value for name, value in vars(layer).items() if not _same(value, initial.get(name))}
        for name, value in changed.items():
            if not is_plain(value) and name not in self._reported:
                self._reported.add(name)
                _log.warning(
                    "%s.%s changes and cannot be saved in a checkpoint: give the strategy state_dict() and "
                    "load_state_dict(state), or a resumed run may differ",
                    type(layer).__name__,
                    name,
                )
        return {name: _copied(value) for name, value in changed.items() if is_plain(value)}


def is_plain(value: Any) -> bool:
    """Return whether a checkpoint can hold a value."""
    if isinstance(value, Mapping) and not isinstance(value, ArrayRecord):
        return all(isinstance(key, _SCALARS) and is_plain(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, (*_SCALARS, ArrayRecord, np.ndarray, np.generic))


def _same(value: Any, initial: Any) -> bool:
    return value is initial or (type(value) is type(initial) and isinstance(value, _SCALARS) and value == initial)


def _copied(value: Any) -> Any:
    """Return a copy of a value with its containers and arrays; what is not plain stays the same object."""
    if isinstance(value, ArrayRecord):  # its arrays are never modified in place
        return ArrayRecord({**value})
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()} if is_plain(value) else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value)) if is_plain(value) else value
    return value.copy() if isinstance(value, np.ndarray) and value.flags.writeable else value
