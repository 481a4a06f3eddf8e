"""Gradients of all clients' F_k at one point for any model, many clients at a time within a memory limit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedprox.data.federated import Integers, Task
from fedprox.evaluation.predictions import is_correct
from fedprox.solvers.generators import seeded
from fedprox.solvers.gradients import differentiable
from fedprox.solvers.losses import PAPER_LOSS, Loss
from fedprox.solvers.memory import activation_bytes
from fedprox.solvers.precision import precision
from fedprox.solvers.problem import Params

_DOUBLES = 2**22  # gradient entries converted to float64 at once: 32 MB


@dataclass(frozen=True)
class Examples:
    """All clients' training examples, one client after another.

    Attributes:
        features: Model input, shape (n, *input_shape).
        labels: Shape (n, ...), by the task.
        sizes: n_k >= 1 of each client, in that order.
    """

    features: Tensor
    labels: Tensor
    sizes: Integers

    @cached_property
    def starts(self) -> Integers:
        """Position of each client's first example."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def shares(self) -> Tensor:
        """p_k = n_k / n in float64, shape (num_clients,)."""
        return torch.from_numpy(self.sizes / self.sizes.sum()).to(self.labels.device)


@dataclass(frozen=True)
class Block:
    """Gradients and losses of some of the clients at one point.

    Attributes:
        grads: grad F_k for each trained parameter, shape (num_clients, *shape); the next block may overwrite them.
        shares: p_k, shape (num_clients,).
        loss: sum_k p_k F_k over these clients.
        num_correct: Number of their examples classified correctly.
    """

    grads: list[Tensor]
    shares: Tensor
    loss: float
    num_correct: int


class GradientSums:
    """Sums over clients in float64, from which all metrics follow; no client's gradient is kept."""

    def __init__(self, vectors: Tensor, squares: Tensor) -> None:
        """Start with some clients' sums, or with zeros.

        Args:
            vectors: Sums of p_k g_k and of g_k, shape (2, num_params).
            squares: Sums of p_k ||g_k||^2 and of ||g_k||^2, shape (2,).
        """
        self.loss, self.num_correct, self.num_clients = 0.0, 0, 0
        self.vectors, self.squares = vectors, squares

    def add(self, block: Block) -> None:
        """Add clients that have not been added yet."""
        self.loss += block.loss
        self.num_correct += block.num_correct
        self.num_clients += len(block.shares)
        weights = torch.stack([block.shares, torch.ones_like(block.shares)])
        widths = [grads[0].numel() for grads in block.grads]
        for grads, vectors in zip(block.grads, torch.split(self.vectors, widths, dim=1), strict=True):
            self._add(grads.flatten(1), weights, vectors)

    def _add(self, grads: Tensor, weights: Tensor, vectors: Tensor) -> None:
        """Add gradients (num_clients, num_params) with both weights (2, num_clients) to vectors (2, num_params)."""
        num_rows = max(1, _DOUBLES // grads.shape[1])
        for rows, weight in zip(torch.split(grads, num_rows), torch.split(weights, num_rows, dim=1), strict=True):
            doubles = rows.double()
            vectors.addmm_(weight, doubles)
            self.squares += weight @ torch.linalg.vector_norm(doubles, dim=1).square()

    def moments(self) -> tuple[float, float, float]:
        """Return gradient_variance, gradient_variance_unweighted and dissimilarity_b.

        With g = sum_k p_k g_k, sum_k p_k ||g_k - g||^2 = sum_k p_k ||g_k||^2 - ||g||^2, and
        (1 / N) sum_k ||g_k - g||^2 = (sum_k ||g_k||^2 - 2 <sum_k g_k, g>) / N + ||g||^2.
        """
        mean, total = self.vectors
        square = mean @ mean
        # Rounding may leave 1e-16 ||g||^2 below zero if clients agree. clamp, unlike max, keeps nan.
        variance = float((self.squares[0] - square).clamp(min=0))
        unweighted = float(((self.squares[1] - 2 * (total @ mean)) / self.num_clients + square).clamp(min=0))
        if square == 0:
            return variance, unweighted, 1.0 if variance == 0 else math.inf
        return variance, unweighted, math.sqrt(1 + variance / float(square))  # B^2 = (variance + ||g||^2) / ||g||^2


class ModuleGradients:
    """Gradients of any model for groups of clients of similar size, padded to the largest, under torch.func.vmap."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        memory_bytes: int,
        loss: Loss = PAPER_LOSS,
        task: Task = "classification",
    ) -> None:
        """Plan groups whose gradients take half the memory, and pieces of groups whose activations take the other half.

        Args:
            model: In evaluation mode; its weights will be those at which gradients are computed.
            examples: On the model's device.
            memory_bytes: Approximate limit for activations and gradients.
            loss: Of which F_k is the mean.
            task: Of the data.
        """
        self._model, self._loss, self._task = model, loss, task
        self._examples = examples
        self._num_params = sum(param.numel() for param in model.parameters() if param.requires_grad)
        self._trained = [name for name, param in model.named_parameters() if param.requires_grad]
        bytes_per_client = 2 * sum(param.nbytes for param in model.parameters() if param.requires_grad)
        bytes_per_example = 2 * activation_bytes(model, examples.features[:1])  # activations and their gradients
        self._max_examples = max(1, memory_bytes // 2 // bytes_per_example)
        one_by_one = _is_faster_one_by_one(model) or not self._takes_several()
        max_clients = 1 if one_by_one else max(1, memory_bytes // 2 // bytes_per_client)
        self._groups = _groups(examples.sizes, min(max_clients, self._max_examples))

    def _takes_several(self) -> bool:
        """Return whether the gradients of two clients can be computed at once, which a branch on values prevents."""
        x, y = (tensor[:1].expand(2, *tensor[:1].shape) for tensor in (self._examples.features, self._examples.labels))
        params = dict(self._model.named_parameters())
        trained = {name: params[name].detach() for name in self._trained}
        weight = torch.ones(2, 1, dtype=next(iter(params.values())).dtype, device=x.device)
        try:
            with seeded(0, x.device):
                self._gradients(trained, x.clone(), y, weight)
        except RuntimeError:
            return False
        return True

    def sums(self, params: Params) -> GradientSums:
        """Return the sums over clients at a state dict."""
        device = self._examples.labels.device
        self._model.load_state_dict(params)
        vectors = torch.zeros(2, self._num_params, dtype=torch.float64, device=device)
        total = GradientSums(vectors, torch.zeros(2, dtype=torch.float64, device=device))
        with precision(device), seeded(0, device):  # for a model that draws random numbers even in evaluation mode
            for block in self.blocks():
                total.add(block)
        return total

    def blocks(self) -> Iterator[Block]:
        """Yield blocks of all clients at the model's current weights, the largest clients first."""
        params = dict(self._model.named_parameters())
        trained = {name: params[name].detach() for name in self._trained}
        for group in self._groups:
            yield self._block(trained, group)

    def _block(self, trained: Params, group: Integers) -> Block:
        """Return the block of some clients, summed over pieces of at most max_examples examples."""
        positions, weights = self._padded(group)
        width = self._max_examples // len(group)
        total = {name: param.new_zeros(len(group), *param.shape) for name, param in trained.items()}
        shares, loss, num_correct = self._examples.shares[group], 0.0, 0
        pieces = zip(torch.split(positions, width, dim=1), torch.split(weights, width, dim=1), strict=True)
        for position, weight in pieces:
            x, y = self._examples.features[position], self._examples.labels[position]
            grads, (losses, correct) = self._gradients(trained, x, y, weight)
            torch._foreach_add_(list(total.values()), [grads[name] for name in total])
            loss += float(losses.double() @ shares)
            num_correct += int(correct.sum())
        return Block(list(total.values()), shares, loss, num_correct)

    def _padded(self, group: Integers) -> tuple[Tensor, Tensor]:
        """Return the positions of some clients' examples and their weights 1 / n_k, shape (num_clients, largest n_k).

        Smaller clients are padded with their own last example at weight 0: an artificial example might have a gradient
        of nan, and 0 * nan is nan.
        """
        sizes, starts = self._examples.sizes[group, None], self._examples.starts[group, None]
        columns = np.arange(sizes.max())
        positions = torch.from_numpy(starts + np.minimum(columns, sizes - 1))
        weights = torch.from_numpy((columns < sizes) / sizes)
        dtype = next(self._model.parameters()).dtype  # not the dtype of the features, which may be tokens
        return positions.to(self._examples.labels.device), weights.to(self._examples.labels.device, dtype)

    def _gradients(self, trained: Params, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Params, tuple[Tensor, Tensor]]:
        """Return the gradients, losses and numbers of correct examples, with the clients as the first dimension."""
        if len(x) > 1:
            one_client = grad(self._weighted_loss, has_aux=True)
            clients = vmap(one_client, in_dims=(None, 0, 0, 0), randomness="different")
            return clients(trained, x, y, weight)  # type: ignore[no-any-return]
        with torch.enable_grad(), differentiable(self._model):
            params = {name: param.detach().requires_grad_() for name, param in trained.items()}
            loss, (_, correct) = self._weighted_loss(params, x[0], y[0], weight[0])
            grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
        return {name: g[None] for name, g in zip(params, grads, strict=True)}, (loss.detach()[None], correct[None])

    def _weighted_loss(
        self, trained: Params, x: Tensor, y: Tensor, weight: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return one client's weighted sum of losses, and as auxiliary values it and the number correct."""
        outputs = functional_call(self._model, trained, (x,))
        loss = (weight * self._loss(outputs, y, "none")).sum()
        return loss, (loss, (is_correct(outputs, y, self._task) & (weight > 0)).sum())


def _is_faster_one_by_one(model: nn.Module) -> bool:
    """Return whether vmap over clients slows a model down.

    Measured on a CPU against one client after another: recurrent layers, which have no batching rule, took 3 times as
    long, convolutions 1.5 to 2 times, dense layers a third.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    slow = (nn.RNNBase, nn.Conv1d, nn.Conv2d, nn.Conv3d) if on_cpu else nn.RNNBase
    return any(isinstance(module, slow) for module in model.modules())


def _groups(sizes: Integers, max_clients: int) -> list[Integers]:
    """Divide clients, the largest first, into groups in which no client is padded to more than twice its size."""
    groups: list[list[int]] = []
    for client in np.argsort(-sizes, kind="stable").tolist():
        if groups and len(groups[-1]) < max_clients and 2 * sizes[client] >= sizes[groups[-1][0]]:
            groups[-1].append(client)
        else:
            groups.append([client])
    return [np.array(group) for group in groups]
