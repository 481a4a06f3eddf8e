"""Full-batch gradients of a client's F_k, gamma (inexactness of its solution) and drift (distance from w^t)."""

import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedprox.solvers.kernels.logistic import full_batch, has_kernels, padded, unit_vectors, unpadded
from fedprox.solvers.losses import PAPER_LOSS, Loss
from fedprox.solvers.precision import precision
from fedprox.solvers.problem import Params

_PIECE = 500  # examples that autograd holds at once


def gamma(
    model: nn.Module,
    params: Params,
    global_params: Params,
    features: Tensor,
    labels: Tensor,
    mu: float,
    loss: Loss = PAPER_LOSS,
) -> float:
    """Return ||grad h_k(w_k; w^t)|| / ||grad F_k(w^t)||, the least gamma for which w_k is gamma-inexact.

    grad h_k(w; w^t) = grad F_k(w) + mu * (w - w^t) (Li et al. 2020, Definition 2), and at w = w^t that is
    grad F_k(w^t). 0 means an exact minimiser, 1 no better than not moving; a diverged client has more than 1. If
    grad F_k(w^t) = 0, only a stationary point of h_k satisfies the definition: 0 if w_k is one, otherwise inf.

    Args:
        model: The architecture; its weights are not used, and it is left in evaluation mode.
        params: w_k, a state dict of the model, never modified.
        global_params: w^t, a state dict of the model, never modified.
        features: All of the client's training examples, shape (n_k, *input_shape), n_k >= 1.
        labels: Their labels, shape (n_k, ...).
        mu: Weight of the proximal term, >= 0.
        loss: Of which F_k is the mean.
    """
    at_solution, at_start = full_gradients(model, (params, global_params), features, labels, loss)
    inexact = [grad + mu * (params[name] - global_params[name]) for name, grad in at_solution.items()]
    residual, start = _norm(inexact), _norm(at_start.values())
    if start == 0:
        return 0.0 if residual == 0 else math.inf
    return residual / start


def drift(params: Params, global_params: Params, names: Collection[str]) -> float:
    """Return ||w_k - w^t||, the distance that a client's model has moved, summed in float64.

    The proximal term is mu / 2 times its square (Li et al. 2020, eq. 2).

    Args:
        params: w_k, a state dict of the model, never modified.
        global_params: w^t, a state dict of the model, never modified.
        names: Names of the parameters, without buffers and with each tied parameter once; at least one.
    """
    moved = torch.cat([(params[name] - global_params[name]).flatten() for name in names])  # one wait for a GPU
    return float(torch.linalg.vector_norm(moved, dtype=torch.float64))


def full_gradients(
    model: nn.Module, points: Sequence[Params], features: Tensor, labels: Tensor, loss: Loss = PAPER_LOSS
) -> list[Params]:
    """Return the gradient of the mean loss over all examples at each of several points.

    It contains neither the proximal term nor weight decay; batch norm and dropout are in evaluation mode.

    Args:
        model: The architecture; left in evaluation mode.
        points: State dicts of the model.
        features: Shape (n, *input_shape), n >= 1.
        labels: Their labels, shape (n, ...).
        loss: Of which the mean is taken.

    Returns:
        For each point, name -> gradient of the trained parameters.
    """
    if has_kernels(model, features.device) and loss == PAPER_LOSS:
        return [_logistic_gradient(point, features, labels) for point in points]
    model.eval()
    with differentiable(model), precision(features.device):
        return [_autograd_gradient(model, point, features, labels, loss) for point in points]


def differentiable(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a model in evaluation mode has gradients, which cuDNN's recurrent layers then lack."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


def _logistic_gradient(point: Params, features: Tensor, labels: Tensor) -> Params:
    """Return the gradient of logistic regression at one point in compiled code."""
    weight, num_classes = padded(point), len(point["1.bias"])
    gradient = np.empty(weight.shape, np.float64)
    onehot = unit_vectors(num_classes, weight.shape[1])
    full_batch(weight, features.flatten(1).numpy(), labels.numpy(), onehot, gradient)
    return unpadded((gradient / len(labels)).astype(np.float32), num_classes)


@torch.enable_grad()
def _autograd_gradient(model: nn.Module, point: Params, features: Tensor, labels: Tensor, loss: Loss) -> Params:
    """Return the gradient of any model at one point, summed over pieces of the examples."""
    # Copies, here and of the examples below, because a forward pass may change its inputs.
    state = {name: point.get(name, buffer).clone() for name, buffer in model.named_buffers()}
    state |= {name: point[name].clone() for name, _ in model.named_parameters()}  # a tied parameter once
    trained = {name: state[name].requires_grad_() for name, param in model.named_parameters() if param.requires_grad}
    total = [torch.zeros_like(param) for param in trained.values()]
    for x, y in zip(torch.split(features, _PIECE), torch.split(labels, _PIECE), strict=True):
        share = loss(functional_call(model, state | trained, (x.clone(),)), y, "sum") / len(labels)
        torch._foreach_add_(total, torch.autograd.grad(share, list(trained.values()), materialize_grads=True))
    return dict(zip(trained, total, strict=True))


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors))
