"""FedNova (Wang et al. 2020): averages of updates per step, so that clients with more steps do not count more."""

from collections.abc import Sequence

import numpy as np
from flwr.app import Message

from fedprox.solvers.effective_steps import effective_steps
from fedprox.strategies.averaging import weights_of
from fedprox.strategies.server_step import ServerStep, Vector
from fedprox.strategies.updates import metrics_of


class FedNova(ServerStep):
    """w^{t+1} = w^t + tau_eff * sum p_k (w_k - w^t) / tau_k, with tau_eff = sum p_k tau_k and p_k = n_k / sum n_k.

    tau_k = ||a_k||_1 is the client's number of steps, or what momentum and mu make of it (`effective_steps`). FedAvg
    moves towards the minimum of an objective in which client k counts p_k tau_k; here it counts p_k. If all clients do
    the same work, this is FedAvg. (For mu > 0 the authors' program takes the number of steps as tau_eff, with which
    equal work would not give FedAvg's model.)
    """

    def step(self, delta: Vector, replies: Sequence[Message]) -> Vector:
        """Return tau_eff times the mean of the updates per step."""
        assert self.sgd
        sgd = self.sgd.scaled(self.learning_rate_factor)
        weights = np.array(weights_of(replies, self.weighted_by_key if self.weighting == "examples" else None))
        taus = [effective_steps(int(metrics_of(reply)["num-steps"]), sgd, self.mu) for reply in replies]
        shares = weights / weights.sum()
        mean = np.zeros_like(delta)
        for reply, share, tau in zip(replies, shares, taus, strict=True):
            if tau:  # a client without a single step has not moved
                mean += share / tau * self.update_of(reply)
        return float(shares @ taus) * mean
