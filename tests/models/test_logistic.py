"""Multinomial logistic regression: its parameters, and that it is affine."""

import pytest
import torch

from fedprox.models.logistic import logistic


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


def test_logistic_on_mnist_has_7850_parameters():
    assert num_params(logistic((28, 28), 10)) == 7850


def test_logistic_is_affine_in_its_input():
    # f(x) - f(0) is linear: no activation hides in it.
    model = logistic((2, 3), 4).double()
    x, y = torch.randn(2, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zero = model(torch.zeros_like(x)[None])
    torch.testing.assert_close(
        model((2 * x - 3 * y)[None]) - zero, 2 * (model(x[None]) - zero) - 3 * (model(y[None]) - zero)
    )
