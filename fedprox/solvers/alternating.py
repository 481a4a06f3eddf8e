"""Local training that changes the head of a model first and its body after that (FedRep, Collins et al. 2021)."""

import copy
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
from torch import nn

from fedprox.plan.epoch_batches import EpochBatches
from fedprox.solvers.problem import LocalProblem, LocalSolution, SgdSettings, Solver


class AlternatingSolver:
    """Trains the head with the body fixed, then the body with the head fixed; each phase is a solver of its own.

    The last `body_epochs` of a client's epochs are the body's, those before are the head's, as in the authors' program.
    A client that does no more epochs than that trains only the body.
    """

    def __init__(
        self,
        choose: Callable[[nn.Module], Solver],
        model: nn.Module,
        head: Collection[str],
        sgd: SgdSettings,
        body_epochs: int,
    ) -> None:
        """Make the two solvers.

        Args:
            choose: Returns a solver that trains all of a model's parameters but the frozen ones.
            model: The architecture.
            head: Names of the head's parameters.
            sgd: Settings of the local solver.
            body_epochs: Epochs of the body, >= 1.
        """
        own = {name for name, _ in model.named_parameters()}
        self._head, self._body = (choose(_frozen(model, fixed)) for fixed in (own - {*head}, own & {*head}))
        self._sgd, self._body_epochs = sgd, body_epochs
        self.is_concurrent = self._head.is_concurrent and self._body.is_concurrent
        self.takes_images = self._head.takes_images

    def solve(self, problem: LocalProblem) -> LocalSolution:
        """Return the client's solution; see `fedprox.solvers.problem.Solver`."""
        work, epoch = problem.work, self._sgd.epoch(problem.num_examples)
        orders = np.stack(list(work.orders))
        split = max(0, -(-work.num_steps // epoch.num_batches) - self._body_epochs)
        num_steps = split * epoch.num_batches
        parts = [
            replace(
                work,
                orders=orders[part],
                num_steps=steps,
                shifts=None if work.shifts is None else work.shifts[part],
                epoch_factors=work.epoch_factors[part],
            )
            for part, steps in ((slice(split), num_steps), (slice(split, None), work.num_steps - num_steps))
        ]
        head = self._head.solve(replace(problem, work=parts[0])) if split else None
        start = head.params if head else problem.start
        body = self._body.solve(replace(problem, work=parts[1], start=start))
        if head is None:
            return body
        seen = split * epoch.num_taken, _num_seen(epoch, body.num_steps)
        loss = (head.train_loss * seen[0] + body.train_loss * seen[1]) / sum(seen)
        return LocalSolution(body.params, loss, head.num_steps + body.num_steps)


def _num_seen(epoch: EpochBatches, num_steps: int) -> int:
    """Return how many examples some steps process."""
    epochs, steps = divmod(num_steps, epoch.num_batches)
    return epochs * epoch.num_taken + steps * epoch.batch_size


def _frozen(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Return a copy of a model in which some parameters are fixed."""
    copied = copy.deepcopy(model)
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in names)
    return copied
