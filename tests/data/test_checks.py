"""Data are converted without loss, or refused in one line that names the array, the row or client, and the value."""

import tracemalloc
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.errors import UserError, one_line

RNG = np.random.default_rng(0)
Y = np.arange(12) % 3
X = RNG.normal(size=(12, 4)).astype(np.float32)
GIVEN = {
    **{"features": X[:9], "labels": Y[:9], "test_features": X[9:], "test_labels": Y[9:]},
    **{"num_classes": 3, "mean": np.float32(0), "std": np.float32(1)},
}


def made(**changes: Any) -> LabelledData:
    return LabelledData(**{**GIVEN, **changes})


def refused(make, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    line = one_line(caught.value)
    assert "\n" not in str(caught.value)
    assert [each for each in words if each not in line] == [], line


def changed(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def every_array(convert) -> dict[str, Any]:
    return {name: convert(value) for name, value in GIVEN.items() if isinstance(value, np.ndarray)}


def misaligned(array: np.ndarray) -> np.ndarray:
    content = np.frombuffer(b"x" + array.tobytes(), dtype=np.uint8)[1:]
    return content.view(array.dtype).reshape(array.shape)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def on_disk(array: np.ndarray, folder: Path) -> np.ndarray:
    number = len(list(folder.iterdir()))
    written = np.memmap(folder / f"{number}.bin", dtype=array.dtype, mode="w+", shape=array.shape)
    written[:] = array
    return np.memmap(folder / f"{number}.bin", dtype=array.dtype, mode="r", shape=array.shape)


LOSSLESS = {
    "lists": lambda array: array.tolist(),
    "tensors with a gradient": lambda array: torch.tensor(array, requires_grad=array.dtype == np.float32),
    "lists of tensors": lambda array: [torch.tensor(row) for row in array],
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "from the end": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "misaligned": misaligned,
    "read only": read_only,
    "mask without a mask": np.ma.masked_array,
    "Python's numbers as objects": lambda array: array.astype(object),
    "object with __array__": lambda array: type("Frame", (), {"__array__": lambda self, *_, **__: array})(),
}


@pytest.mark.parametrize("convert", LOSSLESS.values(), ids=LOSSLESS)
def test_arrays_that_convert_without_loss_give_the_same_data(convert):
    expected, data = made(), made(**every_array(convert))
    for name in GIVEN:
        own, given = getattr(expected, name), getattr(data, name)
        assert type(own) is type(given)
        assert np.array_equal(own, given)
    for name in ("features", "labels", "test_features", "test_labels"):
        array = getattr(data, name)
        assert array.dtype == (np.int64 if "labels" in name else np.float32)
        assert array.dtype.isnative
        assert array.flags.c_contiguous
        assert array.flags.aligned
    torch.from_numpy(data.labels)  # refuses negative strides


def test_arrays_on_disk_stay_there(tmp_path):
    data = made(**every_array(lambda array: on_disk(array, tmp_path)))
    assert isinstance(data.features.base, np.memmap)
    assert np.array_equal(data.features, X[:9])


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16, bool])
def test_labels_of_any_type_that_holds_them_become_int64(dtype):
    labels = Y % 2
    data = made(labels=labels[:9].astype(dtype), test_labels=labels[9:].astype(dtype))
    assert data.labels.dtype == data.test_labels.dtype == np.int64
    assert data.labels.tolist() == labels[:9].tolist()


FEATURES = {  # given type -> kept type
    **{bool: np.float32, np.int32: np.float32, np.float16: np.float32},
    **{np.uint8: np.uint8, np.int64: np.int64, np.uint64: np.int64},
}


@pytest.mark.parametrize(("given", "kept"), FEATURES.items())
def test_features_are_bytes_or_tokens_or_else_float32(given, kept):
    numbers = np.arange(48).reshape(12, 4) % 2
    data = made(features=numbers[:9].astype(given), test_features=numbers[9:].astype(given))
    assert data.features.dtype == data.test_features.dtype == kept
    assert np.array_equal(data.features, numbers[:9])


def test_narrow_floats_of_torch_are_read_by_value():
    tensor = torch.tensor(X).bfloat16()
    data = made(features=tensor[:9], test_features=tensor[9:])
    assert np.array_equal(data.features, tensor[:9].float().numpy())


def test_the_test_set_gets_the_type_of_the_training_set():
    whole = np.arange(12).reshape(3, 4)
    assert made(test_features=whole).test_features.dtype == np.float32  # beside floats they are not tokens
    tokens = made(features=np.ones((9, 4), np.int64), test_features=whole.astype(np.uint8))
    assert tokens.test_features.dtype == np.int64
    for none in ([], np.empty((0, 4)), np.empty((0, 7), np.int64), torch.empty(0)):
        data = made(test_features=none, test_labels=[])
        assert data.test_features.shape == (0, 4)
        assert data.test_features.dtype == np.float32
        assert data.test_labels.tolist() == []


def test_images_with_channels_last_are_not_copied():
    pixels = np.zeros((9, 5, 4, 3), np.uint8)
    images = pixels.transpose(0, 3, 1, 2)
    data = made(features=images, test_features=images[:3], mean=np.zeros((3, 1, 1)))
    assert np.shares_memory(data.features, pixels)
    assert data.features.shape == (9, 3, 5, 4)


def test_python_numbers_are_a_mean_a_std_and_a_number_of_classes():
    data = made(mean=0, std=2.0, num_classes=3.0)
    assert (data.mean.dtype, data.std.dtype, data.mean.shape) == (np.float32, np.float32, ())
    assert type(data.num_classes) is int
    assert type(made(num_classes=torch.tensor(3)).num_classes) is int


OF_LABELS = {
    "from one": (Y[:9] + 1, ["labels must be between 0 and num_classes - 1 = 2", "got 3 in row 2", "subtract 1"]),
    "from minus one": (Y[:9] - 1, ["got -1 in row 0", "number the classes from 0: add 1"]),
    "one more": (changed(Y[:9], 4, 3), ["got 3 in row 4", "or set num_classes=4"]),
    "nan": (changed(Y[:9].astype(float), 4, np.nan), ["labels must be integers", "got nan in row 4"]),
    "beyond int64": (changed(Y[:9].astype(np.uint64), 4, 2**63), ["labels must be integers", "in row 4"]),
    "words": (np.array(["ant", "bee", "cat"])[Y[:9]], ["labels must be numbers, got 'ant' (text) in row 0", "unique"]),
    "long words": (np.array(["\x1b[31m" * 50] * 9), ["labels must be numbers, got '\\x1b[31m"]),
    "none among them": ([0, None, 1, 2, 0, 1, 2, 0, 1], ["labels must be numbers, got None (object) in row 1"]),
    "a column": (Y[:9, None], ["labels must have one axis, got shape (9, 1)", "give labels[:, 0]"]),
    "one-hot": (np.eye(3)[Y[:9]], ["labels must have one axis, got shape (9, 3)", "argmax(axis=1)"]),
    "a generator": ((each for each in Y), ["got a generator", "make an array of it"]),
    "too few": (Y[:8], ["labels must have as many rows as features, 9, got 8"]),
    "masked": (np.ma.masked_array(Y[:9], mask=Y[:9] == 2), ["labels must have all values, got a masked one in row 2"]),
    "a masked one in a list": ([0, 1, np.ma.masked, 0, 1, 2, 0, 1, 2], ["labels must have all values", "in row 2"]),
    "lists of unequal lengths": (
        [[0], [1, 2]],
        ["all rows of one shape, got row 1 of length 2 and row 0 of length 1"],
    ),
    "a list among them": (
        [0, 1, 2, [0]],
        ["labels must be an array", "row 3 of length 1 and row 0 of no length"],
    ),
    "decimals": ([Decimal(1)] * 9, ["labels must be numbers, got Decimal('1') (object) in row 0"]),
}


@pytest.mark.parametrize(("labels", "words"), OF_LABELS.values(), ids=OF_LABELS)
def test_labels_that_are_not_classes_are_refused(labels, words):
    refused(lambda: made(labels=labels), *words)


def test_errors_of_the_test_set_name_its_arrays():
    refused(lambda: made(test_labels=[0, 9, 1]), "test_labels must be between", "got 9 in row 1")
    refused(lambda: made(test_labels=Y[:2]), "test_labels must have as many rows as test_features, 3, got 2")
    refused(lambda: made(test_features=changed(X[9:], (2, 1), np.nan)), "test_features must be finite", "nan in row 2")
    refused(
        lambda: made(test_features=X[9:, :3]), "test_features must have the input shape of features, (4,), got (3,)"
    )


OF_FEATURES = {
    "nan": (changed(X[:9], (5, 2), np.nan), ["features must be finite in float32, got nan in row 5"]),
    "beyond float32": (changed(X[:9].astype(np.float64), (5, 2), 1e39), ["finite in float32, got 1e+39 in row 5"]),
    "masked in a list": (
        [np.ma.masked_array(row, row == X[4, 1]) for row in X[:9]],
        ["features must have all values, got a masked one in row 4"],
    ),
    "masked in a list of lists": ([[[1, np.ma.masked]], [[1, 2]]], ["features must have all values", "in row 0"]),
    "a sparse tensor": (torch.eye(9).to_sparse(), ["got a Tensor that NumPy does not take"]),
    "no axis for the examples' numbers": (X[:9, 0], ["shape (num_examples, *input_shape), got (9,)", "[:, None]"]),
    "no numbers": (X[:9, :0], ["got (9, 0)", "at least one number"]),
    "words": (X[:9].astype(str), ["features must be numbers", "(text) in row 0"]),
    "tokens below zero": (changed(np.ones((9, 4), int), (3, 1), -5), ["must be >= 0, got -5 in row 3", "float32"]),
    "no example": (X[:0], ["features must have at least one example, got none"]),
    "a data loader": (torch.utils.data.DataLoader([1]), ["features must be an array", "got a DataLoader"]),
}


@pytest.mark.parametrize(("features", "words"), OF_FEATURES.values(), ids=OF_FEATURES)
def test_features_that_are_not_finite_numbers_are_refused(features, words):
    refused(lambda: made(features=features), *words)


OF_THE_REST = {
    "std 0 of one feature": ({"std": [1.0, 2.0, 0.0, 1.0]}, ["std must be > 0, got 0 at position 2"]),
    "std 0 in float32": ({"std": 1e-60}, ["std must be > 0"]),
    "std too small": ({"std": 1e-39, "features": X[:9] * 100}, ["(features - mean) / std must be finite"]),
    "mean nan": ({"mean": [0, 0, float("nan"), 0]}, ["mean must be finite in float32, got nan in row 2"]),
    "mean of other features": ({"mean": np.zeros(5)}, ["mean must be one number or broadcast", "(4,)", "(5,)"]),
    "half a class": ({"num_classes": 2.5}, ["num_classes must be an integer", "got 2.5"]),
    "classes without end": ({"num_classes": 10**9}, ["num_classes must be an integer", "got 1000000000"]),
    "true": ({"num_classes": True}, ["num_classes must be an integer", "got True"]),
    "too few names": ({"class_names": ("a", "b")}, ["class_names must have 3 names, one for each class, got 2"]),
}


@pytest.mark.parametrize(("changes", "words"), OF_THE_REST.values(), ids=OF_THE_REST)
def test_numbers_beside_the_arrays_are_checked(changes, words):
    refused(lambda: made(**changes), *words)


def test_replacing_a_field_checks_it():
    refused(lambda: replace(made(), labels=Y[:9] + 1), "labels must be between")


# Clients.

PARTS = [[0, 1], [2, 3], [4]]
HELD_OUT = [[5], [], [6, 7]]


def federated(train: Any = PARTS, held_out: Any = HELD_OUT, client_ids: Any = ()) -> FederatedData:
    return FederatedData(made(), train, held_out, client_ids)


@pytest.mark.parametrize(
    "convert",
    [
        lambda parts: [np.array(part, dtype=np.uint8) for part in parts],
        lambda parts: [torch.tensor(part) for part in parts],
        lambda parts: (tuple(part) for part in parts),
        ClientIndex.from_lists,
        lambda parts: ClientIndex(
            [example for part in parts for example in part], [0, *np.cumsum(list(map(len, parts)))]
        ),
    ],
)
def test_lists_of_example_numbers_become_client_indices(convert):
    data = federated(convert(PARTS), convert(HELD_OUT), ["x", "y", 3])
    assert [data.train[client].tolist() for client in range(3)] == PARTS
    assert [data.held_out[client].tolist() for client in range(3)] == HELD_OUT
    assert data.train.indices.dtype == data.held_out.offsets.dtype == np.int64
    assert data.client_ids == ("x", "y", "3")


OF_CLIENTS = {
    "past the end": ({"train": [[0], [9]], "held_out": [[], []]}, ["train: client 1 holds example 9", "are 0 to 8"]),
    "below zero": ({"train": [[0], [1], [-1]]}, ["train: client 2 holds example -1"]),
    "of two clients": ({"train": [[0, 1], [1], [2]]}, ["example 1", "to client 0 (train) and to client 1 (train)"]),
    "trained on and held out": ({"held_out": [[], [], [0]]}, ["client 0 (train) and to client 2 (held_out)"]),
    "fewer held out": ({"held_out": [[5], []]}, ["held_out must have as many clients as train, 3, got 2"]),
    "no clients": ({"train": [], "held_out": []}, ["train must have a list of examples for at least one client"]),
    "ids that are the same": ({"client_ids": ("a", "b", "a")}, ["client_ids must be unique, got 'a' twice"]),
    "one id": ({"client_ids": "abc"}, ["client_ids must be a list of names, got 'abc'"]),
    "numbers between": ({"train": [[0], [1.5], [2]]}, ["train: client 1 must be integers", "got 1.5"]),
    "masks": ({"train": [Y[:9] == label for label in range(3)]}, ["train: client 0", "mask of bool", "flatnonzero"]),
    "a table": ({"train": {0: [1], 1: [2], 2: [3]}}, ["train must be a list with an array", "got a dict"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), OF_CLIENTS.values(), ids=OF_CLIENTS)
def test_clients_that_break_a_rule_are_refused(changes, words):
    refused(lambda: federated(**changes), *words)


def test_offsets_that_do_not_divide_the_indices_are_refused():
    for offsets in ([], [0], [0, 2], [1, 3], [0, 2, 1, 3], [-1, 3]):
        refused(lambda offsets=offsets: ClientIndex([0, 1, 2], offsets), "offsets must rise from 0", "from_lists")


def test_examples_of_another_type_are_refused():
    refused(
        lambda: FederatedData((X, Y), PARTS, HELD_OUT), "FederatedData's examples must be LabelledData, got a tuple"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_checks_make_no_copy_and_no_mask_of_large_arrays(dtype):
    pixels, labels = np.zeros((20_000, 100), dtype), np.zeros(20_000, np.int64)
    tracemalloc.start()
    try:
        made(features=pixels, labels=labels, test_features=pixels, test_labels=labels, std=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < pixels.size / 10  # a mask takes a byte for each number
