"""A solver of your own, compared with the reference on one client's problem: SGD with gradients by torch.func.

solver._target_=own_solver.FunctionalSolver uses it in a run.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from fedprox.models.cnn import cnn
from fedprox.solvers.problem import LocalProblem, LocalSolution, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver


class FunctionalSolver:
    """Minimises h_k(w; w^t) = F_k(w) + (mu / 2) * ||w - w^t||^2 from w^t; for models without buffers."""

    is_concurrent = False  # one client at a time
    takes_images = False  # features are model input already
    supports = ("loss",)  # but no momentum, personal models and so on

    def __init__(self, model: nn.Module, sgd: SgdSettings) -> None:
        """Keep the architecture; its weights come with each problem."""
        self.model, self.sgd = model, sgd

    def solve(self, problem: LocalProblem) -> LocalSolution:
        """Return the solution after `work.num_steps` steps; the problem is not changed."""
        w, work, losses, sizes = dict(problem.global_params), problem.work, [], []
        learning_rate = self.sgd.learning_rate * work.learning_rate_factor
        batches = (batch for order in work.orders for batch in torch.tensor(order).split(self.sgd.batch_size))
        for _, batch in zip(range(work.num_steps), batches, strict=False):
            gradient, loss = grad_and_value(self._loss)(w, problem.features[batch], problem.labels[batch])
            for name, anchor in problem.global_params.items():
                total = gradient[name] + work.mu * (w[name] - anchor) + self.sgd.weight_decay * w[name]
                w[name] = w[name] - learning_rate * total
            losses.append(float(loss))
            sizes.append(len(batch))
        return LocalSolution(w, float(np.average(losses, weights=sizes)), len(losses))

    def _loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return self.sgd.loss(functional_call(self.model, params, x), y)


def largest_difference(mu: float) -> float:
    """Return the largest difference between the two solvers' weights after 7 steps on 25 random images."""
    torch.manual_seed(0)
    model, sgd = cnn((1, 28, 28), 10), SgdSettings(learning_rate=0.05, batch_size=10, weight_decay=0.001)
    params = {name: value.clone() for name, value in model.state_dict().items()}
    features, labels = torch.randn(25, 1, 28, 28), torch.randint(10, (25,))
    orders = [np.random.default_rng(epoch).permutation(25) for epoch in range(3)]  # batches of 10, 10 and 5
    problem = LocalProblem(params, features, labels, LocalWork(orders, num_steps=7, mu=mu))
    own, reference = (solver.solve(problem) for solver in (FunctionalSolver(model, sgd), ReferenceSolver(model, sgd)))
    return max(float((own.params[name] - reference.params[name]).abs().max()) for name in params)


if __name__ == "__main__":
    for mu in (0.0, 1.0):
        print(f"mu = {mu:g}: the weights differ by at most {largest_difference(mu):.1e}")
