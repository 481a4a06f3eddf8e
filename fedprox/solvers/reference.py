"""The definition of the local solver: SGD with the proximal term on any `nn.Module`, by autograd.

Faster solvers must agree with this one.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Params = dict[str, Tensor]


@dataclass(frozen=True)
class SgdSettings:
    """What is the same for every client and every round.

    Attributes:
        learning_rate: Step size of the clients' SGD, > 0.
        batch_size: B, in examples, >= 1.
        momentum: Heavy-ball momentum, 0 .. 1; the velocity starts at zero in every round.
        weight_decay: Weight of (1 / 2) * ||w||^2, >= 0.
    """

    learning_rate: float
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class LocalWork:
    """What one client does in one round.

    Attributes:
        orders: The order of its examples in each epoch; each a permutation of 0 .. n_k - 1, shape (n_k,).
        num_steps: Mini-batch steps after which it stops, also in the middle of an epoch.
        mu: Weight of the proximal term, >= 0.
        seed: For layers that draw random numbers, such as dropout.
    """

    orders: Iterable[NDArray[np.int64]]
    num_steps: int
    mu: float
    seed: int = 0


@dataclass(frozen=True)
class LocalSolution:
    """What one client sends back.

    Attributes:
        params: w_k^{t+1}, a complete state dict.
        train_loss: Mean cross-entropy F over the examples as they were processed, without the proximal term.
        num_steps: Mini-batch steps done.
    """

    params: Params
    train_loss: float
    num_steps: int


class ReferenceSolver:
    """Local SGD on a workspace copy of a model; the model and all arguments stay as they were."""

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
        anchor = [param.detach().clone() for param in params]  # w^t: frozen for every batch of every epoch
        velocity = [torch.zeros_like(param) for param in params] if self._sgd.momentum else None
        loss_sum, num_seen, num_steps = torch.zeros((), device=features.device), 0, 0
        with _seeded(work.seed, features.device):
            for x, y in _batches(features, labels, work, self._sgd.batch_size):
                loss = functional.cross_entropy(self._model(x), y)
                grads = list(torch.autograd.grad(loss, params))
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
