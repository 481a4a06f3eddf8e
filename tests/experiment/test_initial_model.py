"""The initial model: a function of the seed, made by any target."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from fedprox.data.facts import Facts
from fedprox.data.federated import ClientIndex, FederatedData
from fedprox.data.sources.digits import digits
from fedprox.errors import UserError
from fedprox.experiment.model import initial_model
from fedprox.solvers.generators import Generators
from tests.settings import config_of

DATA = FederatedData(digits(), *[ClientIndex.from_lists([np.arange(start, start + 8)]) for start in (0, 8)])


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.LazyBatchNorm1d(), nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(10))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return super().forward(x)


class NotReached(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.spare = nn.LazyLinear(3)

    def forward(self, x):
        return self[1](self[0](x))


class DrawnBy(nn.Sequential):
    """Draws its weights from NumPy's and Python's generators."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))
        self[1].weight.data = torch.from_numpy(np.random.normal(size=(num_classes, 64))).float()
        self[1].bias.data.fill_(random.random())


def only_classes(num_classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))


def passed_on(**settings) -> nn.Module:
    return only_classes(**settings)


def drawn_elsewhere() -> nn.Module:
    model, own = only_classes(10), torch.Generator()
    own.seed()
    model[2].bias.data.normal_(generator=own)
    return model


def fixed() -> nn.Module:
    return only_classes(10)


def broken(**settings) -> nn.Module:
    raise TypeError("broken() got an unexpected keyword argument 'colour'")


def made(name: str, seed: int = 3, **settings) -> dict[str, torch.Tensor]:
    config = config_of(seed=seed, batch_size=4, model={"_target_": f"{__name__}.{name}", **settings})
    return initial_model(config, Facts.of(DATA)).state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["Lazy", "DrawnBy", "only_classes"])
def test_the_initial_model_depends_only_on_the_seed_and_leaves_the_generators_unchanged(name):
    before = Generators()
    first = made(name)
    assert not before.have_moved()
    torch.rand(1), np.random.rand(), random.random()
    assert equal(made(name), first)
    assert not equal(made(name, seed=4), first)


@pytest.mark.parametrize(("name", "is_warned"), [("drawn_elsewhere", True), ("DrawnBy", False), ("fixed", False)])
def test_weights_that_do_not_follow_from_the_seed_are_warned_about(caplog, name, is_warned):
    made(name)
    line = (
        f"{__name__}.{name} has other initial weights each time it is made (2.bias): they do not follow from the seed"
    )
    assert [record.getMessage().startswith(line) for record in caplog.records] == [True] * is_warned
    caplog.clear()
    made(name, init="zeros")
    assert caplog.records == []


def test_lazy_layers_have_their_shapes_and_the_pass_that_made_them_left_no_other_trace():
    state = made("Lazy")
    assert [tuple(value.shape) for name, value in state.items() if name.endswith("weight")] == [(64,), (6, 64), (10, 6)]
    assert state["passes"] == 0
    assert torch.equal(state["1.running_mean"], torch.zeros(64))


def test_lazy_layers_can_begin_at_zero():
    assert all(
        not value.any() for name, value in made("Lazy", init="zeros").items() if name.endswith(("weight", "bias"))
    )


def test_a_lazy_layer_that_no_input_reaches_is_refused():
    with pytest.raises(UserError, match=r"model's spare.weight has no shape after a forward pass in evaluation mode"):
        made("NotReached")


@pytest.mark.parametrize(
    ("name", "settings", "width"),
    [
        ("only_classes", {}, 4),
        ("only_classes", {"num_classes": 10, "width": 5}, 5),  # the command's own value replaces the offered one
        ("passed_on", {"width": 6}, 6),
        ("fixed", {}, 4),
    ],
)
def test_a_target_is_given_the_arguments_that_it_accepts(name, settings, width):
    assert made(name, **settings)["1.weight"].shape == (width, 64)


def test_an_argument_that_was_not_offered_is_a_mistake():
    with pytest.raises(UserError, match=r"must accept \(input_shape, num_classes\): .*'colour'"):
        made("broken")
