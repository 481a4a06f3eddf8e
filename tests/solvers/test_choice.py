"""Which solver a run uses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedprox.data.augmentation import PadCropFlip
from fedprox.errors import UserError
from fedprox.models.cnn import cnn
from fedprox.models.logistic import logistic
from fedprox.solvers.batches import PictureInput
from fedprox.solvers.choice import choose
from fedprox.solvers.cohort import CohortSolver
from fedprox.solvers.logistic import LogisticSolver
from fedprox.solvers.problem import SgdSettings
from fedprox.solvers.reference import ReferenceSolver

SGD = SgdSettings(0.1, 10, weight_decay=0.001)
LOGISTIC = logistic((8, 8), 10)
EXAMPLES = torch.ones(3, 8, 8)
WITH_DROPOUT = nn.Sequential(nn.Dropout(0.5), LOGISTIC)


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


def test_cohort_is_taken_where_it_is_asked_for_and_can_batch_the_model():
    for model in (LOGISTIC, cnn((8, 8), 10)):
        assert type(choose("cohort", model, SGD, "cpu", EXAMPLES)) is CohortSolver


def test_cohort_for_a_model_that_it_cannot_batch_is_an_error_that_names_the_remedy():
    with pytest.raises(UserError, match=r"solver=cohort .*dropout.* this Sequential is not; use solver=auto"):
        choose("cohort", WITH_DROPOUT, SGD, "cpu", EXAMPLES)


def test_on_the_cpu_auto_leaves_the_cohort_solver_out():
    assert type(choose("auto", cnn((8, 8), 10), SGD, "cpu", EXAMPLES)) is ReferenceSolver


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_auto_takes_the_cohort_solver_where_it_can_batch_the_model():
    for model in (LOGISTIC, cnn((8, 8), 10)):
        assert type(choose("auto", model, SGD, "cuda", EXAMPLES)) is CohortSolver
    assert type(choose("auto", WITH_DROPOUT, SGD, "cuda", EXAMPLES)) is ReferenceSolver


def test_on_a_gpu_auto_asks_the_cohort_solver_first(monkeypatch):
    # Without a GPU at hand: what it says is what is done.
    class Either(CohortSolver):
        def __init__(self, model, sgd, device):
            assert device == "cuda:1"

    for says, expected in ((True, Either), (False, ReferenceSolver)):
        monkeypatch.setattr(Either, "accepts", staticmethod(lambda *_, says=says: says))
        monkeypatch.setattr("fedprox.solvers.choice.CohortSolver", Either)
        monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
        assert type(choose("auto", LOGISTIC, SGD, "cuda:1", EXAMPLES)) is expected


def test_what_only_the_reference_solver_can_do_is_its():
    model, sgd = logistic((4, 4), 3), SgdSettings(0.1, 5)
    images = torch.zeros(3, 4, 4)
    plain, augmented = (
        PictureInput(np.zeros((), np.float32), np.ones((), np.float32), augmentation)
        for augmentation in (None, PadCropFlip(2))
    )
    assert isinstance(choose("auto", model, sgd, "cpu", images, plain), LogisticSolver)
    assert isinstance(choose("auto", model, sgd, "cpu", images, augmented), ReferenceSolver)
    assert isinstance(choose("auto", model, replace(sgd, mixed_precision=True), "cpu", images), ReferenceSolver)
    with pytest.raises(UserError, match="solver=cohort goes without augmentation"):
        choose("cohort", model, sgd, "cpu", images, augmented)
    with pytest.raises(UserError, match="solver=cohort goes without mixed_precision"):
        choose("cohort", model, replace(sgd, mixed_precision=True), "cpu", images, plain)
