"""Local problems of personal models, which a client solves beside the shared one on the same batches."""

from dataclasses import dataclass, replace
from typing import Protocol

from fedprox.solvers.problem import LocalProblem, Params


class PersonalMethod(Protocol):
    """A client's own problem, given the shared one and what the client keeps, a state dict of the model."""

    def problem(self, shared: LocalProblem, own: Params) -> LocalProblem:
        """Return the problem whose solution is the client's next personal model."""

    def kept(self, shared: LocalProblem, solution: Params) -> Params:
        """Return what the client keeps after solving it."""

    def model(self, global_params: Params, own: Params) -> Params:
        """Return the client's personal model, given the global one."""


@dataclass(frozen=True)
class Ditto:
    """v_k <- v_k - eta * (grad F_k(v_k; B) + lambda * (v_k - w^t)) from the client's last v_k (Li et al. 2021, alg. 1).

    This is FedProx's local problem with a start of its own. The shared model is not affected.

    Attributes:
        weight: lambda, >= 0; 0 trains v_k alone, on the client's examples only.
    """

    weight: float

    def problem(self, shared: LocalProblem, own: Params) -> LocalProblem:
        """Return the problem from v_k with the anchor w^t, on the batches of the shared one."""
        work = replace(shared.work, mu=self.weight, correction=None)
        return replace(shared, work=work, start=own, asks_gamma=False)

    def kept(self, shared: LocalProblem, solution: Params) -> Params:
        """Return v_k."""
        return solution

    def model(self, global_params: Params, own: Params) -> Params:
        """Return v_k."""
        return own


@dataclass(frozen=True)
class Apfl:
    """v_k <- v_k - eta * grad_v F_k(alpha v_k + (1 - alpha) w^t; B) (Deng et al. 2020, alg. 1), with a fixed alpha.

    The gradient by v_k is alpha times that by the mixture u = alpha v_k + (1 - alpha) w^t, so u moves by alpha^2 eta
    times its gradient: plain SGD on u. The personal model is the mixture with the newest global model.

    Attributes:
        alpha: Share of the client's own model, above 0 and at most 1; 1 trains it alone.
    """

    alpha: float

    def problem(self, shared: LocalProblem, own: Params) -> LocalProblem:
        """Return the problem of u, on the batches of the shared one."""
        # The paper mixes with the client's w, which moves during the round; here w^t stays, so that any solver fits.
        factor = shared.work.learning_rate_factor * self.alpha**2
        work = replace(shared.work, mu=0.0, correction=None, learning_rate_factor=factor)
        start = self.model(shared.global_params, own)
        return replace(shared, work=work, start=start, asks_gamma=False)

    def kept(self, shared: LocalProblem, solution: Params) -> Params:
        """Return v_k = (u - (1 - alpha) w^t) / alpha; integers as they are in u."""
        rest = 1 - self.alpha
        return {
            name: (u - rest * shared.global_params[name]) / self.alpha if u.is_floating_point() else u
            for name, u in solution.items()
        }

    def model(self, global_params: Params, own: Params) -> Params:
        """Return alpha v_k + (1 - alpha) w; integers as they are in v_k."""
        return {
            name: self.alpha * v + (1 - self.alpha) * global_params[name] if v.is_floating_point() else v
            for name, v in own.items()
        }
