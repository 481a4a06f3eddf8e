"""Conversion of models to and from Flower's records, which hold arrays in NumPy's file format.

Flower's own conversions give the same bytes and numbers, but take several times as long for small models.
"""

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

_VERSION_1, _PREFIX = b"\x93NUMPY\x01\x00", 10  # magic number and version; then two bytes with the header's length


def to_record(arrays: Mapping[str, torch.Tensor] | Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Return named arrays or tensors as a record."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = _to_array(np.asarray(array))
    return record


class DeviceRecord(ArrayRecord):
    """A record whose arrays are also held as tensors on the device that made them; a change of the record drops these.

    A copy of it, and what another process receives, is an ordinary record.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy tensors from their device; they must not be changed afterwards."""
        super().__init__()
        for name, tensor in tensors.items():
            self[name] = _to_array(tensor.cpu().numpy())
        self.__dict__["_tensors"] = dict(tensors)

    def __setitem__(self, name: str, array: Array) -> None:
        """Set an array."""
        self.__dict__.pop("_tensors", None)
        super().__setitem__(name, array)

    def __delitem__(self, name: str) -> None:
        """Remove an array."""
        self.__dict__.pop("_tensors", None)
        super().__delitem__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickle and deepcopy make an ordinary record."""
        return ArrayRecord, (dict(self),)


def on_device(record: ArrayRecord, device: str) -> dict[str, torch.Tensor]:
    """Return a record's arrays as a state dict on a device, where it may be the record's own: never change it."""
    tensors: dict[str, torch.Tensor] = record.__dict__.get("_tensors", {}) if isinstance(record, DeviceRecord) else {}
    return {name: tensor.to(device) for name, tensor in (tensors or to_params(record)).items()}


def to_params(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Return a state dict with copies of a record's arrays."""
    return {name: torch.from_numpy(to_numpy(array).copy()) for name, array in record.items()}


def to_numpy(array: Array) -> NDArray[np.generic]:
    """Return an array of a record, read-only if that saves a copy."""
    start = _PREFIX + int.from_bytes(array.data[8:_PREFIX], "little")
    if array.data[:8] != _VERSION_1 or b"'fortran_order': False" not in array.data[:start]:
        return array.numpy()
    return np.frombuffer(array.data, dtype=array.dtype, offset=start).reshape(array.shape)


def _to_array(array: NDArray[np.generic]) -> Array:
    name, header = _header(array.dtype, array.shape)
    numbers = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return Array(name, array.shape, "numpy.ndarray", b"".join((header, numbers.data)))  # one copy


@lru_cache
def _header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Return a dtype's name, and the header before an array's numbers."""
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return str(dtype), buffer.getvalue()


Record = TypeVar("Record", ArrayRecord, MetricRecord)


def only(kind: type[Record], content: RecordDict) -> Record:
    """Return the first record of a type, of which a strategy sees only one; each client chooses its name."""
    return next(record for record in content.values() if isinstance(record, kind))
