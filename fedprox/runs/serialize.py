"""Plain values as JSON text and named arrays, for checkpoints that are read without running any code.

Plain values are None, numbers, strings, NumPy arrays, Flower's ArrayRecords, and lists, tuples and dicts of these.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedprox.strategies.arrays import to_numpy, to_record

Arrays = dict[str, NDArray[np.generic]]


def encoded(value: Any) -> tuple[str, Arrays]:
    """Return a value as JSON text and the arrays that the text refers to by name."""
    arrays: Arrays = {}
    return json.dumps(_to_json(value, "", arrays)), arrays


def decoded(text: str, arrays: Mapping[str, NDArray[np.generic]]) -> Any:
    """Return the value that was encoded.

    Raises:
        KeyError, TypeError, ValueError: If the text or the arrays were not made by `encoded`.
    """
    return _from_json(json.loads(text), arrays)


def _to_json(value: Any, name: str, arrays: Arrays) -> Any:
    """Return a value for JSON; containers and arrays become a dict with one key: "list", "dict", "array", ..."""
    if isinstance(value, ArrayRecord):
        return {"record": {key: _named(to_numpy(array), f"{name}/{key}", arrays) for key, array in value.items()}}
    if isinstance(value, Mapping):
        return {"dict": [[key, _to_json(each, f"{name}/{key}", arrays)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_to_json(each, f"{name}/{index}", arrays) for index, each in enumerate(value)]}
    if isinstance(value, (np.ndarray, np.generic)):
        return {"array" if isinstance(value, np.ndarray) else "scalar": _named(np.asarray(value), name, arrays)}
    return value


def _named(array: NDArray[np.generic], path: str, arrays: Arrays) -> str:
    """Add an array and return its name: a number, because the keys 1 and "1" give the same path, and its path."""
    name = f"{len(arrays)}{path}"
    arrays[name] = array
    return name


def _from_json(value: Any, arrays: Mapping[str, NDArray[np.generic]]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {key: _from_json(each, arrays) for key, each in inner}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_from_json(each, arrays) for each in inner)
    if kind == "record":
        return to_record({key: arrays[name] for key, name in inner.items()})
    return {"array": arrays[inner], "scalar": arrays[inner][()]}[kind]
