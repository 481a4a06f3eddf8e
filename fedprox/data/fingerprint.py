"""A fingerprint of divided data, by which a resumed run knows that its data are still the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.data.federated import FederatedData, LabelledData

PIECE_BYTES = 1 << 24  # of an array that is not contiguous, copied at a time
_CACHED_AS = "_fingerprint"


def fingerprint(data: FederatedData) -> str:
    """Return 32 hex digits of a SHA-256 over everything that decides a run's numbers.

    These are the features and labels of both sets, mean, std, the number of classes, which client trains on and
    holds out which examples, and the clients' ids. How the arrays lie in memory makes no difference. The shared
    arrays are read once per object: jobs with different partitions of one data set compute only the rest.
    """
    arrays = {
        "train.indices": data.train.indices,
        "train.offsets": data.train.offsets,
        "held_out.indices": data.held_out.indices,
        "held_out.offsets": data.held_out.offsets,
    }
    return _kept(data, arrays, json.dumps([_of_examples(data.examples), data.client_ids]))[:32]


def examples_fingerprint(labelled: LabelledData) -> str:
    """Return the fingerprint of the examples alone, whichever client holds them."""
    return _of_examples(labelled)[:32]


def _of_examples(labelled: LabelledData) -> str:
    names = ("features", "labels", "test_features", "test_labels", "mean", "std")
    return _kept(labelled, {name: getattr(labelled, name) for name in names}, str(labelled.num_classes))


def _kept(owner: object, arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    """Return `_digest(arrays, text)`, computed once per owner, whose attributes never change."""
    attributes = vars(owner)
    if _CACHED_AS not in attributes:
        attributes[_CACHED_AS] = _digest(arrays, text)
    digest: str = attributes[_CACHED_AS]
    return digest


def _digest(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    """Return the SHA-256 of a text and of each array's name, type, shape and numbers."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name, array in arrays.items():
        plain = np.asarray(array)
        kind = plain.dtype.newbyteorder("<")
        digest.update(f"\n{name} {kind.str} {plain.shape}\n".encode())
        if plain.flags.c_contiguous and plain.dtype == kind:
            digest.update(plain.reshape(-1).view(np.uint8).data)
            continue
        rows = plain.reshape(1) if plain.ndim == 0 else plain
        step = max(1, PIECE_BYTES * len(rows) // max(1, rows.nbytes))
        for first in range(0, len(rows), step):
            digest.update(np.ascontiguousarray(rows[first : first + step], dtype=kind).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
