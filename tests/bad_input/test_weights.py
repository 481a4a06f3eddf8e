"""Files of initial weights that are damaged, or another model's."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save

SMALL = ("dataset=digits", "engine=local", "num_rounds=1", "num_clients=5", "clients_per_round=2")
REMEDY = ("model.init=x.safetensors does not hold this model's weights", "name a model.safetensors of the same model")
RIGHT = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
WHOLE = save(RIGHT)


def with_header(header: bytes, length: int | None = None) -> bytes:
    """Return a file with another header, whose recorded length is `length`."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(2600)


def entry(**change: object) -> bytes:
    """Return a file of the right tensors whose header is changed for the bias."""
    header = json.loads(WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]])
    return with_header(json.dumps(header | {"1.bias": header["1.bias"] | change}).encode())


FILES = {
    "words": (b"no tensors", ()),
    "empty": (b"", ()),
    "cut off in the numbers": (WHOLE[:-1], ()),
    "header of nearly 2^64 bytes": (with_header(b"{}", 2**64 - 1), ()),
    "header of no JSON": (with_header(b"{nonsense"), ()),
    "header nested without end": (with_header(b"[" * 10_000), ()),
    "offsets beyond the end": (entry(data_offsets=[0, 10**12]), ()),
    "type that does not exist": (entry(dtype="F7"), ()),
    "pickle": (pickle.dumps({"1.bias": np.zeros(10)}), ()),
    "other shapes": (save({"1.weight": torch.zeros(3, 2), "1.bias": torch.zeros(3)}), ("size mismatch for 1.weight",)),
    "a tensor is missing": (save({"1.weight": RIGHT["1.weight"]}), ("Missing key", "1.bias")),
    "a tensor too many": (save(RIGHT | {"2.bias": torch.zeros(1)}), ("Unexpected key", "2.bias")),
    "not a number": (save(RIGHT | {"1.bias": torch.full((10,), torch.nan)}), ("1.bias", "finite")),
    "whole numbers": (save(RIGHT | {"1.bias": torch.zeros(10, dtype=torch.int64)}), ("1.bias", "int64", "float32")),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES)
def test_initial_weights_that_are_not_this_models_are_refused(refused, tmp_path, content, words):
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(*SMALL, "model.init=x.safetensors", says=(*REMEDY, *words))


@pytest.mark.parametrize("value", ["5", "nowhere.safetensors", ".", "/dev/null", "[a]"])
def test_initial_weights_that_are_not_a_file_are_refused(refused, value):
    refused(*SMALL, f"model.init={value}", says=("model.init",))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_of_any_floating_point_type_are_accepted(fedprox, tmp_path, dtype):
    (tmp_path / "x.safetensors").write_bytes(save({name: tensor.to(dtype) for name, tensor in RIGHT.items()}))
    assert fedprox(*SMALL, "model.init=x.safetensors").status == 0
