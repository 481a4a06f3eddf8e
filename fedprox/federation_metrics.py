"""The global model on all clients' examples: its losses, and how much the clients' gradients differ."""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from fedprox.client_gradients import Block, Examples, client_gradients
from fedprox.data.federated import FederatedData
from fedprox.metrics import Evaluation, FederationMetrics, evaluate
from fedprox.solvers.gradients import is_logistic
from fedprox.solvers.problem import Params

_PIECE = 10_000  # examples that are turned into model input at once
_DOUBLES = 2**22  # numbers of gradients that are turned into float64 at once: 32 MB


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
        self._model = copy.deepcopy(model).to(device).eval()
        self._num_examples = len(data.train.indices)
        self._num_params = sum(param.numel() for param in self._model.parameters() if param.requires_grad)
        self._gradients = client_gradients(self._model, _training_examples(data, device), memory_bytes)
        features, self._test_labels = (torch.from_numpy(a).to(device) for a in data.test_examples())
        # Classes that nobody has trained yet tie exactly. In float64, rounded to float32, they still do, and the first
        # one wins as in the authors' program; in float32 the order of a product's sums would break the ties.
        self._test_model = copy.deepcopy(self._model).double() if is_logistic(model) else self._model
        self._test_features = features.double() if is_logistic(model) else features

    def __call__(self, params: Params) -> FederationMetrics:
        """Return the metrics of w, a state dict of the model."""
        self._model.load_state_dict(params)
        self._test_model.load_state_dict(params)
        sums = _Sums(self._num_params, self._test_labels.device)
        for block in self._gradients():
            sums.add(block)
        test = self._test()
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

    def _test(self) -> Evaluation:
        if len(self._test_labels) == 0:
            return Evaluation(math.nan, math.nan)
        return evaluate(self._test_model, self._test_features, self._test_labels)


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


class _Sums:
    """Sums over clients, in float64, from which everything measured follows; no client's gradient is kept."""

    def __init__(self, num_params: int, device: torch.device) -> None:
        self.loss, self.num_correct, self._num_clients = 0.0, 0, 0
        self._vectors = torch.zeros(2, num_params, dtype=torch.float64, device=device)  # of p_k g_k, and of g_k
        self._squares = torch.zeros(2, dtype=torch.float64, device=device)  # of p_k ||g_k||^2, and of ||g_k||^2

    def add(self, block: Block) -> None:
        """Add some clients that have not been added yet."""
        self.loss += block.loss
        self.num_correct += block.num_correct
        self._num_clients += len(block.shares)
        weights = torch.stack([block.shares, torch.ones_like(block.shares)])
        widths = [grads[0].numel() for grads in block.grads]
        for grads, vectors in zip(block.grads, torch.split(self._vectors, widths, dim=1), strict=True):
            self._add(grads.flatten(1), weights, vectors)

    def _add(self, grads: Tensor, weights: Tensor, vectors: Tensor) -> None:
        """Add gradients (num_clients, num_params) with both weights (2, num_clients) to vectors (2, num_params)."""
        num_rows = max(1, _DOUBLES // grads.shape[1])
        for rows, weight in zip(torch.split(grads, num_rows), torch.split(weights, num_rows, dim=1), strict=True):
            doubles = rows.double()
            vectors.addmm_(weight, doubles)
            self._squares += weight @ torch.linalg.vector_norm(doubles, dim=1).square()

    def moments(self) -> tuple[float, float, float]:
        """Return gradient_variance, gradient_variance_unweighted and dissimilarity_b.

        With g = sum_k p_k g_k, sum_k p_k ||g_k - g||^2 = sum_k p_k ||g_k||^2 - ||g||^2, and
        (1 / N) sum_k ||g_k - g||^2 = (sum_k ||g_k||^2 - 2 <sum_k g_k, g>) / N + ||g||^2.
        """
        mean, total = self._vectors
        square = mean @ mean
        # Rounding may leave 1e-16 ||g||^2 below zero where clients agree. clamp, unlike max, keeps nan.
        variance = float((self._squares[0] - square).clamp(min=0))
        unweighted = float(((self._squares[1] - 2 * (total @ mean)) / self._num_clients + square).clamp(min=0))
        if square == 0:
            return variance, unweighted, 1.0 if variance == 0 else math.inf
        return variance, unweighted, math.sqrt(1 + variance / float(square))  # B^2 = (variance + ||g||^2) / ||g||^2
