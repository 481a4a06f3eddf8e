"""Local SGD for multinomial logistic regression in one compiled loop: no Python call per step."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn

from fedprox.process import announced
from fedprox.solvers.kernels.compile import compiled, is_kept
from fedprox.solvers.kernels.lanes import NUM_LANES, load, store
from fedprox.solvers.kernels.logistic import (
    EXAMPLES_PER_TILE,
    ONE,
    ZERO,
    Floats,
    Integers,
    batch_gradient,
    has_kernels,
    logits,
    padded,
    softmax_residual,
    unit_vectors,
    unpadded,
)
from fedprox.solvers.problem import LocalProblem, LocalSolution, LocalWork, Params, SgdSettings


class LogisticSolver:
    """Local SGD for `nn.Sequential(nn.Flatten(), nn.Linear(...))` on the CPU, without momentum."""

    is_concurrent, takes_images = True, False

    def __init__(self, sgd: SgdSettings) -> None:
        """Keep the settings; the model's shape comes with the parameters.

        This loads the compiled code, or compiles it on its first use on this machine, so that no round has to wait.
        """
        self._sgd = sgd
        self._anchor: tuple[Params, Floats] = ({}, np.zeros((0, 0), np.float32))
        none = LocalWork(np.zeros((0, 1), np.int64), 0, 0.0)
        params = {"1.weight": torch.zeros(1, 1), "1.bias": torch.zeros(1)}
        compiling = "compiling the solver, once on this machine: ten seconds or more"
        with nullcontext() if is_kept(descend) else announced(compiling):
            self.solve(LocalProblem(params, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), none))

    @staticmethod
    def accepts(model: nn.Module, sgd: SgdSettings, device: str) -> bool:
        """Return whether this solver can take the place of the reference solver."""
        return has_kernels(model, device) and sgd.momentum == 0 and sgd.is_plain and not sgd.has_epoch_rates

    def solve(self, problem: LocalProblem) -> LocalSolution:
        """Return the client's solution; see `fedprox.solvers.problem.Solver`."""
        problem = problem.alone()
        global_params, work = problem.global_params, problem.work
        of_params, anchor = self._anchor  # all clients of a round have the same
        if of_params is not global_params:
            anchor = padded(global_params)
            self._anchor = (global_params, anchor)  # one assignment: several threads may be here
        weight = anchor.copy() if problem.start is None else padded(problem.start)
        correction = np.zeros((0, 0), np.float32) if work.correction is None else padded(work.correction)
        epoch = self._sgd.epoch(len(problem.labels))
        loss_sum, num_seen, num_steps, drift = descend(
            weight,
            anchor,
            correction,
            problem.features.flatten(1).contiguous().numpy(),  # strided ones would be compiled for once more
            problem.labels.numpy(),
            work.orders if isinstance(work.orders, np.ndarray) else np.stack(list(work.orders)),
            len(global_params["1.bias"]),
            work.num_steps,
            epoch.batch_size,
            epoch.num_batches,
            epoch.num_taken,
            np.float32(self._sgd.scaled(work.learning_rate_factor).learning_rate),
            np.float32(work.mu),
            np.float32(self._sgd.weight_decay),
        )
        params = unpadded(weight, len(global_params["1.bias"]))
        loss = float(loss_sum / max(num_seen, 1))  # a NumPy scalar with NUMBA_DISABLE_JIT=1
        return LocalSolution(params, loss, num_steps, drift=float(drift))


@compiled
def descend(
    weight: Floats,
    global_weight: Floats,
    correction: Floats,
    features: Floats,
    labels: Integers,
    orders: Integers,
    num_classes: int,
    num_steps: int,
    batch_size: int,
    num_batches: int,
    num_taken: int,
    learning_rate: np.float32,
    mu: np.float32,
    weight_decay: np.float32,
) -> tuple[float, int, int, float]:
    """Take the steps w <- w - lr * (grad F_B(w) + mu * (w - w^t) + weight_decay * w) in place.

    Args:
        weight: w where it starts, as `padded` makes it.
        global_weight: w^t in the same form, never modified.
        correction: Added to every gradient, in the form of weight; shape (0, 0) for none.
        features: Shape (n_k, num_features).
        labels: Shape (n_k,).
        orders: Each epoch's order of the examples, shape (num_epochs, n_k).
        num_classes: Number of columns of weight that are classes.
        num_steps: Steps after which to stop.
        batch_size: B, the size of all batches of an epoch but the last.
        num_batches: Batches of an epoch.
        num_taken: Examples in these batches together.
        learning_rate: lr.
        mu: Weight of the proximal term.
        weight_decay: Weight of (1 / 2) * ||w||^2.

    Returns:
        The sum of the examples' losses as they were processed, the number of examples, the steps done, ||w - w^t||.
    """
    gradient = np.empty_like(weight)
    last = num_taken - (num_batches - 1) * batch_size  # examples in the last batch
    largest = max(last, batch_size) if num_batches > 1 else last
    num_rows = -(-largest // EXAMPLES_PER_TILE) * EXAMPLES_PER_TILE
    residual = np.empty((num_rows, weight.shape[1]), np.float32)
    batch = np.empty(num_rows, np.int64)
    onehot = unit_vectors(num_classes, weight.shape[1])
    loss_sum, num_seen, step = 0.0, 0, 0
    for epoch in range(len(orders)):
        for number in range(num_batches):
            if step == num_steps:
                return loss_sum, num_seen, step, _distance(weight, global_weight)
            start, size = number * batch_size, last if number == num_batches - 1 else batch_size
            batch[:size] = orders[epoch, start : start + size]
            batch[size:] = orders[epoch, start]  # pads to a multiple of five; the residuals are set to 0 below
            full = -(-size // EXAMPLES_PER_TILE) * EXAMPLES_PER_TILE
            logits(weight, features, batch[:full], residual)
            loss_sum += softmax_residual(residual, labels, batch[:size], onehot, ONE / np.float32(size))
            residual[size:full] = ZERO
            batch_gradient(features, batch[:full], residual, gradient)
            if len(correction):
                gradient += correction
            _step(weight, global_weight, gradient, learning_rate, mu, weight_decay)
            num_seen += size
            step += 1
    return loss_sum, num_seen, step, _distance(weight, global_weight)


@compiled
def _step(
    weight: Floats,
    global_weight: Floats,
    gradient: Floats,
    learning_rate: np.float32,
    mu: np.float32,
    weight_decay: np.float32,
) -> None:
    """Take one step in place, 16 weights at a time."""
    for row in range(len(weight)):
        for column in range(0, weight.shape[1], NUM_LANES):
            w = load(weight, row, column)
            pull = mu * (w - load(global_weight, row, column))
            slope = load(gradient, row, column) + pull + weight_decay * w
            store(weight, row, column, w - learning_rate * slope)


@partial(compiled, fastmath=("contract", "reassoc"))  # float64: the order of the sum does not matter
def _distance(weight: Floats, global_weight: Floats) -> float:
    """Return ||w - w^t||; outside compiled code this would take a twentieth of a short training."""
    w, w_t, square = weight.reshape(-1), global_weight.reshape(-1), 0.0
    for at in range(len(w)):
        moved = np.float64(w[at] - w_t[at])
        square += moved * moved
    return math.sqrt(square)
