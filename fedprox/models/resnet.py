"""ResNet-18 for images of 8 x 8 pixels or more, with group or batch norm; arguments as in `fedprox.models.cnn`."""

from collections.abc import Callable
from functools import partial

from torch import nn

from fedprox.data.sources.download import torchvision
from fedprox.errors import UserError
from fedprox.models.cnn import image_shape, with_channels


def resnet18_gn(input_shape: tuple[int, ...], num_classes: int, groups: int = 32) -> nn.Module:
    """Return ResNet-18 for small images with group norm, which suits heterogeneous clients (Hsieh et al. 2020).

    Group norm normalises each example by itself, so it keeps no statistics that clients with other labels would
    disturb. 11,173,962 parameters on CIFAR-10. Each layer's 64 to 512 channels are divided into `groups`, a power of
    two up to 64: 32 in Wu and He (2018), with 2 to 16 channels each, and 2 in Reddi et al. (2021).
    """
    if groups < 1 or 64 % groups:
        raise UserError(f"model.groups must divide the 64 channels of the first layers, got {groups}; use 2 or 32")
    return _resnet18("resnet18_gn", input_shape, num_classes, partial(nn.GroupNorm, groups))


def resnet18_bn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return ResNet-18 for small images with batch norm (He et al. 2016); see `fedprox.federation.client_state`."""
    return _resnet18("resnet18_bn", input_shape, num_classes, nn.BatchNorm2d)


def _resnet18(
    name: str, input_shape: tuple[int, ...], num_classes: int, norm_layer: Callable[..., nn.Module]
) -> nn.Module:
    """Return torchvision's ResNet-18 with a 3 x 3 stem of stride 1 and no max-pooling, as usual for small images."""
    channels, _, _ = image_shape(name, input_shape, at_least=8)
    models = torchvision("models", f"model={name}", "model=moderate_cnn")
    model: nn.Module = models.resnet18(num_classes=num_classes, norm_layer=norm_layer)
    model.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the other convolutions
    model.maxpool = nn.Identity()
    return nn.Sequential(with_channels(input_shape), model)
