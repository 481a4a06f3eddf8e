"""LEAF's data sets of numbers: each client's lists as arrays, joined, and kept in a cache."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedprox.data import cache as array_cache
from fedprox.data import checks
from fedprox.data.cache import Arrays
from fedprox.data.federated import ClientIndex, FederatedData, Floats, Integers, LabelledData
from fedprox.data.sources.leaf_files import SIDES, LeafExamples, data_folder, json_files, read, read_side
from fedprox.errors import UserError

VERSION = 2  # of what the arrays mean; a cache of another version is made again
SMALLEST_BYTES = 5_000_000  # less JSON than this is read faster than a cache is worth
FILE = "leaf.npz"


def leaf(path: str, num_classes: int | None = None) -> FederatedData:
    """Return a data set of numbers in LEAF's format, with the clients and the split of its files.

    Clients 0, 1, ... are the ids sorted as strings. `features` holds the training examples of all clients and then the
    test examples of all, both in the files' order: float32 of any one shape, or int64 if all x are flat lists of
    integers >= 0 (5, not 5.0), which are taken for token sequences. Text is read by `fedprox.data.sources.text`. There
    is no global test set. A large data set is read from a cache after the first time; reading a file takes about five
    times its size in memory.

    Args:
        path: Folder with train/ and test/ in it.
        num_classes: Number of classes, larger than every label; None: the largest label + 1.

    Raises:
        UserError: If a file is missing or does not have LEAF's form, or num_classes is too small.
    """
    if num_classes is not None and not (type(num_classes) is int and num_classes >= 1):
        raise UserError(f"dataset.num_classes must be a whole number >= 1, got {num_classes}; null counts the classes")
    folder = data_folder(path)
    arrays = _cached(folder, json_files(folder))
    names = json.loads(arrays["names"].tobytes())
    smallest = _num_classes(arrays, folder, names["where"], num_classes)
    return federated(names["ids"], arrays["features"], arrays["labels"], arrays["sizes"], num_classes or smallest)


def federated(
    ids: Sequence[str], features: Floats | Integers, labels: Integers, sizes: Integers, num_classes: int
) -> FederatedData:
    """Return clients that each have their own training and test examples.

    Args:
        ids: The clients' names.
        features: The training examples of all clients, then the test examples of all.
        labels: Their classes.
        sizes: Each client's number of training examples, then each one's number of test examples.
        num_classes: Number of classes.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    start_of_test = offsets[len(ids)]
    return FederatedData(
        LabelledData.without_test_set(features, labels, num_classes),
        ClientIndex(np.arange(start_of_test), offsets[: len(ids) + 1]),
        ClientIndex(np.arange(start_of_test, offsets[-1]), offsets[len(ids) :] - start_of_test),
        tuple(ids),
    )


def _cached(folder: Path, files: Mapping[str, list[Path]]) -> Arrays:
    """Return `_pack(folder, files)`, from a cache if that was made from files of the same names, sizes and times."""
    try:
        status = [(file, file.stat()) for side in files.values() for file in side]
    except OSError:
        return _pack(folder, files)  # which reports the file that cannot be read
    if sum(stat.st_size for _, stat in status) < SMALLEST_BYTES:
        return _pack(folder, files)
    made_from = sorted((str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for file, stat in status)
    key = array_cache.key_of([VERSION, made_from])
    return array_cache.cached(array_cache.places(folder, "leaf"), FILE, key, lambda: _pack(folder, files))


def _pack(folder: Path, files: Mapping[str, list[Path]]) -> Arrays:
    """Return a data set as arrays of numbers.

    features, labels, sizes: As `federated` takes them.
    names: JSON as bytes: ids, and for each entry of `sizes` its file and id, as errors name them below the folder.
    """
    ids, train, test = read(files, _client_arrays)
    parts = [*train, *test]
    names = {"ids": ids, "where": [part.where.removeprefix(f"{folder}/") for part in parts]}
    return {
        "features": _joined_features(parts),
        "labels": np.concatenate([part.labels for part in parts]),
        "sizes": np.array([len(part.labels) for part in parts], dtype=np.int64),
        "names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
    }


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


class ClientArrays(NamedTuple):
    """One client's examples on one side; `where` names their file and the client in errors."""

    where: str
    features: Floats | Integers  # int64 if the file has only integers, else float32
    labels: Integers


def user_arrays(folder: Path) -> tuple[ClientArrays, ClientArrays | None]:
    """Return the training and the test examples of a folder's only user; None without test/.

    Both have the same input shape and type, as `leaf` describes them.

    Raises:
        UserError: If a file does not have LEAF's form, or there is not exactly one user, the same on both sides.
    """
    sides = SIDES if (folder / "test").exists() else SIDES[:1]
    files, found = json_files(folder, sides), {}
    for side in sides:
        found[side] = read_side(files[side], _client_arrays)
        if len(found[side]) != 1 or found[side].keys() != found["train"].keys():
            raise UserError(
                f"{folder / side} must hold one user, the same in train/ and test/, got {len(found[side])}; give each "
                "site a folder of its own"
            )
    parts = [examples for users in found.values() for examples in users.values()]
    features, cut = _joined_features(parts), len(parts[0].labels)
    train = parts[0]._replace(features=features[:cut])
    return train, parts[1]._replace(features=features[cut:]) if len(parts) == 2 else None


def _client_arrays(examples: LeafExamples) -> ClientArrays:
    """Return a client's lists as arrays.

    Raises:
        UserError: If x are not lists of numbers, nested at will and all of one shape, or y not integers from 0.
    """
    try:
        features = checks.numbers("features (x)", examples.x)
        if features.ndim < 2 or not features.size:
            raise UserError(f"features (x) must be lists of numbers, got {checks.shown(examples.x[0])}; fix the file")
        if features.dtype != np.int64:
            features = checks.floats("features (x)", features)
        labels = checks.labels("labels (y)", examples.y, len(features), checks.MAX_CLASSES)
    except UserError as error:
        reader = "dataset=leaf reads numbers, shakespeare and sent140 read text"
        raise UserError(f"{examples.where}: {error} ({reader})") from error
    return ClientArrays(examples.where, features, labels)


def _joined_features(clients: Sequence[ClientArrays]) -> Floats | Integers:
    """Return all clients' features, one after another: float32, or int64 if they are token sequences.

    Token sequences are flat lists of integers >= 0 (5, not 5.0) at all clients.

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
