"""One LEAF client's lists as arrays, and many clients' arrays as one; what cannot be one is refused."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.data import cache as array_cache
from fedprox.data.cache import Arrays
from fedprox.data.federated import ClientIndex, FederatedData, Floats, Integers, LabelledData
from fedprox.data.sources.leaf_files import LeafExamples, LeafUsers, data_folder, json_files, read, read_leaf
from fedprox.errors import UserError

VERSION = 2  # of what the arrays mean; a cache of another version is made anew
SMALLEST_BYTES = 5_000_000  # less JSON than this is read faster than a cache is worth
SLOW_BYTES = 300_000_000  # more JSON than this takes two seconds and is told
FILE = "leaf.npz"

_log = logging.getLogger("fedprox")


def cached(folder: Path, files: list[Path], make: Callable[[], Arrays]) -> Arrays:
    """Return make()'s arrays, from the cache where the files are those it was made from.

    The cache is one file, leaf.npz, in the first of `array_cache.places` that can be written. It says from
    what names, sizes and times of change it was made. Where it cannot be read it is made again; where it
    cannot be written there is none.

    Args:
        folder: Where the data set lies.
        files: All files that `make` reads, below `folder`.
        make: Reads them; its arrays hold numbers only.
    """
    try:
        status = [(str(file.relative_to(folder)), file.stat()) for file in files]
    except OSError:
        return make()  # which says of a file that it cannot be read
    size_bytes = sum(stat.st_size for _, stat in status)
    if size_bytes < SMALLEST_BYTES:
        return make()

    def make_and_tell() -> Arrays:
        if size_bytes > SLOW_BYTES:
            _log.info("reading %d LEAF files, %.1f GB ...", len(files), size_bytes / 1e9)
        return make()

    key = _key([(name, stat.st_size, stat.st_mtime_ns) for name, stat in status])
    return array_cache.cached(array_cache.places(folder, "leaf"), FILE, key, make_and_tell)


def _key(files: list[tuple[str, int, int]]) -> str:
    """Return what a cache must have been made from: the format and each file's name, size and time of change."""
    return hashlib.sha256(json.dumps([VERSION, sorted(files)]).encode()).hexdigest()


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
                "number the classes from 0, or read text with a function of fedprox.data.sources.text"
            )
    return np.array(y, dtype=np.int64)


def _features(where: str, x: list[Any]) -> Floats | Integers:
    """Return the features, shape (n, *input_shape): int64 if there are only whole numbers, else float32."""
    array = _regular(where, x)
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"{where}: each x must consist of numbers, but one holds {_short(next(_others(x), None))}; "
            "write numbers, or read text with a function of fedprox.data.sources.text"
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


__all__ = ["LeafExamples", "LeafUsers", "leaf", "read_leaf"]


def leaf(path: str, num_classes: int | None = None) -> FederatedData:
    """Return a data set of numbers in LEAF's format, divided among clients as it comes.

    Clients 0, 1, ... are the ids sorted as strings. `features` holds the training examples of all clients
    and then the test examples of all, both in the files' order: float32 of any one shape, or int64 where all
    x are flat lists of whole numbers >= 0 (5, not 5.0), which are taken for token sequences. Text is for
    `read_leaf`. There is no global test set. From the second time on a large data set comes from a cache
    (`fedprox.data.sources.leaf`); to read a file takes about five times its size in memory.

    Args:
        path: Folder with train/ and test/ in it.
        num_classes: Number of classes, larger than every label; None: the largest label + 1.

    Raises:
        UserError: If a file is missing or does not hold what it must, or num_classes is too small.
    """
    if num_classes is not None and not (type(num_classes) is int and num_classes >= 1):
        raise UserError(f"dataset.num_classes must be a whole number >= 1, got {num_classes}; null counts the classes")
    folder = data_folder(path)
    files = json_files(folder)
    arrays = cached(folder, files["train"] + files["test"], lambda: _pack(folder, files))
    names = json.loads(arrays["names"].tobytes())
    smallest = _num_classes(arrays, folder, names["where"], num_classes)
    data = LabelledData(
        features=arrays["features"],
        labels=arrays["labels"],
        test_features=arrays["features"][:0],
        test_labels=arrays["labels"][:0],
        num_classes=num_classes or smallest,
        mean=np.zeros((), dtype=np.float32),
        std=np.ones((), dtype=np.float32),
    )
    train, held_out = _sides(arrays)
    return FederatedData(data, train, held_out, tuple(names["ids"]))


def _pack(folder: Path, files: Mapping[str, list[Path]]) -> Arrays:
    """Return a data set as arrays of numbers.

    features, labels: The training examples of all clients, then the test examples of all.
    sizes: Each client's number of training examples, then each one's number of test examples.
    names: Bytes of JSON: ids, and like `sizes` where each part stands, as errors name it below the folder.
    """
    ids, train, test = read(files, _arrays)
    parts = [*train, *test]
    names = {"ids": ids, "where": [part.where.removeprefix(f"{folder}/") for part in parts]}
    return {
        "features": joined_features(parts),
        "labels": np.concatenate([part.labels for part in parts]),
        "sizes": np.array([len(part.labels) for part in parts], dtype=np.int64),
        "names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
    }


def _arrays(examples: LeafExamples) -> ClientArrays:
    return client_arrays(examples.where, examples.x, examples.y)


def _num_classes(arrays: Arrays, folder: Path, where: list[str], num_classes: int | None) -> int:
    """Return the largest label + 1.

    Raises:
        UserError: If that is more than `num_classes`.
    """
    first = int(arrays["labels"].argmax())
    smallest = int(arrays["labels"][first]) + 1
    if num_classes is not None and smallest > num_classes:
        part = int(np.searchsorted(np.cumsum(arrays["sizes"]), first, side="right"))
        raise UserError(
            f"{folder / where[part]}: each y must be between 0 and dataset.num_classes - 1 = {num_classes - 1}, "
            f"got {smallest - 1}; set dataset.num_classes={smallest}, or null to count the classes"
        )
    return smallest


def _sides(arrays: Arrays) -> tuple[ClientIndex, ClientIndex]:
    """Return each client's training examples and its test examples as positions in the features."""
    offsets = np.concatenate([[0], np.cumsum(arrays["sizes"])])
    num_clients = len(arrays["sizes"]) // 2
    start_of_test = offsets[num_clients]
    return (
        ClientIndex(np.arange(start_of_test), offsets[: num_clients + 1]),
        ClientIndex(np.arange(start_of_test, offsets[-1]), offsets[num_clients:] - start_of_test),
    )
