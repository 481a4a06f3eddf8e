"""CNNs of federated experiments with images.

Each takes input_shape, (height, width) or (channels, height, width), and num_classes, the number of logits. UserError
is raised if the inputs are not images, or smaller than the sides that leave a pixel after the model's poolings.
"""

from torch import nn

from fedprox.errors import UserError


def cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the CNN of McMahan et al. (2017): two 5 x 5 convolutions (32, 64), each max-pooled, and 512 units.

    Convolutions are padded by 2, so that they keep the size, and poolings are not padded. The network of the earlier
    Flower baseline pads all four by 1: on MNIST it has the same 1,663,370 parameters, but computes something else.
    Images must have at least 4 x 4 pixels.
    """
    channels, height, width = image_shape("cnn", input_shape, at_least=4)
    return nn.Sequential(
        with_channels(input_shape),
        nn.Conv2d(channels, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )


def image_shape(name: str, input_shape: tuple[int, ...], at_least: int) -> tuple[int, int, int]:
    """Return (channels, height, width) of a model's input; images without that dimension have one channel.

    Args:
        name: The model's, for the error.
        input_shape: (height, width) or (channels, height, width).
        at_least: The smallest side, in pixels, that leaves a pixel after the model's poolings.

    Raises:
        UserError: If the inputs are not images, or smaller.
    """
    if len(input_shape) not in (2, 3) or min(input_shape[-2:]) < at_least:
        raise UserError(
            f"model={name} needs images of at least {at_least} x {at_least} pixels, got inputs of shape "
            f"{tuple(input_shape)}; use model=logistic"
        )
    height, width = input_shape[-2:]
    return (input_shape[0] if len(input_shape) == 3 else 1), height, width


def with_channels(input_shape: tuple[int, ...]) -> nn.Module:
    """Return the layer that gives (height, width) images their one channel, and does nothing to others."""
    return nn.Unflatten(1, (1, input_shape[0])) if len(input_shape) == 2 else nn.Identity()


def cnn_tutorial(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the CNN of PyTorch's CIFAR-10 tutorial, which is LeNet-5 with ReLU: 62,006 parameters on CIFAR-10.

    Two 5 x 5 convolutions without padding (6, 16), each max-pooled, then 120 and 84 units.
    Images must have at least 16 x 16 pixels.
    """
    channels, *sides = image_shape("cnn_tutorial", input_shape, at_least=16)
    height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    return nn.Sequential(
        with_channels(input_shape),
        nn.Conv2d(channels, 6, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def pfl_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the CNN of pfl-research's benchmark on CIFAR-10 (Granqvist et al. 2024): 1,626,442 parameters there.

    Two 3 x 3 convolutions without padding (32, 64), a max-pooling and 128 units, with 25% dropout before and 50% after
    these; weights are drawn uniformly after Glorot and Bengio (2010).
    Images must have at least 6 x 6 pixels.
    """
    channels, height, width = image_shape("pfl_cnn", input_shape, at_least=6)
    layers = nn.Sequential(
        with_channels(input_shape),
        nn.Conv2d(channels, 32, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return layers


def moderate_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the ModerateCNN of NVIDIA FLARE's CIFAR-10 example: 3,491,530 parameters there.

    Three times two 3 x 3 convolutions (32, 64; 128, 128; 256, 256) and a max-pooling, then 512 and 512 units. Dropout
    is 5% of the channels before the third pair, and 10% of the inputs of the first and the last dense layer.
    Images must have at least 8 x 8 pixels.
    """
    channels, height, width = image_shape("moderate_cnn", input_shape, at_least=8)
    return nn.Sequential(
        with_channels(input_shape),
        *_two_convolutions(channels, 32, 64),
        *_two_convolutions(64, 128, 128),
        nn.Dropout2d(0.05),
        *_two_convolutions(128, 256, 256),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(256 * (height // 8) * (width // 8), 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(512, num_classes),
    )


def _two_convolutions(channels: int, middle: int, end: int) -> list[nn.Module]:
    """Return two 3 x 3 convolutions that keep the size, and a pooling that halves it."""
    first, second = (nn.Conv2d(*pair, kernel_size=3, padding=1) for pair in ((channels, middle), (middle, end)))
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]
