"""The perceptron."""

import pytest
import torch
from torch import nn

from fedprox.errors import UserError
from fedprox.models.mlp import mlp


def test_it_computes_two_linear_layers_with_a_relu_between_them():
    model, x = mlp((2, 3), 4, hidden_size=5), torch.randn(7, 2, 3)
    w = model.state_dict()
    hidden = (x.flatten(1) @ w["1.weight"].T + w["1.bias"]).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ w["3.weight"].T + w["3.bias"])
    assert sum(each.numel() for each in model.parameters()) == 6 * 5 + 5 + 5 * 4 + 4


def test_batch_norm_stands_before_the_relu():
    assert [type(layer) for layer in mlp((6,), 4, batch_norm=True)[2:4]] == [nn.BatchNorm1d, nn.ReLU]


def test_a_layer_without_units_is_refused():
    with pytest.raises(UserError, match=r"^model\.hidden_size must be an integer >= 1, got 0"):
        mlp((6,), 4, hidden_size=0)
