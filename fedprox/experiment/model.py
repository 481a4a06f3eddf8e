"""The initial model of an experiment: made from the seed, or loaded, and tried before the first round."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedprox.config.instantiate import build
from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.errors import UserError, one_line
from fedprox.experiment.model_checks import (
    check_held,
    check_loss,
    check_repeats,
    check_smallest_batch,
    check_takes_data,
    check_trains,
    make_lazy_layers,
)
from fedprox.experiment.objective import loss
from fedprox.seeds import Stream, generator
from fedprox.solvers.generators import seeded
from fedprox.storage import check_regular


def initial_model(config: Config, facts: Facts) -> nn.Module:
    """Return the model with its initial weights, after trials on the data."""
    model, target = new_model(config, facts), config.model.target
    check_takes_data(model, target, facts.examples)
    check_smallest_batch(model, config.batch_size, facts, config.last_batch)
    given = loss(config)
    check_loss(model, given, f"loss._target_={config.loss.target}", facts.examples)
    check_trains(model, target, config.batch_size, facts.examples, given)
    return model


def new_model(config: Config, facts: Facts | None) -> nn.Module:
    """Return the model with its initial weights; the global generators are restored.

    Without facts the configuration alone must say what the model needs.
    """
    target, init = config.model.target, config.model.init
    model = _made(config, facts)
    check_held(model, target)
    if init == "default" and not config.model.is_ours:
        check_repeats(model, _made(config, facts), target)
    if init == "zeros":
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    elif init != "default":
        load_weights(model, init)
    return model


def _made(config: Config, facts: Facts | None) -> nn.Module:
    """Return the model with the weights that follow from the seed, unless its class draws from elsewhere."""
    seed = int(generator(config.seed, Stream.INIT, repetition=config.repeat_num).integers(2**31))
    offered = {"input_shape": facts.input_shape, "num_classes": facts.examples.num_classes} if facts else {}
    with seeded(seed):
        torch.manual_seed(seed)  # also seeds GPUs, on which a model may create its weights
        model: nn.Module = build("model", config.model, nn.Module, **offered)
        if facts:
            make_lazy_layers(model, config.model.target, facts.examples)
    return model


def load_weights(
    model: nn.Module,
    file: str,
    named: str = "model.init=",
    remedy: str = "name a model.safetensors of the same model, or use default or zeros",
) -> None:
    """Load the weights of a safetensors file into a model.

    Args:
        model: The model.
        file: The file.
        named: What stands before the file's name in an error.
        remedy: What stands at the error's end.

    Raises:
        UserError: If the file cannot be read, or holds other weights.
    """
    try:
        check_regular(Path(file))  # a pipe would never end
        weights = load_file(file)
        _check_weights(weights, model.state_dict())
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{named}{file} does not hold this model's weights: {one_line(error)}; {remedy}") from error


def _check_weights(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for a tensor that torch would accept although no model here has it."""
    for name, tensor in weights.items():
        if name in own and tensor.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{name} is of type {tensor.dtype}, but the model needs {own[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")
