"""Plain values as JSON text and named arrays: what a checkpoint holds, written and read without running any code.

None, numbers, strings, NumPy arrays and Flower's ArrayRecords, and lists, tuples and dicts of these.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedprox.arrays import to_numpy, to_record

Arrays = dict[str, NDArray[np.generic]]


def encoded(value: Any) -> tuple[str, Arrays]:
    """Return a value as JSON text, and the arrays that it names."""
    arrays: Arrays = {}
    return json.dumps(_to_json(value, "", arrays)), arrays


def decoded(text: str, arrays: Mapping[str, NDArray[np.generic]]) -> Any:
    """Return the value that was encoded.

    Raises:
        KeyError, TypeError, ValueError: If the text or the arrays are not those of an encoded value.
    """
    return _from_json(json.loads(text), arrays)


def _to_json(value: Any, name: str, arrays: Arrays) -> Any:
    """Return a value as JSON has it; what JSON has not is a dict with the one key "list", "dict", "array", ..."""
    if isinstance(value, ArrayRecord):
        own = {key: f"{name}/{key}" for key in value}
        arrays |= {own[key]: to_numpy(array) for key, array in value.items()}
        return {"record": own}
    if isinstance(value, Mapping):
        return {"dict": [[key, _to_json(each, f"{name}/{key}", arrays)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_to_json(each, f"{name}/{index}", arrays) for index, each in enumerate(value)]}
    if isinstance(value, (np.ndarray, np.generic)):
        arrays[name] = np.asarray(value)
        return {"array" if isinstance(value, np.ndarray) else "scalar": name}
    return value


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
