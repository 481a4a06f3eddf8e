"""What a strategy carries from round to round: FedAdam's momenta, and the like.

Flower's strategies have no way to tell it, so it is what their attributes are besides those they were made with.
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
    """Return a strategy and those it wraps: in attributes, or in lists, tuples and dicts that are attributes."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting: list[Any] = [strategy]
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

    A strategy of one's own may say what it is with `state_dict()` and `load_state_dict(state)`. State is made of
    None, numbers, strings, NumPy arrays, ArrayRecords, and of lists, tuples and dicts of these.
    """

    def __init__(self, strategy: Any) -> None:
        """Note what the strategy is like before its first round."""
        self._layers = layers(strategy)
        self._initial = [{name: _copied(value) for name, value in vars(layer).items()} for layer in self._layers]
        self._reported: set[str] = set()

    def take(self) -> list[dict[str, Any]]:
        """Return the present state, one entry per layer; later rounds do not change it."""
        return [self._of(layer, initial) for layer, initial in zip(self._layers, self._initial, strict=True)]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Make the state what it was when it was taken."""
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
                    "%s.%s changes and cannot be kept in a checkpoint: give the strategy state_dict() and "
                    "load_state_dict(state), or a resumed run may differ",
                    type(layer).__name__,
                    name,
                )
        return {name: _copied(value) for name, value in changed.items() if is_plain(value)}


def is_plain(value: Any) -> bool:
    """Return whether a value is made of nothing but what a checkpoint can hold."""
    if isinstance(value, Mapping) and not isinstance(value, ArrayRecord):
        return all(isinstance(key, _SCALARS) and is_plain(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, (*_SCALARS, ArrayRecord, np.ndarray, np.generic))


def _same(value: Any, initial: Any) -> bool:
    return value is initial or (type(value) is type(initial) and isinstance(value, _SCALARS) and value == initial)


def _copied(value: Any) -> Any:
    """Return a value with containers and arrays of its own; what is not plain stays the same object."""
    if isinstance(value, ArrayRecord):  # its arrays are never changed in place
        return ArrayRecord({**value})
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()} if is_plain(value) else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value)) if is_plain(value) else value
    return value.copy() if isinstance(value, np.ndarray) else value
