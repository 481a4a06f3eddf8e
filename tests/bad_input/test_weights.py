"""Files of initial weights that are none, or another model's."""

import pytest
import torch
from safetensors.torch import save_file

SMALL = ("dataset=digits", "engine=local", "num_rounds=1")


def test_initial_weights_that_are_not_this_models_are_told(refused, tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"1.weight": torch.zeros(3, 2), "1.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    remedy = ("name a model.safetensors of the same model", "default or zeros")
    for file, words in {
        "nowhere.safetensors": ("model.init=nowhere.safetensors",),
        "text.safetensors": ("model.init=text.safetensors",),
        "other.safetensors": ("model.init=other.safetensors", "size mismatch for 1.weight"),
        ".": ("model.init=.",),
    }.items():
        refused(*SMALL, f"model.init={file}", says=(*words, *remedy))


@pytest.mark.parametrize("value", ["5", "null"])
def test_initial_weights_that_are_no_name_are_told(refused, value):
    refused(*SMALL, f"model.init={value}", says=("model.init",))
