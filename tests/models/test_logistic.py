"""Multinomial logistic regression: its parameters, that it is affine, and what counts as it."""

from collections import OrderedDict

import pytest
import torch

from fedprox.models.logistic import is_logistic, logistic


def num_params(model: torch.nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize(
    ("shape", "num_classes", "expected"),
    [((28, 28), 10, 784 * 10 + 10), ((60,), 10, 610), ((8, 8), 10, 650), ((1, 28, 28), 62, 784 * 62 + 62)],
)
def test_logistic_has_a_weight_per_input_and_class_and_a_bias_per_class(shape, num_classes, expected):
    model = logistic(shape, num_classes)
    assert num_params(model) == expected
    assert model(torch.zeros(3, *shape)).shape == (3, num_classes)


def test_logistic_is_affine_in_its_input():
    # f(x) - f(0) is linear: no activation hides in it.
    model = logistic((2, 3), 4).double()
    x, y = torch.randn(2, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zero = model(torch.zeros_like(x)[None])
    torch.testing.assert_close(
        model((2 * x - 3 * y)[None]) - zero, 2 * (model(x[None]) - zero) - 3 * (model(y[None]) - zero)
    )


def test_models_whose_parameters_have_other_names_or_shapes_are_not_logistic_regression():
    # Compiled code takes both from the state dict, and would index labels beyond a bias that torch broadcasts.
    broadcast = logistic((4,), 20)
    broadcast[1].bias = torch.nn.Parameter(torch.zeros(1))
    named = torch.nn.Sequential(OrderedDict(flat=torch.nn.Flatten(), dense=torch.nn.Linear(4, 20)))
    for model in (broadcast, named):
        assert model(torch.zeros(3, 4)).shape == (3, 20)
        assert not is_logistic(model)
    assert is_logistic(logistic((4,), 20))
