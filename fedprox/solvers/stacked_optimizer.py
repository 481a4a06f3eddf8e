"""torch's optimisers on the stacked models of a cohort, of which fewer and fewer are still at work."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedprox.solvers.problem import MakeOptimizer


class StackedOptimizer:
    """One optimiser for all clients of a stack, which must treat every number by itself, as Adam does.

    All clients have done the same number of steps, so what the optimiser counts is common to them, too.
    """

    def __init__(self, make: MakeOptimizer, stacks: Sequence[Tensor], learning_rate: float) -> None:
        """Begin before the first step.

        Args:
            make: Makes the optimiser.
            stacks: The trained parameters, shape (clients, *shape) each, which steps change.
            learning_rate: Of this round.
        """
        self._make, self._stacks, self._learning_rate = make, stacks, learning_rate
        self._begin(len(stacks[0]))

    def _begin(self, active: int) -> None:
        self._own = [stack[:active].detach() for stack in self._stacks]  # views
        self._optimizer = self._make(self._own, self._learning_rate)

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], active: int) -> None:
        """Take one step of the first clients of the stack.

        Args:
            grads: Shape (active, *shape) each.
            active: Number of clients at work, which never grows.
        """
        if active < len(self._own[0]):
            before = [(each, self._optimizer.state[each]) for each in self._own]
            self._begin(active)
            for each, (old, state) in zip(self._own, before, strict=True):
                kept = {key: _first(value, active, old.shape) for key, value in state.items()}
                self._optimizer.state[each].update(kept)
        for each, grad in zip(self._own, grads, strict=True):
            each.grad = grad
        self._optimizer.step()


def _first(value: object, active: int, shape: torch.Size) -> object:
    return value[:active] if isinstance(value, Tensor) and value.shape == shape else value
