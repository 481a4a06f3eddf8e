"""Head and body in turn, against two runs of the reference solver on a model with frozen parameters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.solvers.alternating import AlternatingSolver
from fedprox.solvers.problem import LocalProblem, LocalSolution, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver

LR, MU, HEAD = 0.1, 0.5, ("2.weight", "2.bias")
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # float64 throughout: rounding only


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def problem(num_steps: int) -> LocalProblem:
    """Return three epochs of batches of 4, 4 and 1."""
    rng = np.random.default_rng(0)
    work = LocalWork(np.array([rng.permutation(9) for _ in range(3)]), num_steps, MU)
    start = {name: value.detach().clone() for name, value in model().state_dict().items()}
    return LocalProblem(start, torch.from_numpy(rng.normal(size=(9, 3))), torch.arange(9) % 4, work)


def solve(given: LocalProblem, body_epochs: int = 1) -> LocalSolution:
    sgd = SgdSettings(LR, 4)
    solver = AlternatingSolver(lambda each: ReferenceSolver(each, sgd), model(), HEAD, sgd, body_epochs)
    return solver.solve(given)


def by_hand(given: LocalProblem, split: int) -> tuple[Params, float]:
    """Return the parameters and the mean loss after steps of which those before `split` change the head."""
    own = {name: value.clone().requires_grad_() for name, value in given.global_params.items()}
    batches = [batch for order in given.work.orders for batch in (order[:4], order[4:8], order[8:])]
    losses: list[float] = []
    for number, batch in enumerate(batches[: given.work.num_steps]):
        logits = torch.func.functional_call(model(), own, (given.features[batch],))
        each = functional.cross_entropy(logits, given.labels[batch], reduction="none")
        names = [name for name in own if (name in HEAD) == (number < split)]
        slopes = torch.autograd.grad(each.mean(), [own[name] for name in names])
        losses += each.tolist()
        with torch.no_grad():
            for name, slope in zip(names, slopes, strict=True):
                own[name] -= LR * (slope + MU * (own[name] - given.global_params[name]))
    return {name: value.detach() for name, value in own.items()}, float(np.mean(losses))


@pytest.mark.parametrize(
    ("num_steps", "body_epochs", "split"),
    [
        (9, 1, 6),  # two epochs of the head, one of the body
        (9, 2, 3),
        (8, 1, 6),  # a straggler stops within the body's epoch
        (5, 1, 3),
        (3, 1, 0),  # one epoch is the body's
        (2, 2, 0),
    ],
)
def test_the_last_epochs_change_the_body_and_those_before_the_head(num_steps, body_epochs, split):
    given = problem(num_steps)
    found, (expected, loss) = solve(given, body_epochs), by_hand(given, split)
    assert found.num_steps == num_steps
    assert found.train_loss == pytest.approx(loss, rel=1e-12)
    for name, value in expected.items():
        torch.testing.assert_close(found.params[name], value, **EXACT)
        assert torch.equal(found.params[name], given.global_params[name]) == (name in HEAD and not split)


def test_an_epochs_rate_is_its_own_in_the_head_and_in_the_body():
    # Two epochs of the head, one of the body: with factors 1, 1/2 and 0 the body stays, with 0, 0 and 1 the head.
    given = problem(9)
    for factors, stays in (((1.0, 0.5, 0.0), False), ((0.0, 0.0, 1.0), True)):
        found = solve(replace(given, work=replace(given.work, epoch_factors=factors))).params
        for name, value in given.global_params.items():
            assert torch.equal(found[name], value) == ((name in HEAD) == stays)
