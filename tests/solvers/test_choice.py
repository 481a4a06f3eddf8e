"""Which solver a run uses."""

from dataclasses import replace

import pytest
from torch import nn

from fedprox.models import cnn, logistic
from fedprox.solvers.choice import choose
from fedprox.solvers.logistic import LogisticSolver
from fedprox.solvers.problem import SgdSettings
from fedprox.solvers.reference import ReferenceSolver

SGD = SgdSettings(0.1, 10, weight_decay=0.001)
LOGISTIC = logistic((8, 8), 10)


def test_auto_takes_the_logistic_solver_where_it_may():
    assert type(choose("auto", LOGISTIC, SGD, "cpu")) is LogisticSolver


@pytest.mark.parametrize(
    ("model", "sgd"),
    [
        (cnn((8, 8), 10), SGD),
        (LOGISTIC, replace(SGD, momentum=0.5)),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)), SGD),
    ],
    ids=["CNN", "momentum", "no bias"],
)
def test_auto_takes_the_reference_solver_elsewhere(model, sgd):
    assert type(choose("auto", model, sgd, "cpu")) is ReferenceSolver


def test_reference_is_taken_where_it_is_asked_for():
    assert type(choose("reference", LOGISTIC, SGD, "cpu")) is ReferenceSolver
