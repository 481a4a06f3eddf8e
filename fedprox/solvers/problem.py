"""The local problem of a client, its solution, and the interface of solvers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprox.data.augmentation import Shifts
from fedprox.plan.epoch_batches import KEEP, EpochBatches, epoch_batches
from fedprox.solvers.losses import PAPER_LOSS, Loss

Params = dict[str, Tensor]
KEPT = "kept"  # the momentum buffer from round to round
MakeOptimizer = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]  # of parameters and a learning rate


@dataclass(frozen=True)
class SgdSettings:
    """Settings of the local solver that all clients and rounds share.

    Attributes:
        learning_rate: Step size of the clients' SGD, > 0.
        batch_size: B, in examples, >= 1.
        momentum: Heavy-ball momentum, 0 .. 1.
        weight_decay: Weight of (1 / 2) * ||w||^2, >= 0.
        mixed_precision: Whether a model on a GPU computes in bfloat16 under torch.autocast, and the rest in TF32;
            parameters keep their type.
        last_batch: Treatment of an epoch's last, short batch; see `fedprox.plan.epoch_batches`.
        loss: The loss of which F_k is the mean.
        optimizer: Makes the optimiser of a client in a round, if it is not SGD; it has momentum and weight decay of
            its own. It adds steps to the same gradient as SGD: that of the loss plus mu * (w - w^t).
        max_grad_norm: Largest Euclidean norm of this gradient; a longer one is shortened to it. None for no limit.
        has_epoch_rates: Whether the learning rate changes within a round; see `LocalWork.epoch_factors`.
        momentum_buffer: "reset": the velocity starts at zero in every round; "kept": at the client's last one.
    """

    learning_rate: float
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    mixed_precision: bool = False
    last_batch: str = KEEP
    loss: Loss = PAPER_LOSS
    optimizer: MakeOptimizer | None = None
    max_grad_norm: float | None = None
    has_epoch_rates: bool = False
    momentum_buffer: str = "reset"

    @property
    def is_plain(self) -> bool:
        """Whether a step is one of SGD on the cross-entropy, with any of the settings above."""
        return self.loss == PAPER_LOSS and self.optimizer is None and self.max_grad_norm is None

    def epoch(self, num_examples: int) -> EpochBatches:
        """Return the mini-batches of an epoch for a client with this number of examples.

        Examples:
            >>> SgdSettings(learning_rate=0.1, batch_size=10).epoch(25).slices()
            [slice(0, 10, None), slice(10, 20, None), slice(20, 25, None)]
        """
        return epoch_batches(num_examples, self.batch_size, self.last_batch)

    def scaled(self, factor: float) -> "SgdSettings":
        """Return the settings with the learning rate times a factor."""
        return self if factor == 1 else replace(self, learning_rate=self.learning_rate * factor)


@dataclass(frozen=True)
class LocalWork:
    """The work of one client in one round.

    Attributes:
        orders: Order of the client's examples in each epoch: permutations of 0 .. n_k - 1, shape (n_k,).
        num_steps: Mini-batch steps after which it stops, possibly in the middle of an epoch.
        mu: Weight of the proximal term, >= 0.
        seed: Entropy for layers that draw random numbers, such as dropout.
        correction: Added to every mini-batch gradient, name -> tensor: FedDANE's g_t - grad F_k(w^t), SCAFFOLD's
            c - c_k, FedDyn's -h_k; None for none.
        learning_rate_factor: Factor on the learning rate of the settings, > 0.
        epoch_factors: More factors on it, of the first epoch, the second, and so on; empty for 1 in all. There may be
            more of them than epochs.
        corrects_steps: Whether the correction is added to each step after momentum, w <- w - lr (v + correction),
            instead of to the gradient.
        shifts: Augmentation of the client's images in each epoch, shape (num_epochs, n_k, 3); see
            `PadCropFlip.draw`. None for none.
    """

    orders: Iterable[NDArray[np.int64]]
    num_steps: int
    mu: float
    seed: int | tuple[int, ...] = 0
    correction: Params | None = None
    learning_rate_factor: float = 1.0
    shifts: Shifts | None = None
    epoch_factors: tuple[float, ...] = ()
    corrects_steps: bool = False

    def factor(self, step: int, num_batches: int) -> float:
        """Return the factor on the learning rate in a step, counted from 0, of epochs of so many batches."""
        return self.learning_rate_factor * (self.epoch_factors[step // num_batches] if self.epoch_factors else 1.0)


@dataclass(frozen=True)
class LocalProblem:
    """One client's problem in one round: min h_k(w; w^t) = F_k(w) + (mu / 2) * ||w - w^t||^2, starting at w^t or v_k.

    Attributes:
        global_params: w^t, a state dict of the model.
        features: The client's examples as model input, shape (n_k, *input_shape), n_k >= 1; or stored images if the
            solver takes those.
        labels: Their labels, shape (n_k, ...); see `fedprox.data.federated.LabelledData`.
        work: Number of steps, order of the examples, and mu.
        asks_gamma: Whether to measure how inexactly the problem is solved.
        variate_option: How the client makes its next control variate (SCAFFOLD), see `fedprox.solvers.variates`; 0 for
            none.
        positions: Positions of the client's examples, shape (n_k,), if features and labels hold those of many clients,
            which stay on a GPU from round to round; None if they hold only this client's.
        start: v_k, a state dict of the model at which SGD starts, such as a personal model; None for w^t.
        velocity: The velocity with which SGD with momentum starts, for each trained parameter; None for zero.
    """

    global_params: Params
    features: Tensor
    labels: Tensor
    work: LocalWork
    asks_gamma: bool = False
    positions: NDArray[np.int64] | None = None
    start: Params | None = None
    variate_option: int = 0
    velocity: Params | None = None

    @property
    def num_examples(self) -> int:
        """n_k."""
        return len(self.labels) if self.positions is None else len(self.positions)

    def alone(self) -> "LocalProblem":
        """Return the same problem with features and labels of this client only."""
        if self.positions is None:
            return self
        own = torch.from_numpy(self.positions).to(self.labels.device)
        features, labels = self.features.index_select(0, own), self.labels.index_select(0, own)
        return replace(self, features=features, labels=labels, positions=None)


@dataclass(frozen=True)
class LocalSolution:
    """The result of one client's work.

    Attributes:
        params: w_k^{t+1}, a complete state dict.
        train_loss: Mean loss F over the examples as they were processed, without the proximal term.
        num_steps: Mini-batch steps done.
        gamma: How inexactly the problem is solved (Li et al. 2020, Definition 2); None unless asked for.
        drift: ||w_k^{t+1} - w^t|| over the trained parameters, wherever SGD started; None until it is measured.
        personal: What the client keeps for its personal model, if it trains one beside w_k.
        variate: The client's next control variate (SCAFFOLD), which it sends beside w_k; None for none.
        velocity: The velocity after the last step, for each trained parameter; None unless it is kept.
    """

    params: Params
    train_loss: float
    num_steps: int
    gamma: float | None = None
    drift: float | None = None
    personal: Params | None = None
    variate: Params | None = None
    velocity: Params | None = None


# What a problem or its settings may ask for besides plain SGD steps from w^t
OPTIONAL = (
    *("loss", "momentum", "optimizer", "max_grad_norm", "correction", "start", "shifts"),
    *("epoch_factors", "velocity", "corrects_steps"),
)


class Solver(Protocol):
    """Approximately minimises h_k(w; w^t) = F_k(w) + (mu / 2) * ||w - w^t||^2, from the problem's start.

    Attributes:
        is_concurrent: Whether `solve` may be called from several threads at once, and is faster that way.
        takes_images: Whether it takes stored images, uint8, and turns them into model input itself.

    A user's class may also have `supports`: those of OPTIONAL that it follows, the names of fields above. Runs that ask
    for others are refused.
    """

    is_concurrent: bool
    takes_images: bool

    def solve(self, problem: LocalProblem) -> LocalSolution:
        """Return the client's solution; the problem is not changed."""


@runtime_checkable
class BatchedSolver(Protocol):
    """A solver that also has a method for many problems at once, which is faster than one after another."""

    def solve_all(self, problems: Sequence[LocalProblem]) -> list[LocalSolution]:
        """Return the solutions in the order of the problems, which are not changed."""
