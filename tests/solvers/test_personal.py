"""Personal models' problems: Ditto is FedProx's step from another start, APFL plain SGD on a mixture."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.solvers.personal import Apfl, Ditto
from fedprox.solvers.problem import LocalProblem, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver

LR = 0.1
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # float64 throughout: rounding only


def model() -> nn.Module:
    return nn.Linear(3, 4).double()


def weights(seed: int) -> Params:
    rng = np.random.default_rng(seed)
    return {"weight": torch.from_numpy(rng.normal(size=(4, 3))), "bias": torch.from_numpy(rng.normal(size=4))}


W_T, V = weights(1), weights(2)  # both signs, and V on both sides of W_T


def shared(num_steps: int = 3, mu: float = 5.0, correction: Params | None = None) -> LocalProblem:
    rng = np.random.default_rng(0)
    orders = np.array([rng.permutation(8) for _ in range(2)])
    work = LocalWork(orders, num_steps, mu, correction=correction)
    return LocalProblem(W_T, torch.from_numpy(rng.normal(size=(8, 3))), torch.arange(8) % 4, work, asks_gamma=True)


def gradient(params: Params, problem: LocalProblem, step: int) -> Params:
    """Return the gradient of a step's batch of four by autograd."""
    own = {name: value.clone().requires_grad_() for name, value in params.items()}
    batch = torch.from_numpy(problem.work.orders[step // 2][4 * (step % 2) :][:4])
    logits = problem.features[batch] @ own["weight"].T + own["bias"]
    functional.cross_entropy(logits, problem.labels[batch]).backward()
    return {name: value.grad for name, value in own.items()}


def solved(method: Ditto | Apfl, problem: LocalProblem, own: Params = V) -> Params:
    """Return what a client keeps."""
    solution = ReferenceSolver(model(), SgdSettings(LR, 4)).solve(method.problem(problem, own))
    return method.kept(problem, solution.params)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_ditto_steps_from_the_clients_own_model_towards_the_global_one(weight):
    # v <- v - lr * (grad F_B(v) + lambda * (v - w^t)): neither mu nor FedDANE's correction plays a part.
    problem, v = shared(correction=weights(3)), dict(V)
    for step in range(3):
        slope = gradient(v, problem, step)
        v = {name: v[name] - LR * (slope[name] + weight * (v[name] - W_T[name])) for name in v}
    found = solved(Ditto(weight), problem)
    for name, value in v.items():
        torch.testing.assert_close(found[name], value, **EXACT)
        assert Ditto(weight).model(W_T, found)[name] is found[name]


def test_dittos_model_approaches_the_global_one_as_its_weight_grows():
    # With lr * lambda = 0.99 a step leaves a hundredth of the distance, plus lr times a gradient of norm below 3.
    start = sum(float((V[name] - W_T[name]).square().sum()) for name in V) ** 0.5
    found = solved(Ditto(9.9), shared())
    distance = sum(float((found[name] - W_T[name]).square().sum()) for name in V) ** 0.5
    assert distance < 0.01**3 * start + 1.02 * LR * 3 < start


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_apfl_steps_by_the_gradient_at_the_mixture(alpha):
    # v <- v - lr * alpha * grad F_B(alpha v + (1 - alpha) w^t), by the chain rule.
    problem, v = shared(), dict(V)
    for step in range(3):
        slope = gradient({name: alpha * v[name] + (1 - alpha) * W_T[name] for name in v}, problem, step)
        v = {name: v[name] - LR * alpha * slope[name] for name in v}
    found = solved(Apfl(alpha), problem)
    newer = weights(4)
    for name, value in v.items():
        torch.testing.assert_close(found[name], value, **EXACT)
        expected = alpha * value + (1 - alpha) * newer[name]
        torch.testing.assert_close(Apfl(alpha).model(newer, found)[name], expected, **EXACT)


def test_apfl_with_its_own_model_alone_and_ditto_without_a_weight_are_local_training_to_the_last_bit():
    one, other = solved(Apfl(1.0), shared()), solved(Ditto(0.0), shared(mu=0.0))
    assert all(torch.equal(one[name], other[name]) for name in V)


def test_integers_are_never_mixed():
    own, newer = ({"count": torch.tensor(count), "w": torch.ones(1)} for count in (3, 7))
    assert Apfl(0.5).model(newer, own)["count"] == 3
    problem = LocalProblem(newer, torch.zeros(1, 1), torch.zeros(1), LocalWork([], 0, 0.0))
    assert Apfl(0.5).kept(problem, own)["count"] == 3
