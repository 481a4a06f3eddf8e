"""One LEAF client's lists as arrays, and many clients' arrays as one; what cannot be one is refused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.data.federated import Floats, Integers
from fedprox.errors import UserError

END_OF_LABELS = 1_000_000  # a label beyond is no class: a model needs an output for each


@dataclass(frozen=True)
class ClientArrays:
    """One client's examples.

    Attributes:
        where: Its file and id, as errors name them.
        features: int64 where the file has only whole numbers, else float32; shape (n, *input_shape).
        labels: Shape (n,).
    """

    where: str
    features: Floats | Integers
    labels: Integers


def client_arrays(where: str, x: list[Any], y: list[Any]) -> ClientArrays:
    """Return a client's lists as arrays.

    Args:
        where: Its file and id, for errors.
        x: Each a list of numbers, nested at will, all of one shape; at least one.
        y: Whole numbers from 0, such as 3 or 3.0.

    Raises:
        UserError: If they are anything else.
    """
    return ClientArrays(where, _features(where, x), _labels(where, y))


def joined_features(clients: Sequence[ClientArrays]) -> Floats | Integers:
    """Return all clients' features, one after another: float32, or int64 where they are token sequences.

    Token sequences are what consists, in all clients, of flat lists of whole numbers >= 0 (5, not 5.0).

    Raises:
        UserError: If the shapes differ between clients.
    """
    first = clients[0]
    shape = first.features.shape[1:]
    for client in clients:
        if client.features.shape[1:] != shape:
            raise UserError(
                f"{client.where}: each x must have one shape in the whole data set, got {client.features.shape[1:]}, "
                f"but {shape} in {first.where}; leave out or pad what differs"
            )
    if len(shape) == 1 and all(client.features.dtype == np.int64 and client.features.min() >= 0 for client in clients):
        return np.concatenate([client.features for client in clients])
    return np.concatenate([client.features for client in clients], dtype=np.float32, casting="same_kind")


def _labels(where: str, y: list[Any]) -> Integers:
    """Return the labels, shape (n,)."""
    for label in y:
        if not (type(label) in (int, float) and 0 <= label < END_OF_LABELS and label == int(label)):
            raise UserError(
                f"{where}: each y must be a whole number, the class 0, 1, ..., got {_short(label)}; "
                "number the classes from 0, or read text with a function of fedprox.data.text"
            )
    return np.array(y, dtype=np.int64)


def _features(where: str, x: list[Any]) -> Floats | Integers:
    """Return the features, shape (n, *input_shape): int64 if there are only whole numbers, else float32."""
    array = _regular(where, x)
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"{where}: each x must consist of numbers, but one holds {_short(next(_others(x), None))}; "
            "write numbers, or read text with a function of fedprox.data.text"
        )
    if array.ndim < 2 or not array.size:
        raise UserError(f"{where}: each x must be a list of numbers, at least one, got {_short(x[0])}; mend the file")
    if array.dtype == np.int64:
        return array
    with np.errstate(over="ignore"):  # told below
        features = array.astype(np.float32)
    finite = np.isfinite(features)
    if not finite.all():
        value = array[~finite][0]
        raise UserError(f"{where}: each x must be finite in float32, got {value}; leave out or replace such examples")
    return features


def _regular(where: str, x: list[Any]) -> NDArray[Any]:
    """Return the features as NumPy understands them."""
    try:
        return np.array(x)
    except (ValueError, OverflowError):
        raise UserError(
            f"{where}: each x must have the same shape, but their lengths differ; leave out or pad what differs"
        ) from None


def _others(x: Any) -> Iterator[Any]:
    """Yield what is not a number, however deep."""
    if isinstance(x, list):
        for value in x:
            yield from _others(value)
    elif type(x) not in (int, float):
        yield x


def _short(value: Any) -> str:
    """Return a value as a message shows it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
