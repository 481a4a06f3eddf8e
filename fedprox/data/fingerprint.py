"""Fingerprints of data, by which a resumed run recognises its data."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 1 << 24  # hashed at a time; an array that is not contiguous is copied piece by piece
LARGE_BYTES = 1 << 28  # pieces of arrays from this size on are hashed in threads: 5 GB take 2.7 s in a single one


def digest(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    """Return the SHA-256 of a text and of each array's name, type, shape and numbers, whatever its order in memory."""
    whole = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name, array in arrays.items():
        whole.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        rows = np.atleast_1d(array)
        step = max(1, PIECE_BYTES * len(rows) // max(1, rows.nbytes))
        pieces = [rows[first : first + step] for first in range(0, len(rows), step)]
        if rows.nbytes < LARGE_BYTES:
            for piece in pieces:
                whole.update(_bytes(piece))
            continue
        with ThreadPoolExecutor() as threads:
            for hashed in threads.map(lambda piece: hashlib.sha256(_bytes(piece)).digest(), pieces):
                whole.update(hashed)
    return whole.hexdigest()


def _bytes(piece: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(piece).reshape(-1).data
