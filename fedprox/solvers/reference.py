"""The definition of the local solver: SGD with the proximal term on any `nn.Module`, by autograd.

Faster solvers must agree with this one.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprox.solvers.batches import Batches, DeviceImageBatches, ImageBatches, ImageInput, TensorBatches
from fedprox.solvers.dropout import SeededDropout, dropout_keys, first_key, seed_dropout
from fedprox.solvers.generators import seeded
from fedprox.solvers.precision import precision
from fedprox.solvers.problem import KEPT, LocalProblem, LocalSolution, LocalWork, SgdSettings
from fedprox.solvers.workspace import TrainingWorkspace, draws_random_numbers, tuned_for_cpu


class ReferenceSolver:
    """Local SGD on a copy of a model; neither the model nor any argument is modified."""

    def __init__(
        self,
        model: nn.Module,
        sgd: SgdSettings,
        device: str = "cpu",
        examples: Tensor | None = None,
        image_input: ImageInput | None = None,
    ) -> None:
        """Copy the architecture to the device; its weights come with each call of `solve`.

        Args:
            model: The architecture.
            sgd: Settings of the local solver.
            device: Device on which to compute.
            examples: Two or more model inputs, shape (n, *input_shape), for a trial: on the CPU, a model that draws no
                random numbers may run in several threads, and gets its fastest layout. Without them the model stays
                as it is and runs in one thread at a time.
            image_input: How uint8 features become model input; None if there are none.
        """
        self.takes_images = image_input is not None
        self._image_input = image_input
        self.is_concurrent = False
        seeded_model = copy.deepcopy(model)
        self._dropouts = seed_dropout(seeded_model)
        fastest = seeded_model
        if examples is not None and device == "cpu":
            self.is_concurrent = not draws_random_numbers(seeded_model, examples.contiguous())
            fastest = tuned_for_cpu(seeded_model, examples)
        self._takes_channels_last = fastest is not seeded_model
        self._workspace = TrainingWorkspace(fastest, device)
        self._sgd = sgd

    def solve(self, problem: LocalProblem) -> LocalSolution:
        """Approximately minimise h_k(w; w^t) = F_k(w) + (mu / 2) * ||w - w^t||^2, from the problem's start."""
        problem = problem.alone()
        features, work = problem.features, problem.work
        model, w, grads = self._workspace.model, self._workspace.vectors, self._workspace.gradients
        self._workspace.load(problem.global_params)
        model.train()
        correction = None if work.correction is None else self._workspace.laid_out(work.correction)
        anchor = [vector.clone() for vector in w]  # w^t, which stays the same for all batches of all epochs
        if problem.start is not None:
            self._workspace.load(problem.start)
        sgd = self._sgd.scaled(work.learning_rate_factor)
        num_batches = sgd.epoch(problem.num_examples).num_batches
        velocity = list(map(torch.zeros_like, w)) if sgd.momentum else None
        if problem.velocity is not None:
            velocity = self._workspace.laid_out(problem.velocity)
        optimizer = sgd.optimizer(self._workspace.trained, sgd.learning_rate) if sgd.optimizer else None
        dropouts = [cast(SeededDropout, model.get_submodule(name)) for name in self._dropouts]
        keys = first_key(work.seed) if dropouts else np.uint32(0)
        losses: list[Tensor] = []
        sizes: list[int] = []
        # A concurrent solver's model draws nothing, and its threads share the generators.
        drawing = nullcontext() if self.is_concurrent else seeded(work.seed, features.device)
        with precision(features.device, reduced=sgd.mixed_precision), drawing:
            for x, y in _batches(self._batches(features), problem.labels, work, sgd):
                if work.epoch_factors:
                    sgd = self._sgd.scaled(work.factor(len(losses), num_batches))
                for gradient in grads:
                    gradient.zero_()
                if dropouts:
                    begin_step(dropouts, dropout_keys(keys, np.array([len(losses)]), len(dropouts))[0])
                with torch.autocast(x.device.type, torch.bfloat16) if sgd.mixed_precision else nullcontext():
                    loss = sgd.loss(model(x if self._takes_channels_last else x.contiguous()), y)
                loss.backward()  # type: ignore[no-untyped-call]
                if correction is not None and not work.corrects_steps:
                    torch._foreach_add_(grads, correction)
                if optimizer is None:
                    step(w, grads, anchor, velocity, work.mu, sgd)
                    if correction is not None and work.corrects_steps:
                        move(w, correction, sgd)
                else:
                    add_proximal(w, grads, anchor, work.mu)
                    if sgd.max_grad_norm is not None:
                        clip(grads, sgd.max_grad_norm)
                    for group in optimizer.param_groups if work.epoch_factors else ():
                        group["lr"] = sgd.learning_rate
                    optimizer.step()
                losses.append(loss.detach())
                sizes.append(len(y))
        solution = {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in model.state_dict().items()
        }
        kept = self._workspace.named(velocity) if velocity and sgd.momentum_buffer == KEPT else None
        return LocalSolution(solution, _weighted_mean(losses, sizes), len(losses), velocity=kept)

    def _batches(self, features: Tensor) -> Batches:
        """Return the source of a client's mini-batches."""
        largest = self._sgd.epoch(len(features)).largest
        if self._image_input and features.dtype == torch.uint8:
            batches = ImageBatches if features.device.type == "cpu" else DeviceImageBatches
            return batches(features, self._image_input, largest)
        return TensorBatches(features, largest)


def begin_step(dropouts: Sequence[SeededDropout], keys: NDArray[np.int32]) -> None:
    """Set the keys of dropout layers, shape (layers,), before a step."""
    for layer, key in zip(dropouts, keys.tolist(), strict=True):
        layer.begin_step()
        layer.key.fill_(key)


@torch.no_grad()
def step(
    params: Sequence[Tensor],
    grads: list[Tensor],
    anchor: Sequence[Tensor],
    velocity: list[Tensor] | None,
    mu: float,
    sgd: SgdSettings,
) -> None:
    """Take one step of SGD in place: w <- w - lr * (grad F_B(w) + mu * (w - w^t) + weight_decay * w).

    Args:
        params: w, modified.
        grads: Gradient of the mini-batch's mean loss at w, same shapes; overwritten.
        anchor: w^t, same shapes, never modified.
        velocity: v, modified: v <- momentum * v + the bracket above, and w <- w - lr * v; None without momentum.
        mu: Weight of the proximal term.
        sgd: Learning rate, momentum and weight decay.

    Examples:
        1 - 0.1 * (2 + 0.5 * (1 - 0)) = 0.75.

        >>> w, start = [torch.tensor([1.0])], [torch.tensor([0.0])]
        >>> step(w, [torch.tensor([2.0])], start, None, mu=0.5, sgd=SgdSettings(learning_rate=0.1, batch_size=1))
        >>> w
        [tensor([0.7500])]
    """
    add_proximal(params, grads, anchor, mu)
    if sgd.max_grad_norm is not None:
        clip(grads, sgd.max_grad_norm)
    descend(params, grads, velocity, sgd)


@torch.no_grad()
def descend(params: Sequence[Tensor], grads: list[Tensor], velocity: list[Tensor] | None, sgd: SgdSettings) -> None:
    """Take the part of `step` that follows the proximal term: weight decay, momentum and the move itself."""
    if sgd.weight_decay:
        torch._foreach_add_(grads, list(params), alpha=sgd.weight_decay)
    if velocity is not None:
        torch._foreach_mul_(velocity, sgd.momentum)
        torch._foreach_add_(velocity, grads)
        grads = velocity
    move(params, grads, sgd)


@torch.no_grad()
def move(params: Sequence[Tensor], direction: list[Tensor], sgd: SgdSettings) -> None:
    """Subtract the learning rate times a direction in place."""
    torch._foreach_add_(list(params), direction, alpha=-sgd.learning_rate)


@torch.no_grad()
def add_proximal(params: Sequence[Tensor], grads: list[Tensor], anchor: Sequence[Tensor], mu: float) -> None:
    """Add mu * (w - w^t), the gradient of the proximal term, to gradients in place."""
    if mu:
        torch._foreach_add_(grads, torch._foreach_sub(list(params), list(anchor)), alpha=mu)


@torch.no_grad()
def clip(grads: list[Tensor], max_norm: float) -> None:
    """Shorten the gradients of one model in place, so that their common Euclidean norm is at most max_norm.

    Examples:
        >>> grads = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> clip(grads, max_norm=1.0)
        >>> torch.cat(grads)
        tensor([0.6000, 0.8000])
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
    torch._foreach_mul_(grads, shortening(norm, max_norm))


def shortening(norms: Tensor, max_norm: float) -> Tensor:
    """Return the factors by which gradients of these norms are clipped, as in torch.nn.utils.clip_grad_norm_."""
    return torch.clamp(max_norm / (norms + 1e-6), max=1.0)


def _weighted_mean(losses: list[Tensor], sizes: list[int]) -> float:
    """Return the mean loss over examples from the batches' means; 0 for none. Only this waits for the device."""
    if not losses:
        return 0.0
    all_losses = torch.stack(losses).double()
    return float(all_losses @ all_losses.new_tensor(sizes)) / sum(sizes)


def _batches(examples: Batches, labels: Tensor, work: LocalWork, sgd: SgdSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the mini-batches: consecutive pieces of each epoch's order, num_steps in all."""
    remaining = work.num_steps
    for epoch, order in enumerate(work.orders):
        ordered = labels[torch.from_numpy(order).to(labels.device)]
        for place in sgd.epoch(len(order)).slices()[:remaining]:
            piece = order[place]
            shifts = None if work.shifts is None else work.shifts[epoch, piece]
            yield examples.take(piece, shifts), ordered[place]
            remaining -= 1
