"""Conversion of models to and from records: the bytes that Flower writes, the numbers that it reads."""

import copy
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedprox.strategies.arrays import DeviceRecord, on_device, to_numpy, to_params, to_record

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


def test_a_device_record_is_read_like_any_other_and_keeps_its_tensors_until_it_changes():
    tensors = {"w": torch.tensor([[1.0, -2.0]]), "n": torch.tensor(3)}
    record = DeviceRecord(tensors)
    assert {name: array.numpy().tolist() for name, array in record.items()} == {"w": [[1.0, -2.0]], "n": 3}
    assert on_device(record, "cpu")["w"] is tensors["w"]
    for ordinary in (copy.deepcopy(record), pickle.loads(pickle.dumps(record)), record.copy()):
        assert ordinary == record
        assert on_device(ordinary, "cpu")["w"] is not tensors["w"]
    record["n"] = Array(np.array(4))
    assert on_device(record, "cpu")["n"].item() == 4
    again = DeviceRecord(tensors)
    del again["n"]
    assert on_device(again, "cpu").keys() == {"w"}


def test_an_ordinary_record_is_copied_to_the_device():
    record = to_record({"w": torch.tensor([1.0])})
    assert on_device(record, "cpu")["w"].tolist() == [1.0]
