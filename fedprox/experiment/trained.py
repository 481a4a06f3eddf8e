"""A trained model as a module that takes examples as the data set has them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fedprox.config.instantiate import build
from fedprox.config.schema import Config, Target
from fedprox.data.facts import Facts
from fedprox.errors import UserError
from fedprox.evaluation.predictions import predictions
from fedprox.experiment.model import load_weights
from fedprox.experiment.model_checks import take_logits
from fedprox.runs.model_file import ModelFacts
from fedprox.solvers.generators import seeded

_AT_ONCE = 1000  # examples of a forward pass of `predict`


class TrainedModel(nn.Module):
    """A trained model behind the normalisation of its training data: network((x - mean) / std).

    Attributes:
        network: The model itself, whose input is normalised.
        facts: What its file says about it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, facts: ModelFacts) -> None:
        """Put the normalisation before a model, in evaluation mode."""
        super().__init__()
        self.network, self.facts = network, facts
        mean, std = facts.normalisation()
        self.register_buffer("mean", torch.from_numpy(mean), persistent=False)
        self.register_buffer("std", torch.from_numpy(std), persistent=False)
        self.eval()

    def forward(self, examples: Tensor) -> Tensor:
        """Return the model's outputs, such as logits, shape (n, num_classes).

        Args:
            examples: Shape (n, *input_shape), as in the data set, not normalised.

        Raises:
            UserError: If they have another shape.
        """
        shape = tuple(self.facts.input_shape)
        if tuple(examples.shape[1:]) != shape or not examples.ndim:
            given = tuple(examples.shape)
            one = "; give one example as examples[None]" if given == shape else "; prepare them as the training data"
            raise UserError(f"examples must have shape (n, {', '.join(map(str, shape))}), got {given}{one}")
        if self.facts.takes_tokens:
            return self.network(examples.to(torch.int64))  # type: ignore[no-any-return]
        return self.network((examples.to(torch.float32) - self.mean) / self.std)  # type: ignore[no-any-return]

    def predict(self, examples: ArrayLike | Tensor) -> NDArray[Any]:
        """Return what the model predicts.

        Args:
            examples: Array, list or tensor of shape (n, *input_shape), as in the data set, not normalised.

        Returns:
            Classes, shape (n,); or numbers (regression), or zeros and ones (multilabel), shape (n, num_classes).
        """
        given = examples if isinstance(examples, Tensor) else torch.from_numpy(np.array(examples))
        with torch.no_grad():
            parts = [self(part.to(self.mean.device)).cpu() for part in torch.split(given, _AT_ONCE)]
        outputs = torch.cat(parts)
        return predictions(outputs, self.facts.task).numpy()


def model_facts(config: Config, facts: Facts, commit: str | None) -> ModelFacts | None:
    """Return what is to be said about a run's model; None if only the clients' script knows it."""
    if not facts.has_sizes:
        return None
    examples, arguments = facts.examples, config.model.model_dump(by_alias=True, exclude={"init"})
    return ModelFacts(
        model=Target(**arguments),
        input_shape=list(facts.input_shape),
        num_classes=examples.num_classes,
        takes_tokens=examples.features.dtype == np.int64,
        mean=examples.mean.tolist(),
        std=examples.std.tolist(),
        class_names=list(examples.class_names),
        task=examples.task,
        commit=commit,
    )


def trained_model(file: Path, facts: ModelFacts) -> TrainedModel:
    """Return the model in a file.

    Args:
        file: A model.safetensors.
        facts: About its model; what its `_target_` names is called.

    Raises:
        UserError: If the model cannot be made, or the file holds other weights.
    """
    shape = tuple(facts.input_shape)
    with seeded(0):  # the weights are replaced, and the caller's generators stay as they are
        network: nn.Module = build("model", facts.model, nn.Module, input_shape=shape, num_classes=facts.num_classes)
    network.register_forward_hook(take_logits)
    load_weights(network, str(file), "", f"restore the file, or give the model that it is of, {facts.model.target}")
    return TrainedModel(network, facts)
