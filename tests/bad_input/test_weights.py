"""Files of initial weights that are damaged, or another model's."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save

SMALL = ("dataset=digits", "engine=local", "num_rounds=1", "num_clients=5", "clients_per_round=2")
REMEDY = ("model.init=x.safetensors does not hold this model's weights", "name a model.safetensors of the same model")
RIGHT = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
WHOLE = save(RIGHT)


FILES = {
    "words": (b"no tensors", ()),
    "empty": (b"", ()),
    "cut off in the numbers": (WHOLE[:-1], ()),
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
