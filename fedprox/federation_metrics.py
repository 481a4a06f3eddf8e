"""The global model on the test examples, and on all clients': its losses, and how much their gradients differ."""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from fedprox.client_gradients import Examples, GradientSums, ModuleGradients
from fedprox.data.federated import FederatedData
from fedprox.logistic_metrics import LogisticEvaluator, LogisticGradients
from fedprox.metrics import Evaluation, FederationMetrics
from fedprox.module_evaluator import ModuleEvaluator
from fedprox.solvers.logistic_kernels import has_kernels
from fedprox.solvers.problem import Params

_PIECE = 10_000  # examples that are turned into model input at once
TestEvaluator = Callable[[Sequence[Params]], list[Evaluation]]


class FederationEvaluator:
    """Measures global models on all clients, whose model inputs it holds on the device."""

    def __init__(self, model: nn.Module, data: FederatedData, device: str, memory_bytes: int = 2**28) -> None:
        """Prepare all clients' examples.

        Args:
            model: The architecture, copied and put into evaluation mode. Gradients are those of the
                parameters that require one.
            data: All clients' examples. A client without training examples has no F_k and does not count.
            device: Where to compute, such as "cpu" or "cuda".
            memory_bytes: About how much activations and gradients may use, besides the inputs.
        """
        examples = _training_examples(data, device)
        self._num_examples = len(examples.labels)
        self._test = evaluator_on_test_set(model, data, device)
        self._gradients: LogisticGradients | ModuleGradients
        if has_kernels(model, device):
            self._gradients = LogisticGradients(examples)
        else:
            self._gradients = ModuleGradients(copy.deepcopy(model).to(device).eval(), examples, memory_bytes)

    def __call__(self, models: Sequence[Params]) -> list[FederationMetrics]:
        """Return the metrics of each w, a state dict of the model."""
        return list(map(self._metrics, map(self._gradients.sums, models), self._test(models)))

    def _metrics(self, sums: GradientSums, test: Evaluation) -> FederationMetrics:
        variance, variance_unweighted, dissimilarity_b = sums.moments()
        return FederationMetrics(
            train_loss=sums.loss,
            train_accuracy=sums.num_correct / self._num_examples,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            gradient_variance=variance,
            gradient_variance_unweighted=variance_unweighted,
            dissimilarity_b=dissimilarity_b,
        )


def evaluator_on_test_set(model: nn.Module, data: FederatedData, device: str) -> TestEvaluator:
    """Return the function that measures state dicts of a model on the test examples, which it holds on the device.

    Without test examples loss and accuracy are nan.
    """
    features, labels = (torch.from_numpy(array).to(device) for array in data.test_examples())
    if len(labels) == 0:
        return lambda models: [Evaluation(math.nan, math.nan)] * len(models)
    if has_kernels(model, device):
        return LogisticEvaluator(features, labels)
    return ModuleEvaluator(model, features, labels)


def _training_examples(data: FederatedData, device: str) -> Examples:
    """Return all clients' training examples as model input, made in pieces: it passes through several copies."""
    positions, sizes = data.train.indices, data.train.sizes
    like = data.data.model_input(data.data.features[:0])
    features = np.empty((len(positions), *like.shape[1:]), dtype=like.dtype)
    for start in range(0, len(positions), _PIECE):
        piece = slice(start, start + _PIECE)
        features[piece] = data.data.model_input(data.data.features[positions[piece]])
    labels = torch.from_numpy(data.data.labels[positions])
    return Examples(torch.from_numpy(features).to(device), labels.to(device), sizes[sizes > 0])
