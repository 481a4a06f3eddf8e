"""Multinomial logistic regression in one compiled loop: all steps of a client, without a call per step.

The arithmetic is the reference solver's: float32, every logit summed over the features in their order with fused
multiply-adds, as the matrix products of torch (and of the authors' TensorFlow) do it. On data where SGD is
expansive the smallest difference in rounding grows a thousandfold within 20 rounds, so the order matters.
"""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprox.solvers.gradients import is_logistic
from fedprox.solvers.problem import LocalSolution, LocalWork, Params, SgdSettings

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

ZERO, ONE = np.float32(0), np.float32(1)
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
        weight = global_params["1.weight"].numpy().astype(np.float32)  # a copy, which the loop changes
        bias = global_params["1.bias"].numpy().astype(np.float32)
        none = {"1.weight": torch.zeros(0, 0), "1.bias": torch.zeros(0)}
        correction = none if work.correction is None else work.correction
        loss_sum, num_seen, num_steps = descend(
            weight,
            bias,
            correction["1.weight"].numpy(),
            correction["1.bias"].numpy(),
            features.flatten(1).numpy(),
            labels.numpy(),
            np.stack(list(work.orders)),
            work.num_steps,
            self._sgd.batch_size,
            np.float32(self._sgd.learning_rate),
            np.float32(work.mu),
            np.float32(self._sgd.weight_decay),
        )
        params = {"1.weight": torch.from_numpy(weight), "1.bias": torch.from_numpy(bias)}
        return LocalSolution(params, loss_sum / max(num_seen, 1), num_steps)


@compiled
def descend(
    weight: Floats,
    bias: Floats,
    weight_correction: Floats,
    bias_correction: Floats,
    features: Floats,
    labels: Integers,
    orders: Integers,
    num_steps: int,
    batch_size: int,
    learning_rate: np.float32,
    mu: np.float32,
    weight_decay: np.float32,
) -> tuple[float, int, int]:
    """Take the steps w <- w - lr * (grad F_B(w) + mu * (w - w^t) + weight_decay * w) in place.

    Args:
        weight: W, starting at w^t, shape (num_classes, num_features).
        bias: b, likewise, shape (num_classes,).
        weight_correction: Added to the gradient, same shape as weight; of shape (0, 0) for none.
        bias_correction: Likewise, same shape as bias; of shape (0,) for none.
        features: Shape (n_k, num_features).
        labels: Shape (n_k,).
        orders: Each epoch's order of the examples, shape (num_epochs, n_k).
        num_steps: Steps after which to stop.
        batch_size: B; the last batch of an epoch may be smaller.
        learning_rate: lr.
        mu: Weight of the proximal term.
        weight_decay: Weight of (1 / 2) * ||w||^2.

    Returns:
        The sum of the losses of the examples as they were processed, their number, and the steps done.
    """
    global_weight, global_bias = weight.copy(), bias.copy()
    residual = np.empty((batch_size, len(bias)), np.float32)
    gradient = np.empty(weight.shape[1], np.float32)
    loss_sum, num_seen, step = 0.0, 0, 0
    for epoch in range(len(orders)):
        for start in range(0, len(labels), batch_size):
            if step == num_steps:
                return loss_sum, num_seen, step
            batch = orders[epoch, start : start + batch_size]
            _logits(weight, bias, features, batch, residual)
            loss_sum += _softmax_residual(residual, labels, batch)
            for label in range(len(bias)):
                gradient[:] = ZERO
                bias_gradient = ZERO
                for example in range(len(batch)):
                    share = residual[example, label]
                    bias_gradient += share
                    row = features[batch[example]]
                    for feature in range(len(row)):
                        gradient[feature] += share * row[feature]
                if len(bias_correction):
                    gradient += weight_correction[label]
                    bias_gradient += bias_correction[label]
                w, w_t = weight[label], global_weight[label]
                for feature in range(len(w)):
                    pull = mu * (w[feature] - w_t[feature])
                    w[feature] -= learning_rate * (gradient[feature] + pull + weight_decay * w[feature])
                pull = mu * (bias[label] - global_bias[label])
                bias[label] -= learning_rate * (bias_gradient + pull + weight_decay * bias[label])
            num_seen += len(batch)
            step += 1
    return loss_sum, num_seen, step


@compiled
def _logits(weight: Floats, bias: Floats, features: Floats, batch: Integers, logits: Floats) -> None:
    """Write x W^T + b of a batch into logits; five classes advance together, each in the features' order."""
    num_classes = len(bias)
    for example in range(len(batch)):
        row = features[batch[example]]
        label = 0
        while label + 5 <= num_classes:
            w0, w1, w2, w3, w4 = (
                weight[label],
                weight[label + 1],
                weight[label + 2],
                weight[label + 3],
                weight[label + 4],
            )
            s0 = s1 = s2 = s3 = s4 = ZERO
            for feature in range(len(row)):
                x = row[feature]
                s0 += x * w0[feature]
                s1 += x * w1[feature]
                s2 += x * w2[feature]
                s3 += x * w3[feature]
                s4 += x * w4[feature]
            logits[example, label] = s0 + bias[label]
            logits[example, label + 1] = s1 + bias[label + 1]
            logits[example, label + 2] = s2 + bias[label + 2]
            logits[example, label + 3] = s3 + bias[label + 3]
            logits[example, label + 4] = s4 + bias[label + 4]
            label += 5
        while label < num_classes:
            s0 = ZERO
            w0 = weight[label]
            for feature in range(len(row)):
                s0 += row[feature] * w0[feature]
            logits[example, label] = s0 + bias[label]
            label += 1


@compiled
def _softmax_residual(logits: Floats, labels: Integers, batch: Integers) -> float:
    """Turn logits into (softmax - onehot) / B, the gradient of the mean loss by them; return the sum of losses.

    The sum of exponentials is taken in float64: where one class is nearly certain, softmax - onehot is all rounding,
    and over thousands of steps a sum in float32 drifts visibly (1e-4 in the loss) from the authors' curves.
    """
    scale = ONE / np.float32(len(batch))
    loss_sum = 0.0
    for example in range(len(batch)):
        row, label = logits[example], labels[batch[example]]
        largest = row.max()
        at_label = row[label] - largest
        exact_total = 0.0
        for other in range(len(row)):
            row[other] = np.exp(row[other] - largest)
            exact_total += row[other]
        total = np.float32(exact_total)
        loss_sum += np.log(exact_total) - at_label
        for other in range(len(row)):
            row[other] /= total
        row[label] -= ONE
        for other in range(len(row)):
            row[other] *= scale
    return loss_sum
