"""Data in LEAF's JSON format (Caldas et al. 2018), in which the authors publish their prepared sets."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedprox.data.array_cache import Arrays
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.data.leaf_arrays import ClientArrays, client_arrays, joined_features
from fedprox.data.leaf_cache import cached
from fedprox.data.leaf_files import LeafExamples, LeafUsers, data_folder, json_files, read, read_leaf
from fedprox.errors import UserError

__all__ = ["LeafExamples", "LeafUsers", "leaf", "read_leaf"]


def leaf(path: str, num_classes: int | None = None) -> FederatedData:
    """Return a data set of numbers in LEAF's format, divided among clients as it comes.

    Clients 0, 1, ... are the ids sorted as strings. `features` holds the training examples of all clients
    and then the test examples of all, both in the files' order: float32 of any one shape, or int64 where all
    x are flat lists of whole numbers >= 0 (5, not 5.0), which are taken for token sequences. Text is for
    `read_leaf`. There is no global test set. From the second time on a large data set comes from a cache
    (`fedprox.data.leaf_cache`); to read a file takes about five times its size in memory.

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
