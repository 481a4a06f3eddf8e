"""Full-batch gradients of a client's F_k, and how exactly a local problem was solved: gamma."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedprox.solvers.problem import Params

_PIECE = 500  # examples that autograd holds at once


def gamma(
    model: nn.Module, params: Params, global_params: Params, features: Tensor, labels: Tensor, mu: float
) -> float:
    """Return ||grad h_k(w_k; w^t)|| / ||grad F_k(w^t)||, the least gamma for which w_k is gamma-inexact.

    grad h_k(w; w^t) = grad F_k(w) + mu * (w - w^t) (Li et al. 2020, Definition 2), and at w = w^t that is
    grad F_k(w^t). 0 is an exact minimiser, 1 as good as not moving; a step that diverged has more than 1.
    Where grad F_k(w^t) = 0, no w_k but a stationary point of h_k will do: 0 if w_k is one, otherwise inf.

    Args:
        model: The architecture; its weights are not used, and it is left in evaluation mode.
        params: w_k, a state dict of the model.
        global_params: w^t, likewise; neither is changed.
        features: All of the client's training examples, shape (n_k, *input_shape), n_k >= 1.
        labels: Their classes, shape (n_k,).
        mu: Weight of the proximal term, >= 0.
    """
    at_solution, at_start = full_gradients(model, (params, global_params), features, labels)
    inexact = [grad + mu * (params[name] - global_params[name]) for name, grad in at_solution.items()]
    residual, start = _norm(inexact), _norm(at_start.values())
    if start == 0:
        return 0.0 if residual == 0 else math.inf
    return residual / start


def full_gradients(model: nn.Module, points: Sequence[Params], features: Tensor, labels: Tensor) -> list[Params]:
    """Return the gradient of the mean cross-entropy over all examples at each of several points.

    Neither proximal term nor weight decay; batch norm and dropout are in evaluation mode.

    Args:
        model: The architecture; left in evaluation mode.
        points: State dicts of the model.
        features: Shape (n, *input_shape), n >= 1.
        labels: Classes, shape (n,).

    Returns:
        By name, of the parameters that are trained.
    """
    if is_logistic(model):
        return _logistic_gradients(points, features.flatten(1), labels)
    model.eval()
    with differentiable(model):
        return [_autograd_gradient(model, point, features, labels) for point in points]


def is_logistic(model: nn.Module) -> bool:
    """Return whether a model is softmax(W x + b), all of it trained, as `models.logistic` makes it."""
    if not (type(model) is nn.Sequential and len(model) == 2):
        return False
    flatten, linear = model
    return (
        type(flatten) is nn.Flatten
        and (flatten.start_dim, flatten.end_dim) == (1, -1)
        and type(linear) is nn.Linear
        and linear.bias is not None
        and all(param.requires_grad for param in linear.parameters())
    )


def differentiable(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a model in evaluation mode has gradients: cuDNN's recurrent layers have none there."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


def softmax_residuals(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(z) - onehot(y), which is the cross-entropy's gradient in the logits z, and the cross-entropy.

    By hand because torch's softmax over a short last dimension takes several times as long.

    Args:
        logits: Shape (..., num_classes).
        labels: Classes, shape (...).

    Returns:
        Shapes (..., num_classes) and (...).
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    at_label = labels.unsqueeze(-1)
    residuals = shifted.exp()
    totals = residuals.sum(dim=-1, keepdim=True)
    losses = totals.log() - shifted.gather(-1, at_label)
    residuals /= totals
    residuals.scatter_add_(-1, at_label, residuals.new_full((), -1.0).expand(at_label.shape))
    return residuals, losses.squeeze(-1)


@torch.no_grad()
def _logistic_gradients(points: Sequence[Params], x: Tensor, labels: Tensor) -> list[Params]:
    """Return X^T R / n and the mean of R at each point, R = softmax(W x + b) - onehot(y), in two products for all."""
    weight = torch.cat([point["1.weight"] for point in points])
    bias = torch.cat([point["1.bias"] for point in points])
    logits = torch.addmm(bias, x, weight.T).view(len(x), len(points), -1)
    residuals, _ = softmax_residuals(logits, labels[:, None].expand(-1, len(points)))
    residuals = residuals.view(len(x), -1) / len(x)
    weight_grads = (residuals.T @ x).chunk(len(points))
    bias_grads = residuals.sum(dim=0).chunk(len(points))
    return [{"1.weight": w, "1.bias": b} for w, b in zip(weight_grads, bias_grads, strict=True)]


@torch.enable_grad()
def _autograd_gradient(model: nn.Module, point: Params, features: Tensor, labels: Tensor) -> Params:
    """Return the same for any model at one point, piece by piece."""
    own = [*model.named_parameters(), *model.named_buffers()]  # tied parameters under one of their names
    state = {name: point[name] for name, _ in own if name in point}
    trained = {
        name: state[name].detach().requires_grad_() for name, param in model.named_parameters() if param.requires_grad
    }
    total = [torch.zeros_like(param) for param in trained.values()]
    for x, y in zip(torch.split(features, _PIECE), torch.split(labels, _PIECE), strict=True):
        logits = functional_call(model, state | trained, (x,))
        loss = functional.cross_entropy(logits, y, reduction="sum") / len(labels)
        torch._foreach_add_(total, torch.autograd.grad(loss, list(trained.values()), materialize_grads=True))
    return dict(zip(trained, total, strict=True))


def _norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors))
