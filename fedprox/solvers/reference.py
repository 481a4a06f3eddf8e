"""The definition of the local solver: SGD with the proximal term on any `nn.Module`, by autograd.

Faster solvers must agree with this one.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprox.solvers.problem import LocalSolution, LocalWork, Params, SgdSettings


class ReferenceSolver:
    """Local SGD on a workspace copy of a model; the model and all arguments stay as they were."""

    is_concurrent = False  # one workspace

    def __init__(self, model: nn.Module, sgd: SgdSettings, device: str = "cpu") -> None:
        """Copy the architecture to the device; its weights come with each call of `solve`."""
        self._model = copy.deepcopy(model).to(device)
        self._sgd = sgd

    def solve(self, global_params: Params, features: Tensor, labels: Tensor, work: LocalWork) -> LocalSolution:
        """Approximately minimise h_k(w; w^t) = F_k(w) + (mu / 2) * ||w - w^t||^2, starting at w^t.

        Args:
            global_params: w^t, a state dict of the model.
            features: The client's examples, shape (n_k, *input_shape).
            labels: Their classes, shape (n_k,).
            work: How much, in which order, and mu.
        """
        self._model.load_state_dict(global_params)
        self._model.train()
        params = list(self._model.parameters())
        correction = None
        if work.correction is not None:
            correction = [work.correction[name] for name, _ in self._model.named_parameters()]
        anchor = [param.detach().clone() for param in params]  # w^t: frozen for every batch of every epoch
        velocity = [torch.zeros_like(param) for param in params] if self._sgd.momentum else None
        loss_sum, num_seen, num_steps = torch.zeros((), device=features.device), 0, 0
        with _seeded(work.seed, features.device):
            for x, y in _batches(features, labels, work, self._sgd.batch_size):
                loss = functional.cross_entropy(self._model(x), y)
                grads = list(torch.autograd.grad(loss, params))
                if correction is not None:
                    torch._foreach_add_(grads, correction)
                step(params, grads, anchor, velocity, work.mu, self._sgd)
                loss_sum += loss.detach() * len(y)
                num_seen += len(y)
                num_steps += 1
        solution = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        return LocalSolution(solution, float(loss_sum) / max(num_seen, 1), num_steps)


@torch.no_grad()
def step(
    params: Sequence[Tensor],
    grads: list[Tensor],
    anchor: Sequence[Tensor],
    velocity: list[Tensor] | None,
    mu: float,
    sgd: SgdSettings,
) -> None:
    """Take one step in place: w <- w - lr * (grad F_B(w) + mu * (w - w^t) + weight_decay * w).

    Args:
        params: w, changed.
        grads: The gradient of the mini-batch's mean loss at w, same shapes; used as scratch space.
        anchor: w^t, same shapes, never changed.
        velocity: v, changed: v <- momentum * v + the bracket above, and w <- w - lr * v; None without momentum.
        mu: Weight of the proximal term.
        sgd: Learning rate, momentum and weight decay.
    """
    if mu:
        torch._foreach_add_(grads, torch._foreach_sub(list(params), list(anchor)), alpha=mu)
    if sgd.weight_decay:
        torch._foreach_add_(grads, list(params), alpha=sgd.weight_decay)
    if velocity is not None:
        torch._foreach_mul_(velocity, sgd.momentum)
        torch._foreach_add_(velocity, grads)
        grads = velocity
    torch._foreach_add_(list(params), grads, alpha=-sgd.learning_rate)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generator that layers such as dropout use on a device, and leave it as it was."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        (torch.cuda if on_cuda else torch.default_generator).manual_seed(seed)
        yield


def _batches(features: Tensor, labels: Tensor, work: LocalWork, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the mini-batches: consecutive pieces of each epoch's order, the last, short one kept."""
    remaining = work.num_steps
    for order in work.orders:
        positions = torch.from_numpy(order).to(features.device)
        x, y = features[positions], labels[positions]
        pieces = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        for piece in pieces:
            if remaining == 0:
                return
            remaining -= 1
            yield piece
