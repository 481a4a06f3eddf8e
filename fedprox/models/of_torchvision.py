"""Classification models of torchvision, by name."""

import difflib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fedprox.data.sources.download import torchvision
from fedprox.errors import UserError, with_location
from fedprox.models.cnn import image_shape, with_channels

_MAX_SIZE = 1024  # pixels of a side


def torchvision_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    name: str,
    size: int | None = None,
    weights: str | None = None,
    **options: Any,
) -> nn.Module:
    """Return a classification model of torchvision that takes the images of the data.

    Grey images get three equal channels, which these models expect.

    Args:
        input_shape: (height, width) or (channels, height, width) with one or three channels.
        num_classes: Outputs of the last layer.
        name: As torchvision.models calls it, such as "mobilenet_v3_small".
        size: Pixels of a side to which images are scaled, bilinearly; None: they stay as they are.
        weights: Name of torchvision's trained weights, such as "DEFAULT", which are downloaded. Layers of another
            shape, which the last one is unless the data have as many classes, keep their drawn weights. None: all are
            drawn.
        options: Arguments of the model's own, such as dropout.

    Raises:
        UserError: If there is no such model or weights, or the model cannot take images of this size.
    """
    channels, height, width = image_shape("torchvision", input_shape, at_least=1)
    if channels not in (1, 3):
        raise UserError(f"model=torchvision needs images of 1 or 3 channels, got {channels}; use model=cnn")
    if size is not None and not (type(size) is int and 1 <= size <= _MAX_SIZE):
        raise UserError(f"model.size must be an integer from 1 to {_MAX_SIZE}, or null, got {size}")
    models = torchvision("models", "model=torchvision", "model=cnn")
    known = models.list_models(module=models)  # without models of detection, segmentation and video
    model: nn.Module = models.get_model(_one_of("model.name", name, known), num_classes=num_classes, **options)
    if weights is not None:
        _load(model, name, weights, models)
    whole = nn.Sequential(with_channels(input_shape), ThreeChannels(size), model)
    _check_size(whole, name, (channels, height, width)[3 - len(input_shape) :], models)
    return whole


class ThreeChannels(nn.Module):
    """Gives images three channels, and a size.

    Attributes:
        size: Pixels of a side; None: images stay as they are.
    """

    def __init__(self, size: int | None) -> None:
        """Note the size."""
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return images of shape (n, 3, height, width) of those of shape (n, 1 or 3, height, width)."""
        three = images.expand(-1, 3, -1, -1)
        if self.size is None:
            return three
        return nn.functional.interpolate(three, size=(self.size, self.size), mode="bilinear")


def _one_of(setting: str, name: str, known: Iterable[str]) -> str:
    """Return a name if it is known.

    Raises:
        UserError: If it is not.
    """
    names = list(known)
    if name in names:
        return name
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
    raise UserError(f"{setting} must be a name that torchvision knows, got {name}; {hint}")


def _load(model: nn.Module, name: str, weights: str, models: ModuleType) -> None:
    """Load trained weights, apart from those of another shape.

    Raises:
        UserError: If there are no such weights, or they cannot be downloaded.
    """
    every = models.get_model_weights(name)
    chosen = every[_one_of("model.weights", weights, every.__members__)]
    try:
        trained = chosen.get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # no network, or no room
        raise UserError(
            f"model.weights={weights} cannot be downloaded: {error}; leave it out, or put the file {chosen.url} into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error
    own = model.state_dict()
    fitting = {key: value for key, value in trained.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(own | fitting)


def _check_size(model: nn.Module, name: str, shape: tuple[int, ...], models: ModuleType) -> None:
    """Raise UserError if the model cannot take images of a shape, as deep ones cannot take small images."""
    is_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        least = max(models.get_model_weights(name).DEFAULT.meta["min_size"])
        raise UserError(
            f"model.name={name} cannot take images of {shape[-2]} x {shape[-1]} pixels: {with_location(error)}; add "
            f"model.size={least}, which scales them"
        ) from error
    finally:
        model.train(is_training)
