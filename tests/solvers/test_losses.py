"""Losses, and the solvers with other losses and optimisers, against torch's own."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.errors import UserError
from fedprox.models.logistic import logistic
from fedprox.models.mlp import mlp
from fedprox.solvers.choice import choose
from fedprox.solvers.cohort import CohortSolver
from fedprox.solvers.gradients import full_gradients
from fedprox.solvers.losses import PAPER_LOSS, BinaryCrossEntropy, CrossEntropy, Focal, OwnLoss, SquaredError
from fedprox.solvers.problem import LocalProblem, LocalWork, SgdSettings
from fedprox.solvers.reference import ReferenceSolver

OUTPUTS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
CLASSES, NUMBERS, TAGS = torch.tensor([2, 1]), torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -1.0]]), torch.eye(3)[:2]
LOSSES = {
    "cross-entropy": (PAPER_LOSS, CLASSES, functional.cross_entropy),
    "smoothed": (CrossEntropy(0.1), CLASSES, partial(functional.cross_entropy, label_smoothing=0.1)),
    "focal without gamma": (Focal(0.0), CLASSES, functional.cross_entropy),
    "squared error": (SquaredError(), NUMBERS, functional.mse_loss),
    "binary": (BinaryCrossEntropy(), TAGS, functional.binary_cross_entropy_with_logits),
    "a user's": (OwnLoss(nn.HuberLoss()), NUMBERS, functional.huber_loss),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_is_torchs_and_the_other_reductions_follow_from_it(name):
    loss, labels, expected = LOSSES[name]
    mean = float(expected(OUTPUTS, labels))
    assert float(loss(OUTPUTS, labels)) == pytest.approx(mean, rel=1e-6)
    assert float(loss(OUTPUTS, labels, "sum")) == pytest.approx(2 * mean, rel=1e-6)
    each = loss(OUTPUTS, labels, "none")
    alone = [float(expected(OUTPUTS[at : at + 1], labels[at : at + 1])) for at in range(2)]
    assert each.tolist() == pytest.approx(alone, rel=1e-6)


def test_focal_and_weighted_losses_by_hand():
    # p = 1/2 for both classes: (1/2)^2 * log 2 with gamma = 2; weights 1 and 3 give (1 + 3) / 2 * log 2 on average.
    outputs, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    assert float(Focal(2.0)(outputs, labels)) == pytest.approx(math.log(2) / 4)
    assert float(CrossEntropy(class_weights=[1, 3])(outputs, labels)) == pytest.approx(2 * math.log(2))
    # -2 * 1 * log(1/2) for the label that is 1, -log(1/2) for the one that is 0
    assert float(BinaryCrossEntropy(2.0)(outputs[:1], torch.tensor([[1.0, 0.0]]))) == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(1.0), r"loss.label_smoothing must be >= 0 and < 1, got 1.0"),
        (lambda: CrossEntropy(class_weights=[1, 0]), r"loss.class_weights must be > 0, got 0; give a factor for each"),
        (lambda: Focal(-0.1), r"loss.gamma must be >= 0, got -0.1"),
        (lambda: BinaryCrossEntropy(math.nan), r"loss.pos_weight must be > 0, got nan"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


STEPS, SIZE, B = 10, 23, 5  # two epochs of batches of 5, 5, 5, 5 and 3
OPTIMIZERS = {
    "sgd": (dict(momentum=0.9, weight_decay=0.01), None),
    "nesterov": ({}, partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.01)),
    "adam": ({}, partial(torch.optim.Adam, weight_decay=0.01)),
    "adamw": ({}, partial(torch.optim.AdamW, weight_decay=0.1)),
}


def by_torch(model, problem, loss, make, mu, max_norm):
    """Return w after STEPS steps of torch's optimiser on F_B(w) + (mu / 2) * ||w - w^t||^2."""
    model.load_state_dict(problem.global_params)
    anchor = [param.detach().clone() for param in model.parameters()]
    optimizer = make(model.parameters())
    for order in problem.work.orders:
        for batch in torch.tensor(order).split(B):
            optimizer.zero_grad()
            proximal = sum(((w - w_t) ** 2).sum() for w, w_t in zip(model.parameters(), anchor, strict=True))
            (loss(model(problem.features[batch]), problem.labels[batch]) + mu / 2 * proximal).backward()
            if max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
    return model.state_dict()


def local_problem(model, labels, mu, seed=0, size=SIZE, num_steps=STEPS):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(size, 6)).astype(np.float32))
    orders = np.stack([rng.permutation(size) for _ in range(2)])
    params = {name: value.clone() for name, value in model.state_dict().items()}
    return LocalProblem(params, features, labels[:size], LocalWork(orders, num_steps, mu))


@pytest.mark.parametrize("solver", ["reference", "cohort"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_those_of_torchs_optimisers_on_the_loss_with_the_proximal_term(name, max_norm, solver):
    torch.manual_seed(1)
    model, mu, rate, loss = mlp((6,), 3), 0.5, 0.02, Focal()
    given, partial_class = OPTIMIZERS[name]
    make = partial_class and (lambda params, learning_rate: partial_class(params, lr=learning_rate))
    sgd = SgdSettings(rate, B, **given, loss=loss, optimizer=make, max_grad_norm=max_norm)
    problem = local_problem(model, torch.arange(SIZE) % 3, mu)
    expected = by_torch(
        mlp((6,), 3),
        problem,
        loss,
        partial(partial_class, lr=rate) if partial_class else partial(torch.optim.SGD, lr=rate, **given),
        *(mu, max_norm),
    )
    made = (ReferenceSolver if solver == "reference" else CohortSolver)(model, sgd)
    solution = made.solve(problem)
    assert solution.num_steps == STEPS
    for key, value in solution.params.items():
        # The rounding of other operations; in a CNN Adam divides some gradients of 1e-9 by themselves
        assert (value - expected[key]).abs().max() <= 1e-6 * max(1.0, float(expected[key].abs().max())), key
        assert not torch.equal(value, problem.global_params[key])


def test_a_cohort_of_unequal_clients_keeps_each_ones_moments():
    # The second client stops after 3 of 10 steps, and Adam's moments of the first must go on as if it were alone.
    torch.manual_seed(1)
    model = mlp((6,), 3)
    sgd = SgdSettings(0.01, B, optimizer=lambda params, rate: torch.optim.Adam(params, lr=rate), max_grad_norm=1.0)
    problems = [
        local_problem(model, torch.arange(SIZE) % 3, 0.1),
        local_problem(model, torch.arange(SIZE) % 2, 0.1, seed=1, size=8, num_steps=3),
    ]
    together, reference = CohortSolver(model, sgd).solve_all(problems), ReferenceSolver(model, sgd)
    for solution, problem in zip(together, problems, strict=True):
        alone = reference.solve(problem)
        assert solution.train_loss == pytest.approx(alone.train_loss, rel=1e-5)
        for key, value in alone.params.items():
            torch.testing.assert_close(solution.params[key], value, rtol=0, atol=1e-6)


def test_the_compiled_solver_and_kernels_are_for_the_papers_loss_alone():
    model, examples, labels = logistic((4,), 3), torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert choose("auto", model, SgdSettings(0.1, 2), "cpu", examples).name == "compiled"
    for more in ({"loss": Focal()}, {"optimizer": torch.optim.Adam}, {"max_grad_norm": 1.0}):
        assert choose("auto", model, SgdSettings(0.1, 2, **more), "cpu", examples).name == "reference"
    params = model.state_dict()
    focal = full_gradients(model, [params], examples, labels, Focal(2.0))[0]
    assert not torch.allclose(focal["1.weight"], full_gradients(model, [params], examples, labels)[0]["1.weight"])


def test_the_cohort_solver_refuses_a_loss_that_is_no_mean_over_examples():
    def standardised(outputs, labels):
        return functional.cross_entropy(outputs - outputs.mean(dim=0), labels)

    model, examples = mlp((4,), 3), torch.randn(3, 4)
    assert choose("cohort", model, SgdSettings(0.1, 2, loss=OwnLoss(nn.CrossEntropyLoss())), "cpu", examples)
    with pytest.raises(UserError, match="or a loss that is a mean over examples"):
        choose("cohort", model, SgdSettings(0.1, 2, loss=OwnLoss(standardised)), "cpu", examples)
