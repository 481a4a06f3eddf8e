"""ReLU and max-pooling in one pass, against torch's two passes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedprox.solvers.kernels.pooling import RectifiedMaxPool2d


def in_two(x: torch.Tensor) -> torch.Tensor:
    return functional.max_pool2d(functional.relu(x), 2)


def with_gradient(function, x: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    result = function(leaf)
    result.backward(slope)
    return result.detach(), leaf.grad


def test_four_pixels_by_hand():
    # The largest of 1, -2, 3, 3 is the third (the first of two), and takes all of the gradient; below 0 no pixel does.
    x = torch.tensor([[[[1.0, -2], [3, 3]], [[-1, -2], [-3, -1]]]]).contiguous(memory_format=torch.channels_last)
    result, gradient = with_gradient(RectifiedMaxPool2d(), x, torch.tensor([[[[5.0]], [[7.0]]]]))
    assert result.flatten().tolist() == [3, 0]
    assert gradient[0].tolist() == [[[0, 0], [5, 0]], [[0, 0], [0, 0]]]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(2, 9), st.integers(2, 9)),
    channels_last=st.booleans(),
    kind=st.sampled_from(["ties", "normal", "nan"]),
    seed=st.integers(0, 99),
)
def test_result_and_gradient_are_torchs_to_the_bit(shape, channels_last, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind == "normal":
        x = torch.randn(shape, generator=generator)
    else:  # small integers: many equal, many 0
        x = torch.randint(-2, 3, shape, generator=generator).float()
    if kind == "nan":
        x[torch.rand(shape, generator=generator) < 0.2] = torch.nan
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    slope = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, generator=generator)
    mine, theirs = (with_gradient(function, x, slope) for function in (RectifiedMaxPool2d(), in_two))
    assert torch.equal(mine[0].isnan(), theirs[0].isnan())
    assert torch.equal(mine[0].nan_to_num(), theirs[0].nan_to_num())
    if kind != "nan":  # it does not matter which of several nan has the gradient
        assert torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
        torch.randn(3, 4, 4),
        torch.randn(2, 3, 4, 4),
    ],
    ids=["float64", "one image", "channels first"],
)
def test_other_inputs_use_torch(x):
    assert torch.equal(RectifiedMaxPool2d()(x), in_two(x))


def test_images_that_are_too_small_have_torchs_error():
    with pytest.raises(RuntimeError, match="Output size is too small"):
        RectifiedMaxPool2d()(torch.zeros(1, 2, 1, 4).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (nn.ReLU(), nn.MaxPool2d(2), True),
        (nn.ReLU(inplace=True), nn.MaxPool2d((2, 2), (2, 2), (0, 0)), True),
        (nn.ReLU(), nn.MaxPool2d(3), False),
        (nn.ReLU(), nn.MaxPool2d(2, stride=1), False),
        (nn.ReLU(), nn.MaxPool2d(2, padding=1), False),
        (nn.ReLU(), nn.MaxPool2d(2, dilation=2), False),
        (nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.ReLU(), nn.MaxPool2d(2, return_indices=True), False),
        (nn.GELU(), nn.MaxPool2d(2), False),
    ],
)
def test_it_replaces_only_modules_that_compute_the_same(first, second, expected):
    assert RectifiedMaxPool2d.can_replace(first, second) is expected
