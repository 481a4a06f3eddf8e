"""Compiled code for multinomial logistic regression: logits, softmax and gradient of a batch, and of all examples.

The arithmetic is the reference solver's: float32, every logit summed over the features in their order with fused
multiply-adds, as the matrix products of torch (and of the authors' TensorFlow) do it. The order matters: on data on
which SGD is expansive, the smallest difference in rounding grows a thousandfold within 20 rounds. The order also
preserves ties: classes without any training so far have equal logits, and the first one wins.

Weights are stored as W^T with the bias as the last row, padded with classes of weight 0 to full lanes. So the inner
loops compute 16 classes at once, for five examples of a batch.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedprox.models.logistic import is_logistic
from fedprox.solvers.kernels.compile import compiled
from fedprox.solvers.kernels.lanes import NUM_LANES, load, spread, store
from fedprox.solvers.problem import Params

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

ZERO, ONE = np.float32(0), np.float32(1)
EXAMPLES_PER_TILE = 5  # examples whose sums stay in registers: enough to hide the latency of a multiply-add
PIECE = 100  # examples of a full batch computed at once, a multiple of EXAMPLES_PER_TILE
HALF, LOG2_E = np.float32(0.5), np.float32(1 / math.log(2))
LN_2_HIGH = np.float32(0.693359375)  # 9 bits, so that n * LN_2_HIGH is exact
LN_2_LOW = np.float32(math.log(2) - 0.693359375)
LOWEST = np.float32(-87)  # e^-87 is the smallest power that is not denormal
TAYLOR = tuple(np.float32(1 / math.factorial(k)) for k in range(8))


def has_kernels(model: nn.Module, device: str | torch.device) -> bool:
    """Return whether these kernels can compute a model: float32 logistic regression on the CPU."""
    is_float32 = all(param.dtype == torch.float32 for param in model.parameters())
    return is_logistic(model) and is_float32 and torch.device(device).type == "cpu"


def padded(params: Params) -> Floats:
    """Return W^T with the bias as the last row and columns of 0 on the right, shape (num_features + 1, 16 * m)."""
    weight, bias = params["1.weight"].numpy(), params["1.bias"].numpy()
    num_classes, num_features = weight.shape
    both = np.zeros((num_features + 1, -(-num_classes // NUM_LANES) * NUM_LANES), np.float32)
    both[:-1, :num_classes] = weight.T
    both[-1, :num_classes] = bias
    return both


def unpadded(both: Floats, num_classes: int) -> Params:
    """Return the state dict of W and b as copies; the inverse of `padded`."""
    weight = np.ascontiguousarray(both[:-1, :num_classes].T)
    return {"1.weight": torch.from_numpy(weight), "1.bias": torch.from_numpy(both[-1, :num_classes].copy())}


@compiled
def unit_vectors(num_classes: int, num_columns: int) -> Floats:
    """Return a one-hot row for each class, and a last row with 1 in all columns that are classes."""
    rows = np.zeros((num_classes + 1, num_columns), np.float32)
    for label in range(num_classes):
        rows[label, label] = rows[num_classes, label] = ONE
    return rows


@compiled
def _tile(features: Floats, batch: Integers, first: int) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return the five examples from a position of the batch on; LLVM inlines this."""
    return (
        features[batch[first]],
        features[batch[first + 1]],
        features[batch[first + 2]],
        features[batch[first + 3]],
        features[batch[first + 4]],
    )


@compiled
def logits(weight: Floats, features: Floats, batch: Integers, result: Floats) -> None:
    """Write x W^T + b of a batch into the result, each sum in the order of the features.

    Args:
        weight: In the form of `padded`.
        features: Shape (n, num_features).
        batch: Positions of the examples; their number is a multiple of five.
        result: Shape (at least the batch's size, columns of weight).
    """
    last = features.shape[1]
    for first in range(0, len(batch), EXAMPLES_PER_TILE):
        x0, x1, x2, x3, x4 = _tile(features, batch, first)
        for column in range(0, weight.shape[1], NUM_LANES):
            bias = load(weight, last, column)
            s0 = s1 = s2 = s3 = s4 = spread(ZERO)
            for feature in range(last):
                w = load(weight, feature, column)
                s0 = s0 + x0[feature] * w
                s1 = s1 + x1[feature] * w
                s2 = s2 + x2[feature] * w
                s3 = s3 + x3[feature] * w
                s4 = s4 + x4[feature] * w
            store(result, first, column, s0 + bias)
            store(result, first + 1, column, s1 + bias)
            store(result, first + 2, column, s2 + bias)
            store(result, first + 3, column, s3 + bias)
            store(result, first + 4, column, s4 + bias)


@compiled
def softmax_residual(logits: Floats, labels: Integers, batch: Integers, onehot: Floats, scale: np.float32) -> float:
    """Turn logits into scale * (softmax - onehot), the gradient of scale * losses by them; return the sum of losses.

    The exponentials are summed in float64: if one class is nearly certain, softmax - onehot consists of rounding only,
    and over thousands of steps a float32 sum drifts visibly (1e-4 in the loss) from the authors' curves.

    Args:
        logits: Shape (at least B, 16 * m); columns that are not classes become 0.
        labels: Labels of all examples.
        batch: Positions of the rows' examples, shape (B,).
        onehot: From `unit_vectors`.
        scale: 1 / B for the mean of a batch.
    """
    num_classes, loss_sum = len(onehot) - 1, 0.0
    for example in range(len(batch)):
        row = logits[example]
        largest = row[0]
        for other in range(1, num_classes):
            largest = max(largest, row[other])
        loss_sum += largest - row[labels[batch[example]]]
        for column in range(0, len(row), NUM_LANES):
            store(logits, example, column, load(logits, example, column) - spread(largest))
    exponential(logits[: len(batch)].reshape(-1))
    for example in range(len(batch)):
        exact_total = 0.0
        for other in range(num_classes):
            exact_total += logits[example, other]
        loss_sum += np.log(exact_total)
        total = spread(np.float32(exact_total))
        for column in range(0, logits.shape[1], NUM_LANES):
            softmax = load(logits, example, column) / total * load(onehot, num_classes, column)
            store(logits, example, column, scale * (softmax - load(onehot, labels[batch[example]], column)))
    return loss_sum


@compiled
def exponential(values: Floats) -> None:
    """Replace x, shape (n,), by e^min(max(x, -87), 0), exact to one unit in the last place; e^0 is exactly 1.

    Only columns that are not classes have x > 0: their logit is 0, and the largest of the classes' may be below that.
    e^x = 2^n e^r with n whole and |r| <= ln(2) / 2, where the seventh Taylor polynomial is exact to 5e-9.
    """
    power = np.empty_like(values)
    exponent = power.view(np.int32)
    for at in range(len(values)):
        x = LOWEST if values[at] < LOWEST else values[at]  # nan stays nan
        x = ZERO if x > ZERO else x
        n = np.floor(x * LOG2_E + HALF)
        r = x - n * LN_2_HIGH - n * LN_2_LOW
        p = TAYLOR[7]
        for k in (6, 5, 4, 3, 2, 1, 0):
            p = p * r + TAYLOR[k]
        values[at] = p
        exponent[at] = (np.int32(n) + np.int32(127)) << np.int32(23)  # the bits of the float32 2^n
    for at in range(len(values)):
        values[at] *= power[at]


@compiled
def batch_gradient(features: Floats, batch: Integers, residual: Floats, gradient: Floats) -> None:
    """Write R^T X, with the column sums of R as the last row, into the gradient, which has the shape of weight.

    Args:
        features: Shape (n, num_features).
        batch: Positions of the examples; their number is a multiple of five.
        residual: R, shape (at least the batch's size, columns of gradient), 0 for examples that do not count.
        gradient: Overwritten.
    """
    last = features.shape[1]
    gradient[:] = ZERO
    for first in range(0, len(batch), EXAMPLES_PER_TILE):
        x0, x1, x2, x3, x4 = _tile(features, batch, first)
        for column in range(0, gradient.shape[1], NUM_LANES):
            r0 = load(residual, first, column)
            r1 = load(residual, first + 1, column)
            r2 = load(residual, first + 2, column)
            r3 = load(residual, first + 3, column)
            r4 = load(residual, first + 4, column)
            for feature in range(last):
                g = load(gradient, feature, column)
                g = g + x0[feature] * r0
                g = g + x1[feature] * r1
                g = g + x2[feature] * r2
                g = g + x3[feature] * r3
                g = g + x4[feature] * r4
                store(gradient, feature, column, g)
            store(gradient, last, column, load(gradient, last, column) + r0 + r1 + r2 + r3 + r4)


@compiled
def full_batch(
    weight: Floats, features: Floats, labels: Integers, onehot: Floats, gradient: Doubles
) -> tuple[float, int]:
    """Return the sum of losses over all examples, and the number of those classified correctly.

    Args:
        weight: In the form of `padded`.
        features: Shape (n, num_features).
        labels: Shape (n,).
        onehot: From `unit_vectors`.
        gradient: Overwritten by the gradient of the sum of losses, same shape as weight.
    """
    residual, slope = np.empty((PIECE, weight.shape[1]), np.float32), np.empty(weight.shape, np.float32)
    gradient[:] = 0.0
    loss_sum, num_correct = 0.0, 0
    for start in range(0, len(labels), PIECE):
        size = min(PIECE, len(labels) - start)
        full = -(-size // EXAMPLES_PER_TILE) * EXAMPLES_PER_TILE
        batch = np.arange(start, start + full)
        batch[size:] = start  # pads to a multiple of five; the residuals are set to 0 below
        logits(weight, features, batch, residual)
        num_correct += _num_correct(residual, labels, batch[:size], len(onehot) - 1)
        loss_sum += softmax_residual(residual, labels, batch[:size], onehot, ONE)
        residual[size:full] = ZERO
        batch_gradient(features, batch, residual, slope)
        gradient += slope
    return loss_sum, num_correct


@compiled
def _num_correct(logits: Floats, labels: Integers, batch: Integers, num_classes: int) -> int:
    """Return how many examples have their label's logit as the largest, or the first of equally large ones."""
    num_correct = 0
    for example in range(len(batch)):
        largest = 0
        for other in range(1, num_classes):
            if logits[example, other] > logits[example, largest]:
                largest = other
        num_correct += largest == labels[batch[example]]
    return num_correct
