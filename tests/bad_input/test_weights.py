"""Files of initial weights that are none, or another model's."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save

SMALL = ("dataset=digits", "engine=local", "num_rounds=1", "num_clients=5", "clients_per_round=2")
REMEDY = ("model.init=x.safetensors gives this model no weights", "name a model.safetensors of the same model")
RIGHT = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
WHOLE = save(RIGHT)


def with_header(header: bytes, length: int | None = None) -> bytes:
    """Return a file with another header, which says of itself that it has `length` bytes."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(2600)


def entry(**change: object) -> bytes:
    """Return a file of the right tensors whose header is changed for the bias."""
    header = json.loads(WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]])
    return with_header(json.dumps(header | {"1.bias": header["1.bias"] | change}).encode())


FILES = {
    "words": (b"no tensors", ()),
    "empty": (b"", ()),
    "cut off in the header": (WHOLE[:40], ()),
    "cut off in the numbers": (WHOLE[:-1], ()),
    "longer": (WHOLE + b"x", ()),
    "header of nearly 2^64 bytes": (with_header(b"{}", 2**64 - 1), ()),
    "header beyond the end": (with_header(b"{}", 10**6), ()),
    "header of no JSON": (with_header(b"{nonsense"), ()),
    "header of another encoding": (with_header(b"\xff\xfe{}"), ()),
    "header nested without end": (with_header(b"[" * 10_000), ()),
    "offsets beyond the end": (entry(data_offsets=[0, 10**12]), ()),
    "offsets the wrong way": (entry(data_offsets=[40, 0]), ()),
    "shape of more than there is": (entry(shape=[10**9, 10**9]), ()),
    "type that does not exist": (entry(dtype="F7"), ()),
    "pickle": (pickle.dumps({"1.bias": np.zeros(10)}), ()),
    "other shapes": (save({"1.weight": torch.zeros(3, 2), "1.bias": torch.zeros(3)}), ("size mismatch for 1.weight",)),
    "a tensor is missing": (save({"1.weight": RIGHT["1.weight"]}), ("Missing key", "1.bias")),
    "a tensor too many": (save(RIGHT | {"2.bias": torch.zeros(1)}), ("Unexpected key", "2.bias")),
    "not a number": (save(RIGHT | {"1.bias": torch.full((10,), torch.nan)}), ("1.bias", "finite")),
    "complex numbers": (save(RIGHT | {"1.bias": torch.zeros(10, dtype=torch.complex64)}), ("1.bias", "complex64")),
    "whole numbers": (save(RIGHT | {"1.bias": torch.zeros(10, dtype=torch.int64)}), ("1.bias", "int64", "float32")),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES)
def test_initial_weights_that_are_not_this_models_are_told(refused, tmp_path, content, words):
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(*SMALL, "model.init=x.safetensors", says=(*REMEDY, *words))


@pytest.mark.parametrize("value", ["5", "null", "nowhere.safetensors", ".", "x/y", "/dev/null", "[a]", "{a: 1}"])
def test_initial_weights_that_are_no_file_are_told(refused, value):
    refused(*SMALL, f"model.init={value}", says=("model.init",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_of_any_floating_point_type_are_taken(fedprox, tmp_path, dtype):
    (tmp_path / "x.safetensors").write_bytes(save({name: tensor.to(dtype) for name, tensor in RIGHT.items()}))
    assert fedprox(*SMALL, "model.init=x.safetensors").status == 0
