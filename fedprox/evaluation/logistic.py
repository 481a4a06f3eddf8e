"""Evaluation of logistic regression in compiled code, with a share of the examples in each thread."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprox.evaluation.gradients import Examples, GradientSums
from fedprox.evaluation.metrics import Evaluation
from fedprox.solvers.kernels.compile import compiled
from fedprox.solvers.kernels.lanes import NUM_LANES
from fedprox.solvers.kernels.logistic import (
    EXAMPLES_PER_TILE,
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
from fedprox.solvers.threads import Pool

_SHARE = 1_000  # training examples in a piece of work; fixed, so that no sum depends on the number of threads
_WIDTH, _PIECES = 32, 32  # test examples side by side, few enough to be read in order; pieces in a share of the work
_NO_FEATURES, _NO_LABELS = np.zeros((0, 1), np.float32), np.zeros(0, np.int64)


class LogisticEvaluator:
    """Measures a model on a test set, whose examples are stored side by side so that 16 of them advance at once."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        """Keep a test set: float32 model input, shape (n, *input_shape), and classes, shape (n,), n >= 1."""
        self._labels, self._pieces = labels.numpy(), _side_by_side(features.flatten(1).numpy())
        self._pool = Pool(torch.get_num_threads())
        none = np.zeros((1, 1), np.float32)
        _measure(self._pieces[:0], none, none[0], self._labels[:0], np.zeros(0, np.bool_))  # load or compile it now

    def __call__(self, params: Params) -> Evaluation:
        """Return the mean loss and the accuracy of a state dict."""
        return self.in_detail(params)[0]

    def in_detail(self, params: Params) -> tuple[Evaluation, NDArray[np.bool_]]:
        """Return the evaluation, and whether each example is classified correctly, shape (n,)."""
        weight, bias = (params[name].numpy().astype(np.float32, "C") for name in ("1.weight", "1.bias"))
        is_correct = np.empty(len(self._labels), np.bool_)

        def loss_of(first: int) -> float:
            share = slice(first * _WIDTH, (first + _PIECES) * _WIDTH)
            pieces = self._pieces[first : first + _PIECES]
            return _measure(pieces, weight, bias, self._labels[share], is_correct[share])

        losses = self._pool.map(loss_of, firsts := range(0, len(self._pieces), _PIECES))
        loss = sum(losses[first] for first in firsts) / len(self._labels)
        return Evaluation(loss, int(is_correct.sum()) / len(is_correct)), is_correct


def _side_by_side(features: Floats) -> Floats:
    """Return examples (n, num_features) as pieces (num_features + 1, _WIDTH), padded with 0."""
    num_examples, num_features = features.shape
    pieces = np.zeros((-(-num_examples // _WIDTH), num_features + 1, _WIDTH), np.float32)
    for piece, start in zip(pieces, range(0, num_examples, _WIDTH), strict=True):
        examples = features[start : start + _WIDTH]
        piece[:-1, : len(examples)] = examples.T
    return pieces


class LogisticGradients:
    """Gradients of all clients' F_k."""

    def __init__(self, examples: Examples) -> None:
        """Keep all clients' examples, float32 on the CPU."""
        self._features, self._labels = examples.features.flatten(1).numpy(), examples.labels.numpy()
        self._bounds = np.append(examples.starts, len(self._labels))
        self._pool = Pool(torch.get_num_threads())
        none, onehot = np.zeros((2, NUM_LANES), np.float32), unit_vectors(1, NUM_LANES)  # load or compile it now
        _sum_clients(none, _NO_FEATURES, _NO_LABELS, self._bounds, 0, 0, onehot, np.zeros((2, 2)), np.zeros(2))

    def sums(self, params: Params) -> GradientSums:
        """Return the sums over clients at a state dict."""
        weight = padded(params)
        onehot = unit_vectors(len(params["1.bias"]), weight.shape[1])
        shares = self._shares()

        def of_clients(share: int) -> tuple[float, int, Doubles, Doubles]:
            (first, last), vectors, squares = shares[share], np.zeros((2, weight.size)), np.zeros(2)
            data = (self._features, self._labels, self._bounds, first, last)
            loss, num_correct = _sum_clients(weight, *data, onehot, vectors, squares)
            return loss, num_correct, vectors, squares

        total = GradientSums(torch.zeros(2, weight.size, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
        summed = self._pool.map(of_clients, range(len(shares)))
        for loss, num_correct, vectors, squares in (summed[share] for share in range(len(shares))):
            total.loss += loss / len(self._labels)
            total.num_correct += num_correct
            total.vectors += torch.from_numpy(vectors)
            total.squares += torch.from_numpy(squares)
        total.num_clients = len(self._bounds) - 1
        return total

    def _shares(self) -> list[tuple[int, int]]:
        """Return ranges (first, last + 1) of clients that have about _SHARE examples together."""
        wanted = np.arange(0, len(self._labels), _SHARE)
        firsts = np.unique(np.searchsorted(self._bounds[:-1], wanted))
        firsts = firsts[firsts < len(self._bounds) - 1].tolist()
        return list(zip(firsts, [*firsts[1:], len(self._bounds) - 1], strict=True))


@compiled
def _measure(pieces: Floats, weight: Floats, bias: Floats, labels: Integers, is_correct: NDArray[np.bool_]) -> float:
    """Return the sum of the losses of some examples.

    Logits W x + b come from the same kernel as in training, with classes and examples exchanged.

    Args:
        pieces: Some of the pieces that `_side_by_side` returns.
        weight: W, shape (num_classes, num_features).
        bias: b, shape (num_classes,).
        labels: Labels of these examples, shape (n,).
        is_correct: Written: whether each example's largest logit, or the first of equals, is the label's, shape (n,).
    """
    num_classes, width, loss_sum = len(bias), pieces.shape[2], 0.0
    classes = np.minimum(np.arange(-(-num_classes // EXAMPLES_PER_TILE) * EXAMPLES_PER_TILE), num_classes - 1)
    outputs = np.empty((len(classes), width), np.float32)
    for piece in range(len(pieces)):
        logits(pieces[piece], weight, classes, outputs)
        of_piece = labels[piece * width : (piece + 1) * width]
        largest, highest = np.zeros(width, np.int64), outputs[0] + bias[0]
        for klass in range(num_classes):
            outputs[klass] += bias[klass]
            for example in range(width):
                if outputs[klass, example] > highest[example]:
                    largest[example], highest[example] = klass, outputs[klass, example]
        for klass in range(num_classes):
            outputs[klass] -= highest
        for example in range(len(of_piece)):
            is_correct[piece * width + example] = largest[example] == of_piece[example]
            loss_sum -= outputs[of_piece[example], example]
        exponential(outputs[:num_classes].reshape(-1))
        for example in range(len(of_piece)):
            total = 0.0
            for klass in range(num_classes):
                total += outputs[klass, example]
            loss_sum += np.log(total)
    return loss_sum


@partial(compiled, fastmath=("contract", "reassoc"))  # float64: the order of the sum does not matter
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
        weight: w in the form of `fedprox.solvers.kernels.logistic.padded`.
        features: All clients' examples, shape (n, num_features).
        labels: Shape (n,).
        bounds: Client k holds the examples bounds[k] .. bounds[k + 1] - 1.
        first: The first client.
        last: The last one plus 1.
        onehot: From `unit_vectors`.
        vectors: Shape (2, weight.size).
        squares: Shape (2,).

    Returns:
        The sum of the losses of these clients' examples, and the number classified correctly.
    """
    gradient = np.empty(weight.shape, np.float64)
    flat = gradient.reshape(-1)
    loss_sum, num_correct = 0.0, 0
    for client in range(first, last):
        held = slice(bounds[client], bounds[client + 1])
        loss, correct = full_batch(weight, features[held], labels[held], onehot, gradient)
        loss_sum += loss
        num_correct += correct
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
