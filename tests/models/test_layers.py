"""Parts of models."""

import pytest
from torch import nn

from fedprox.models.layers import body, head, matching, norms, with_tied
from fedprox.models.mlp import mlp

MLP = mlp((6,), 4, batch_norm=True)
NORM = {f"2.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def test_the_head_is_the_last_layer_and_the_body_all_else():
    assert head(MLP) == {"4.weight", "4.bias"}
    assert body(MLP) == {"1.weight", "1.bias", *NORM}
    assert head(nn.Flatten()) == set()


def test_norms_are_those_over_a_batch():
    assert norms(MLP) == NORM
    assert norms(nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Linear(3, 3))) == {"0.weight", "0.bias"}
    assert not norms(nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4)))


def test_patterns_are_a_shells():
    assert matching(MLP, ["4.*", "*.running_*", "x"]) == {"4.weight", "4.bias", "2.running_mean", "2.running_var"}
    assert matching(MLP, ["2"]) == set()


@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_a_tied_parameter_has_all_its_names(name):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert with_tied(model, {name}) == {"0.weight", "1.weight"}
    assert with_tied(model, {"0.bias"}) == {"0.bias"}
