"""Conversion of models to and from records: the bytes that Flower writes, the numbers that it reads."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedprox.strategies.arrays import to_numpy, to_params, to_record

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scalar": np.array(3, dtype=np.int64),
    "empty": np.empty((0, 5), dtype=np.float32),
    "double": np.linspace(-1, 1, 7),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_records_have_flowers_bytes_and_are_read_back(name):
    ours, theirs = to_record(ARRAYS)[name], Array(ARRAYS[name])
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    found = to_numpy(theirs)
    assert (found.dtype, found.shape) == (ARRAYS[name].dtype, ARRAYS[name].shape)
    assert np.array_equal(found, ARRAYS[name])


def test_arrays_in_column_order_keep_their_numbers():
    transposed = ARRAYS["matrix"].T
    assert np.array_equal(to_record({"w": transposed})["w"].numpy(), transposed)
    assert np.array_equal(to_numpy(Array(np.asfortranarray(ARRAYS["matrix"]))), ARRAYS["matrix"])
    assert np.array_equal(to_numpy(Array(transposed)), transposed)


def test_a_state_dict_survives_the_round_trip_as_a_copy():
    start = {"w": torch.randn(3, 2), "steps": torch.tensor(4)}
    record = to_record(start)
    first, second = to_params(record), to_params(record)
    first["w"].zero_()
    assert all(torch.equal(second[name], start[name]) for name in start)
    assert isinstance(record, ArrayRecord)
