"""Models for images: parameters counted by hand, sizes, and normalisation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedprox.errors import UserError
from fedprox.models.cnn import cnn, cnn_tutorial, moderate_cnn
from fedprox.models.resnet import resnet18_bn, resnet18_gn

CIFAR10 = (3, 32, 32)
LEAST = {cnn: 4, cnn_tutorial: 16, moderate_cnn: 8, resnet18_gn: 8, resnet18_bn: 8}


def num_params(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def conv(channels: int, out: int, side: int) -> int:
    """Return the parameters of a convolution with bias; the same formula is a dense layer's with side 1."""
    return (channels * side * side + 1) * out


@pytest.mark.parametrize(
    ("shape", "channels", "pixels"),
    [((28, 28), 1, 7 * 7), ((3, 32, 32), 3, 8 * 8), ((4, 7), 1, 1)],
)
def test_cnn_has_the_parameters_of_its_layers(shape, channels, pixels):
    # Two 5 x 5 convolutions to 32 and 64 channels; two poolings leave a quarter of each side; 512 units.
    num_classes = 10
    expected = conv(channels, 32, 5) + conv(32, 64, 5) + conv(64 * pixels, 512, 1) + conv(512, num_classes, 1)
    model = cnn(shape, num_classes)
    assert num_params(model) == expected
    assert model(torch.zeros(2, *shape)).shape == (2, num_classes)


def test_cnn_on_mnist_is_mcmahans_with_1663370_parameters():
    assert num_params(cnn((28, 28), 10)) == 1_663_370  # "1,663,370 total parameters", McMahan et al. 2017


def test_the_tutorials_cnn_has_its_62006_parameters():
    # 32 -> 28 -> 14 -> 10 -> 5 pixels.
    by_hand = conv(3, 6, 5) + conv(6, 16, 5) + conv(16 * 5 * 5, 120, 1) + conv(120, 84, 1) + conv(84, 10, 1)
    assert by_hand == 62_006
    assert num_params(cnn_tutorial(CIFAR10, 10)) == by_hand


def test_flares_moderate_cnn_has_its_3491530_parameters():
    # 32 -> 16 -> 8 -> 4 pixels, so 256 * 16 = 4096 numbers enter the dense layers.
    convolutions = [(3, 32), (32, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    by_hand = sum(conv(*pair, 3) for pair in convolutions)
    by_hand += conv(4096, 512, 1) + conv(512, 512, 1) + conv(512, 10, 1)
    assert by_hand == 3_491_530
    assert num_params(moderate_cnn(CIFAR10, 10)) == by_hand


def resnet18_by_hand(channels: int, num_classes: int) -> int:
    # Convolutions without bias; every norm has a scale and a shift per channel. Where the width changes, the shortcut
    # is a 1 x 1 convolution with a norm.
    total, before = channels * 64 * 9 + 2 * 64, 64
    for width in (64, 128, 256, 512):
        total += before * width * 9 + 3 * width * width * 9 + 4 * 2 * width
        total += before * width + 2 * width if before != width else 0
        before = width
    return total + (512 + 1) * num_classes


@pytest.mark.parametrize("make", [resnet18_gn, resnet18_bn])
def test_resnet18_has_the_parameters_of_its_layers(make):
    assert resnet18_by_hand(3, 10) == 11_173_962
    assert num_params(make(CIFAR10, 10)) == 11_173_962
    assert num_params(make((28, 28), 62)) == resnet18_by_hand(1, 62)


def test_resnet18_keeps_all_pixels_in_its_stem_and_halves_them_three_times():
    sizes = []
    model = resnet18_gn(CIFAR10, 10)[1]
    for layer in (model.conv1, model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda module, given, result: sizes.append(tuple(result.shape[2:])))
    model(torch.zeros(1, *CIFAR10))
    assert sizes == [(32, 32), (32, 32), (16, 16), (8, 8), (4, 4)]


def test_with_group_norm_an_example_does_not_depend_on_its_batch_and_with_batch_norm_it_does():
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # the smallest that they take
    for make, agrees in ((resnet18_gn, True), (resnet18_bn, False)):
        model = make((3, 8, 8), 10).train()
        with torch.no_grad():
            assert torch.allclose(model(x)[:2], model(x[:2]), atol=1e-4) == agrees  # float32 through 20 layers


def test_only_batch_norm_keeps_statistics():
    # A mean and a variance per channel, and one number of batches, in each of 20 layers.
    channels = 64 + 4 * (64 + 128 + 256 + 512) + 128 + 256 + 512
    assert sum(buffer.numel() for buffer in resnet18_bn(CIFAR10, 10).buffers()) == 2 * channels + 20
    for make in (cnn_tutorial, moderate_cnn, resnet18_gn):
        assert list(make(CIFAR10, 10).buffers()) == []


@pytest.mark.parametrize("groups", [2, 64])
def test_the_groups_are_as_asked_for(groups):
    norms = [module for module in resnet18_gn(CIFAR10, 10, groups).modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}


@pytest.mark.parametrize("groups", [0, 3, 128])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    with pytest.raises(UserError, match=rf"model\.groups must divide the 64 channels .*got {groups}; use 2 or 32"):
        resnet18_gn(CIFAR10, 10, groups)


def test_the_moderate_cnn_drops_channels_and_units_while_it_trains():
    dropouts = [m for m in moderate_cnn(CIFAR10, 10) if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert [(type(dropout), dropout.p) for dropout in dropouts] == [
        (nn.Dropout2d, 0.05),
        (nn.Dropout, 0.1),
        (nn.Dropout, 0.1),
    ]


@settings(max_examples=20)
@given(st.data())
def test_images_of_any_size_from_the_smallest_on_give_a_logit_per_class(data):
    make = data.draw(st.sampled_from([cnn, cnn_tutorial, moderate_cnn]))
    sides = st.integers(LEAST[make], 40)
    shape = (data.draw(sides), data.draw(sides))
    if channels := data.draw(st.integers(0, 4)):  # 0: no such dimension
        shape = (channels, *shape)
    with torch.no_grad():
        logits = make(shape, 7)(torch.zeros(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("make", LEAST)
def test_inputs_that_are_not_images_or_too_small_are_refused_with_both_shapes(make):
    least = LEAST[make]
    for shape in ((60,), (3, least, least - 1), (least - 1, least), (1, 3, 32, 32), ()):
        with pytest.raises(UserError) as caught:
            make(shape, 10)
        assert str(caught.value) == (
            f"model={make.__name__} needs images of at least {least} x {least} pixels, got inputs of shape {shape}; "
            "use model=logistic"
        )
