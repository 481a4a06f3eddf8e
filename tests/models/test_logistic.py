"""The models' shapes and numbers of parameters."""

import pytest
import torch

from fedprox.errors import UserError
from fedprox.models.cnn import cnn
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


@pytest.mark.parametrize(
    ("shape", "channels", "pixels"),
    [((28, 28), 1, 7 * 7), ((1, 28, 28), 1, 7 * 7), ((3, 32, 32), 3, 8 * 8), ((8, 8), 1, 2 * 2), ((4, 7), 1, 1)],
)
def test_cnn_has_the_parameters_of_its_layers(shape, channels, pixels):
    # Two 5 x 5 convolutions to 32 and 64 channels; two poolings leave a quarter of each side; 512 units.
    num_classes = 10
    expected = (25 * channels + 1) * 32 + (25 * 32 + 1) * 64 + (64 * pixels + 1) * 512 + (512 + 1) * num_classes
    model = cnn(shape, num_classes)
    assert num_params(model) == expected
    assert model(torch.zeros(2, *shape)).shape == (2, num_classes)


def test_cnn_on_mnist_is_mcmahans_with_1663370_parameters():
    assert num_params(cnn((28, 28), 10)) == 1_663_370  # "1,663,370 total parameters", McMahan et al. 2017


@pytest.mark.parametrize("shape", [(60,), (3, 28), (28, 3), (1, 3, 3), (1, 1, 28, 28), ()])
def test_cnn_refuses_what_is_no_image_and_says_what_to_use(shape):
    with pytest.raises(UserError, match=r"got inputs of shape .*; use model=logistic"):
        cnn(shape, 10)
