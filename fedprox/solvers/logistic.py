"""Multinomial logistic regression in one compiled loop: all steps of a client, without a call per step.

The arithmetic is the reference solver's: float32, every logit summed over the features in their order with fused
multiply-adds, as the matrix products of torch (and of the authors' TensorFlow) do it. On data where SGD is
expansive the smallest difference in rounding grows a thousandfold within 20 rounds, so the order matters.

Weights are held as W^T with the bias as a last row, padded with classes of weight 0 to full lanes, so that 16 classes
advance at once, for five examples of a batch.
"""

import math

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprox.solvers.gradients import is_logistic
from fedprox.solvers.lanes import NUM_LANES, load, spread, store
from fedprox.solvers.problem import LocalSolution, LocalWork, Params, SgdSettings

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

ZERO, ONE = np.float32(0), np.float32(1)
FIVE = 5  # examples whose sums are kept in registers, enough to hide the latency of a multiply-add
HALF, LOG2_E = np.float32(0.5), np.float32(1 / math.log(2))
LN_2_HIGH = np.float32(0.693359375)  # 9 bits, so that n * LN_2_HIGH is exact
LN_2_LOW = np.float32(math.log(2) - 0.693359375)
LOWEST = np.float32(-87)  # e^-87 is the last that is not denormal
TAYLOR = tuple(np.float32(1 / math.factorial(k)) for k in range(8))
# "contract" allows fused multiply-adds; sums are not reordered.
compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"contract"})


class LogisticSolver:
    """Local SGD for `nn.Sequential(nn.Flatten(), nn.Linear(...))` on the CPU, without momentum."""

    is_concurrent = True

    def __init__(self, sgd: SgdSettings) -> None:
        """Keep the settings; the model's shape comes with the parameters."""
        self._sgd = sgd

    @staticmethod
    def accepts(model: nn.Module, sgd: SgdSettings, device: str) -> bool:
        """Return whether this solver can take the place of the reference solver."""
        is_float32 = all(param.dtype == torch.float32 for param in model.parameters())
        return is_logistic(model) and is_float32 and device == "cpu" and sgd.momentum == 0

    def solve(self, global_params: Params, features: Tensor, labels: Tensor, work: LocalWork) -> LocalSolution:
        """Return the client's solution; see `fedprox.solvers.problem.Solver`."""
        weight = padded(global_params)
        correction = np.zeros((0, 0), np.float32) if work.correction is None else padded(work.correction)
        loss_sum, num_seen, num_steps = descend(
            weight,
            correction,
            features.flatten(1).numpy(),
            labels.numpy(),
            np.stack(list(work.orders)),
            len(global_params["1.bias"]),
            work.num_steps,
            self._sgd.batch_size,
            np.float32(self._sgd.learning_rate),
            np.float32(work.mu),
            np.float32(self._sgd.weight_decay),
        )
        params = unpadded(weight, len(global_params["1.bias"]))
        return LocalSolution(params, loss_sum / max(num_seen, 1), num_steps)


def padded(params: Params) -> Floats:
    """Return W^T with the bias below it and columns of 0 beside it, shape (num_features + 1, a multiple of 16)."""
    weight, bias = params["1.weight"].numpy(), params["1.bias"].numpy()
    num_classes, num_features = weight.shape
    both = np.zeros((num_features + 1, -(-num_classes // NUM_LANES) * NUM_LANES), np.float32)
    both[:-1, :num_classes] = weight.T
    both[-1, :num_classes] = bias
    return both


def unpadded(both: Floats, num_classes: int) -> Params:
    """Return the state dict of W and b, in memory of its own; undoes `padded`."""
    weight = np.ascontiguousarray(both[:-1, :num_classes].T)
    return {"1.weight": torch.from_numpy(weight), "1.bias": torch.from_numpy(both[-1, :num_classes].copy())}


@compiled
def descend(
    weight: Floats,
    correction: Floats,
    features: Floats,
    labels: Integers,
    orders: Integers,
    num_classes: int,
    num_steps: int,
    batch_size: int,
    learning_rate: np.float32,
    mu: np.float32,
    weight_decay: np.float32,
) -> tuple[float, int, int]:
    """Take the steps w <- w - lr * (grad F_B(w) + mu * (w - w^t) + weight_decay * w) in place.

    Args:
        weight: w, starting at w^t, as `padded` makes it.
        correction: Added to the gradient, likewise; of shape (0, 0) for none.
        features: Shape (n_k, num_features).
        labels: Shape (n_k,).
        orders: Each epoch's order of the examples, shape (num_epochs, n_k).
        num_classes: How many columns of weight are classes.
        num_steps: Steps after which to stop.
        batch_size: B; the last batch of an epoch may be smaller.
        learning_rate: lr.
        mu: Weight of the proximal term.
        weight_decay: Weight of (1 / 2) * ||w||^2.

    Returns:
        The sum of the losses of the examples as they were processed, their number, and the steps done.
    """
    global_weight, gradient = weight.copy(), np.empty_like(weight)
    num_rows = -(-min(batch_size, len(labels)) // FIVE) * FIVE
    residual = np.empty((num_rows, weight.shape[1]), np.float32)
    batch = np.empty(num_rows, np.int64)
    onehot = unit_vectors(num_classes, weight.shape[1])
    loss_sum, num_seen, step = 0.0, 0, 0
    for epoch in range(len(orders)):
        for start in range(0, len(labels), batch_size):
            if step == num_steps:
                return loss_sum, num_seen, step
            size = min(batch_size, len(labels) - start)
            batch[:size] = orders[epoch, start : start + size]
            batch[size:] = orders[epoch, start]  # any example: its residual is set to 0
            full = -(-size // FIVE) * FIVE
            logits(weight, features, batch[:full], residual)
            loss_sum += softmax_residual(residual, labels, batch[:size], onehot)
            residual[size:full] = ZERO
            batch_gradient(features, batch[:full], residual, gradient)
            if len(correction):
                gradient += correction
            _step(weight, global_weight, gradient, learning_rate, mu, weight_decay)
            num_seen += size
            step += 1
    return loss_sum, num_seen, step


@compiled
def logits(weight: Floats, features: Floats, batch: Integers, result: Floats) -> None:
    """Write x W^T + b of a batch into the result, each sum in the features' order.

    Args:
        weight: As `padded` makes it.
        features: Shape (n, num_features).
        batch: Positions in it; their number is a multiple of five.
        result: Shape (at least the batch's size, columns of weight).
    """
    last = features.shape[1]
    for first in range(0, len(batch), FIVE):
        x0, x1, x2, x3, x4 = (
            features[batch[first]],
            features[batch[first + 1]],
            features[batch[first + 2]],
            features[batch[first + 3]],
            features[batch[first + 4]],
        )
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
def softmax_residual(logits: Floats, labels: Integers, batch: Integers, onehot: Floats) -> float:
    """Turn logits into (softmax - onehot) / B, the gradient of the mean loss by them; return the sum of losses.

    The sum of exponentials is taken in float64: where one class is nearly certain, softmax - onehot is all rounding,
    and over thousands of steps a sum in float32 drifts visibly (1e-4 in the loss) from the authors' curves.

    Args:
        logits: Shape (at least B, a multiple of 16); columns from num_classes on become 0.
        labels: Of all examples.
        batch: Which examples the rows are of, shape (B,).
        onehot: From `unit_vectors`.
    """
    scale, num_classes = ONE / np.float32(len(batch)), len(onehot) - 1
    loss_sum = 0.0
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
def unit_vectors(num_classes: int, num_columns: int) -> Floats:
    """Return a one-hot row for each class, and below them a row with 1 in all columns that are classes."""
    rows = np.zeros((num_classes + 1, num_columns), np.float32)
    for label in range(num_classes):
        rows[label, label] = rows[num_classes, label] = ONE
    return rows


@compiled
def exponential(values: Floats) -> None:
    """Replace x <= 0, shape (n,), by e^x to one unit in the last place, e^0 = 1 exactly; below e^-87 by that.

    e^x = 2^n e^r with n whole and |r| <= ln(2) / 2, where the seventh Taylor polynomial is exact to 5e-9.
    """
    power = np.empty_like(values)
    exponent = power.view(np.int32)
    for at in range(len(values)):
        x = max(values[at], LOWEST)
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
    """Write R^T X, and R's column sums below it, into the gradient, which is shaped like weight.

    Args:
        features: Shape (n, num_features).
        batch: Positions in it; their number is a multiple of five.
        residual: R, shape (at least the batch's size, columns of gradient), 0 for examples that do not count.
        gradient: Overwritten.
    """
    last = features.shape[1]
    gradient[:] = ZERO
    for first in range(0, len(batch), FIVE):
        x0, x1, x2, x3, x4 = (
            features[batch[first]],
            features[batch[first + 1]],
            features[batch[first + 2]],
            features[batch[first + 3]],
            features[batch[first + 4]],
        )
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
def _step(
    weight: Floats,
    global_weight: Floats,
    gradient: Floats,
    learning_rate: np.float32,
    mu: np.float32,
    weight_decay: np.float32,
) -> None:
    """Take one step in place."""
    for row in range(len(weight)):
        for column in range(0, weight.shape[1], NUM_LANES):
            w = load(weight, row, column)
            pull = mu * (w - load(global_weight, row, column))
            slope = load(gradient, row, column) + pull + weight_decay * w
            store(weight, row, column, w - learning_rate * slope)
