"""Losses of the local problem: F_k(w) is the mean over client k's examples of one of these.

Each is a mean over examples, so that F depends neither on the division into batches nor on that among clients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from fedprox.data.federated import Task
from fedprox.errors import UserError


class Loss(Protocol):
    """A loss of a batch; equal ones compare equal."""

    @property
    def task(self) -> Task | None:
        """The task whose labels it takes; None for any."""

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss.

        Args:
            outputs: Of the model, shape (n, num_classes).
            labels: See `fedprox.data.federated.LabelledData`.
            reduction: "mean" or "sum" over the examples, shape (), or "none", shape (n,).
        """


@dataclass(frozen=True)
class CrossEntropy:
    """-log softmax(outputs)[label], the paper's loss.

    Attributes:
        label_smoothing: Share of the label that is spread evenly over all classes (Szegedy et al. 2016), in [0, 1).
        class_weights: Factor > 0 of the loss of each class's examples; None for 1. The mean is over the examples, not
            over their weights as in torch, so that it does not depend on what else is in a batch.

    Examples:
        >>> outputs, labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
        >>> CrossEntropy(class_weights=(1.0, 3.0))(outputs, labels, "none") / torch.log(torch.tensor(2.0))
        tensor([1., 3.])
    """

    label_smoothing: float = 0.0
    class_weights: list[float] | tuple[float, ...] | None = None
    task: ClassVar[Task] = "classification"

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"loss.label_smoothing must be >= 0 and < 1, got {self.label_smoothing}; 0 for none")
        if self.class_weights is not None:
            for weight in self.class_weights:
                _check_positive("loss.class_weights", weight, "give a factor for each class, such as [1, 5]")
            object.__setattr__(self, "class_weights", tuple(map(float, self.class_weights)))

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss; see `Loss`."""
        if self.class_weights is None:
            smoothing = self.label_smoothing
            return functional.cross_entropy(outputs, labels, reduction=reduction, label_smoothing=smoothing)
        losses = functional.cross_entropy(outputs, labels, reduction="none", label_smoothing=self.label_smoothing)
        return _reduced(outputs.new_tensor(self.class_weights)[labels] * losses, reduction)


@dataclass(frozen=True)
class Focal:
    """-(1 - p)^gamma * log p with p = softmax(outputs)[label] (Lin et al. 2017, eq. 4).

    Attributes:
        gamma: How little well classified examples count, >= 0; 0 is cross-entropy.
    """

    gamma: float = 2.0
    task: ClassVar[Task] = "classification"

    def __post_init__(self) -> None:
        """Raise UserError if gamma is out of its range."""
        if not self.gamma >= 0:
            raise UserError(f"loss.gamma must be >= 0, got {self.gamma}; 0 is cross-entropy")

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss; see `Loss`."""
        log_p = -functional.cross_entropy(outputs, labels, reduction="none")
        return _reduced(-((-torch.expm1(log_p)) ** self.gamma) * log_p, reduction)


@dataclass(frozen=True)
class SquaredError:
    """||outputs - labels||^2 / num_outputs."""

    task: ClassVar[Task] = "regression"

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss; see `Loss`."""
        return _reduced((outputs - labels).square().mean(dim=-1), reduction)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """-pos_weight * y * log s(o) - (1 - y) * log(1 - s(o)) with the sigmoid s, averaged over the outputs.

    Attributes:
        pos_weight: Factor of the labels that are 1, > 0.
    """

    pos_weight: float = 1.0
    task: ClassVar[Task] = "multilabel"

    def __post_init__(self) -> None:
        """Raise UserError if the factor is out of its range."""
        _check_positive("loss.pos_weight", self.pos_weight, "1 counts zeros and ones the same")

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss; see `Loss`."""
        losses = functional.binary_cross_entropy_with_logits(
            outputs, labels, reduction="none", pos_weight=outputs.new_tensor(self.pos_weight)
        )
        return _reduced(losses.mean(dim=-1), reduction)


@dataclass(frozen=True)
class OwnLoss:
    """A user's loss: any function of outputs and labels that returns the mean over a batch, such as torch's losses.

    Attributes:
        of_batch: The function, which returns a tensor of shape ().
    """

    of_batch: Callable[[Tensor, Tensor], Tensor]

    @property
    def task(self) -> Task | None:
        """Its attribute `task`; None if it has none."""
        found: Task | None = getattr(self.of_batch, "task", None)
        return found

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss, without reduction that of each example as a batch of its own; see `Loss`."""
        if reduction == "none":
            return vmap(lambda output, label: self.of_batch(output[None], label[None]))(outputs, labels)
        loss = self.of_batch(outputs, labels)
        return loss * len(labels) if reduction == "sum" else loss


PAPER_LOSS = CrossEntropy()


def as_loss(made: Any) -> Loss:
    """Return ours, or a user's function as a loss."""
    return made if isinstance(made, CrossEntropy | Focal | SquaredError | BinaryCrossEntropy) else OwnLoss(made)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _check_positive(name: str, value: Any, remedy: str) -> None:
    if isinstance(value, (bool, str)) or not value > 0:
        raise UserError(f"{name} must be > 0, got {value}; {remedy}")
