"""A control variate by option II is the mean of the gradients of the client's steps, by autograd one after another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedprox.solvers.problem import LocalProblem, LocalWork, SgdSettings
from fedprox.solvers.reference import ReferenceSolver, step
from fedprox.solvers.variates import mean_gradient
from tests.solvers.test_personal import W_T, gradient, weights

NAMES = ("weight", "bias")


def problem(mu: float, num_steps: int = 4) -> LocalProblem:
    rng = np.random.default_rng(0)
    orders = np.array([rng.permutation(8) for _ in range(2)])
    work = LocalWork(orders, num_steps, mu, correction=weights(3), learning_rate_factor=0.5)
    return LocalProblem(W_T, torch.from_numpy(rng.normal(size=(8, 3))), torch.arange(8) % 4, work)


def gradients_of_steps(given: LocalProblem, sgd: SgdSettings) -> list[dict]:
    """Return grad F_k(y; B) + weight decay * y of each step along the path, without correction and proximal term."""
    y, velocity, scaled = [W_T[name].clone() for name in NAMES], None, sgd.scaled(0.5)
    velocity = [torch.zeros_like(each) for each in y] if sgd.momentum else None
    found = []
    for number in range(given.work.num_steps):
        at = dict(zip(NAMES, y, strict=True))
        slope = gradient(at, given, number)
        found.append({name: slope[name] + sgd.weight_decay * at[name] for name in NAMES})
        grads = [slope[name] + given.work.correction[name] for name in NAMES]
        step(y, grads, [W_T[name] for name in NAMES], velocity, given.work.mu, scaled)
    return found


@pytest.mark.parametrize(
    ("mu", "momentum", "weight_decay"), [(0.0, 0.0, 0.0), (0.0, 0.0, 0.3), (2.0, 0.0, 0.0), (2.0, 0.5, 0.3)]
)
def test_it_is_the_weighted_mean_of_the_gradients_of_the_steps(mu, momentum, weight_decay):
    sgd = SgdSettings(0.2, 4, momentum, weight_decay)
    given = problem(mu)
    solution = ReferenceSolver(nn.Linear(3, 4).double(), sgd).solve(given)
    found = mean_gradient(given, solution, sgd)
    # Weight j is how far a gradient of 1 in step j alone moves y in the end; eta = 0.2 * 0.5.
    moved = []
    for place in range(4):
        y = velocity = 0.0
        for number in range(4):
            velocity = momentum * velocity + (number == place) - mu * 0.1 * y
            y += velocity
        moved.append(y)
    slopes = gradients_of_steps(given, sgd)
    for name in NAMES:
        mean = sum(weight * slope[name] for weight, slope in zip(moved, slopes, strict=True)) / sum(moved)
        torch.testing.assert_close(found[name], mean, rtol=1e-9, atol=1e-12)


def test_plain_sgd_weighs_all_steps_alike_and_without_a_step_there_is_none():
    sgd = SgdSettings(0.2, 4)
    solver = ReferenceSolver(nn.Linear(3, 4).double(), sgd)
    given = problem(0.0)
    slopes = gradients_of_steps(given, sgd)
    found = mean_gradient(given, solver.solve(given), sgd)
    torch.testing.assert_close(found["bias"], sum(slope["bias"] for slope in slopes) / 4, rtol=1e-9, atol=1e-12)
    idle = problem(0.0, num_steps=0)
    assert mean_gradient(idle, solver.solve(idle), sgd) is None


def test_corrected_steps_make_it_the_mean_of_the_steps_after_momentum_at_the_last_learning_rate():
    # Batches of 4 of 8 examples: two steps an epoch, at 0.1 and 0.05, and w^t - w = sum of eta_j (v_j + c - c_k).
    sgd = SgdSettings(0.2, 4, 0.5)
    given = problem(0.0)
    given = replace(given, work=replace(given.work, corrects_steps=True, epoch_factors=(1.0, 0.5)))
    solution = ReferenceSolver(nn.Linear(3, 4).double(), sgd).solve(given)
    found = mean_gradient(given, solution, sgd)
    for name in NAMES:
        expected = (W_T[name] - solution.params[name]) / (4 * 0.05) - given.work.correction[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12)
