"""Logistic regression on many examples in compiled code, some of them in each thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprox.evaluation.gradients import Examples, GradientSums
from fedprox.evaluation.metrics import Evaluation
from fedprox.solvers.kernels.compile import compiled
from fedprox.solvers.kernels.lanes import NUM_LANES
from fedprox.solvers.kernels.logistic import (
    FIVE,
    PIECE,
    Doubles,
    Floats,
    Integers,
    exponential,
    full_batch,
    logits,
    padded,
    unit_vectors,
)
from fedprox.solvers.problem import Params

_SHARE = 1_000  # examples in a piece of work: fixed, so that no sum depends on the number of threads
_NO_FEATURES, _NO_LABELS = np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
Result = TypeVar("Result")


class LogisticEvaluator:
    """Measures models on a test set."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        """Keep a test set: float32 model input of shape (n, *input_shape), classes of shape (n,), n >= 1."""
        self._features, self._labels = features.flatten(1).numpy(), labels.numpy()
        self._threads = _Threads()
        none, is_right = np.zeros((2, NUM_LANES), np.float32), np.zeros((0, 1), np.bool_)
        _measure(none, _NO_FEATURES, _NO_LABELS, is_right, 1)  # loads or compiles it

    def __call__(self, models: Sequence[Params]) -> list[Evaluation]:
        """Return the loss and accuracy of each state dict."""
        return self.in_detail(models)[0]

    def in_detail(self, models: Sequence[Params]) -> tuple[list[Evaluation], NDArray[np.bool_]]:
        """Return that, and whether each example is classified rightly, shape (n,) for each state dict."""
        num_classes = len(models[0]["1.bias"])
        weights = padded({name: torch.cat([params[name] for params in models]) for name in ("1.weight", "1.bias")})
        is_right = np.empty((len(self._labels), len(models)), np.bool_)

        def of_share(start: int) -> Doubles:
            share = slice(start, start + _SHARE)
            return _measure(weights, self._features[share], self._labels[share], is_right[share], num_classes)

        parts = self._threads.map(of_share, range(0, len(self._labels), _SHARE))
        losses, hits = np.sum(parts, axis=0) / len(self._labels)
        return list(map(Evaluation, losses.tolist(), hits.tolist())), is_right.T


class LogisticGradients:
    """The gradients of all clients' F_k."""

    def __init__(self, examples: Examples) -> None:
        """Keep all clients' examples, float32 on the CPU."""
        self._features, self._labels = examples.features.flatten(1).numpy(), examples.labels.numpy()
        self._bounds = np.append(examples.starts, len(self._labels))
        self._threads = _Threads()
        none, onehot = np.zeros((2, NUM_LANES), np.float32), unit_vectors(1, NUM_LANES)  # loads or compiles it:
        _sum_clients(none, _NO_FEATURES, _NO_LABELS, self._bounds, 0, 0, onehot, np.zeros((2, 2)), np.zeros(2))

    def sums(self, params: Params) -> GradientSums:
        """Return the sums over clients at a state dict."""
        weight = padded(params)
        onehot = unit_vectors(len(params["1.bias"]), weight.shape[1])

        def of_clients(first: int, last: int) -> tuple[float, int, Doubles, Doubles]:
            vectors, squares = np.zeros((2, weight.size)), np.zeros(2)
            data = (self._features, self._labels, self._bounds, first, last)
            loss, num_correct = _sum_clients(weight, *data, onehot, vectors, squares)
            return loss, num_correct, vectors, squares

        total = GradientSums(torch.zeros(2, weight.size, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
        for loss, num_correct, vectors, squares in self._threads.map(lambda ends: of_clients(*ends), self._shares()):
            total.loss += loss / len(self._labels)
            total.num_correct += num_correct
            total.vectors += torch.from_numpy(vectors)
            total.squares += torch.from_numpy(squares)
        total.num_clients = len(self._bounds) - 1
        return total

    def _shares(self) -> list[tuple[int, int]]:
        """Return (first, last + 1) of clients that follow each other and hold about _SHARE examples in all."""
        wanted = np.arange(0, len(self._labels), _SHARE)
        firsts = np.unique(np.searchsorted(self._bounds[:-1], wanted))
        firsts = firsts[firsts < len(self._bounds) - 1].tolist()
        return list(zip(firsts, [*firsts[1:], len(self._bounds) - 1], strict=True))


class _Threads:
    """As many threads as torch has here."""

    def __init__(self) -> None:
        self._num_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._num_threads) if self._num_threads > 1 else None

    def map(self, function: Callable[..., Result], items: Sequence[object]) -> list[Result]:
        """Return the function's results in the order of the items."""
        if self._pool is None:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))


@compiled
def _measure(
    weights: Floats, features: Floats, labels: Integers, is_right: NDArray[np.bool_], num_classes: int
) -> Doubles:
    """Return the sum of losses and the number of hits of each model, shape (2, num_models).

    Args:
        weights: All models' classes side by side, in the layout of `fedprox.solvers.kernels.logistic.padded`.
        features: Shape (n, num_features).
        labels: Shape (n,).
        is_right: Written: whether each model classifies each example rightly, shape (n, num_models).
        num_classes: Of each model.
    """
    num_models = is_right.shape[1]
    outputs = np.empty((PIECE, weights.shape[1]), np.float32)
    at_label, sums = np.empty((PIECE, num_models)), np.zeros((2, num_models))
    for start in range(0, len(labels), PIECE):
        size = min(PIECE, len(labels) - start)
        batch = np.minimum(np.arange(start, start + -(-size // FIVE) * FIVE), len(labels) - 1)
        logits(weights, features, batch, outputs)
        for example in range(size):
            for model in range(num_models):
                own = outputs[example, model * num_classes : (model + 1) * num_classes]
                largest = 0
                for other in range(1, num_classes):
                    if own[other] > own[largest]:
                        largest = other
                label = labels[start + example]
                is_right[start + example, model] = largest == label
                sums[1, model] += largest == label
                highest = own[largest]
                for other in range(num_classes):
                    own[other] -= highest
                at_label[example, model] = own[label]
        exponential(outputs[:size].reshape(-1))
        for example in range(size):
            for model in range(num_models):
                total = 0.0
                for other in range(num_classes):
                    total += outputs[example, model * num_classes + other]
                sums[0, model] += np.log(total) - at_label[example, model]
    return sums


@partial(compiled, fastmath=("contract", "reassoc"))  # float64 does not feel the order of a sum
def _sum_clients(
    weight: Floats,
    features: Floats,
    labels: Integers,
    bounds: Integers,
    first: int,
    last: int,
    onehot: Floats,
    vectors: Doubles,
    squares: Doubles,
) -> tuple[float, int]:
    """Add the clients first .. last - 1 to the vectors and squares of `GradientSums`.

    Args:
        weight: w, as `fedprox.solvers.kernels.logistic.padded` makes it.
        features: All clients' examples, shape (n, num_features).
        labels: Shape (n,).
        bounds: Client k holds the examples bounds[k] .. bounds[k + 1] - 1.
        first: The first client.
        last: The last one plus 1.
        onehot: From `unit_vectors`.
        vectors: Shape (2, weight.size).
        squares: Shape (2,).

    Returns:
        The sum of the losses of these clients' examples, and how many are classified rightly.
    """
    gradient = np.empty(weight.shape, np.float64)
    flat = gradient.reshape(-1)
    loss_sum, num_correct = 0.0, 0
    for client in range(first, last):
        held = slice(bounds[client], bounds[client + 1])
        loss, hits = full_batch(weight, features[held], labels[held], onehot, gradient)
        loss_sum += loss
        num_correct += hits
        size = held.stop - held.start
        share, square = size / len(labels), 0.0
        for at in range(len(flat)):
            g = flat[at] / size
            vectors[0, at] += share * g
            vectors[1, at] += g
            square += g * g
        squares[0] += share * square
        squares[1] += square
    return loss_sum, num_correct
