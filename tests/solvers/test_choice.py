"""Choice of the solver that a run uses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedprox.data.augmentation import PadCropFlip
from fedprox.errors import UserError
from fedprox.models.cnn import cnn
from fedprox.models.logistic import logistic
from fedprox.solvers.batches import ImageInput
from fedprox.solvers.choice import choose, fastest_device
from fedprox.solvers.cohort import CohortSolver
from fedprox.solvers.logistic import LogisticSolver
from fedprox.solvers.problem import SgdSettings
from fedprox.solvers.reference import ReferenceSolver

SGD = SgdSettings(0.1, 10, weight_decay=0.001)
LOGISTIC = logistic((8, 8), 10)
EXAMPLES = torch.ones(3, 8, 8)
DRAWING = nn.Sequential(nn.AlphaDropout(0.5), LOGISTIC)


@pytest.mark.parametrize(
    ("name", "model", "sgd", "expected"),
    [
        ("auto", LOGISTIC, SGD, LogisticSolver),
        ("auto", LOGISTIC, replace(SGD, momentum=0.5), ReferenceSolver),
        ("auto", cnn((8, 8), 10), SGD, ReferenceSolver),
        ("reference", LOGISTIC, SGD, ReferenceSolver),
        ("cohort", LOGISTIC, SGD, CohortSolver),
        ("cohort", cnn((8, 8), 10), SGD, CohortSolver),
    ],
)
def test_on_the_cpu_the_solver_depends_on_its_name_and_the_model(name, model, sgd, expected):
    assert type(choose(name, model, sgd, "cpu", EXAMPLES)) is expected


def test_cohort_for_a_model_that_it_cannot_batch_is_an_error():
    with pytest.raises(UserError, match=r"solver=cohort .*Dropout.* this Sequential does not; use solver=auto"):
        choose("cohort", DRAWING, SGD, "cpu", EXAMPLES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_auto_takes_the_cohort_solver_if_it_can_batch_the_model():
    for model in (LOGISTIC, cnn((8, 8), 10)):
        assert type(choose("auto", model, SGD, "cuda", EXAMPLES)) is CohortSolver
    assert type(choose("auto", DRAWING, SGD, "cuda", EXAMPLES)) is ReferenceSolver


def test_on_a_gpu_auto_asks_the_cohort_solver_first(monkeypatch):
    # This works without a GPU, because the solver is a fake.
    class Either(CohortSolver):
        def __init__(self, model, sgd, device, image_input):
            assert device == "cuda:1"

    for says, expected in ((True, Either), (False, ReferenceSolver)):
        monkeypatch.setattr(Either, "accepts", staticmethod(lambda *_, says=says: says))
        monkeypatch.setattr("fedprox.solvers.choice.CohortSolver", Either)
        monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
        assert type(choose("auto", LOGISTIC, SGD, "cuda:1", EXAMPLES)) is expected


def test_the_compiled_solver_neither_augments_nor_computes_in_mixed_precision():
    model, sgd = logistic((4, 4), 3), SgdSettings(0.1, 5)
    images = torch.zeros(3, 4, 4)
    plain, augmented = (
        ImageInput(np.zeros((), np.float32), np.ones((), np.float32), augmentation)
        for augmentation in (None, PadCropFlip(2))
    )
    assert isinstance(choose("auto", model, sgd, "cpu", images, plain), LogisticSolver)
    assert isinstance(choose("auto", model, sgd, "cpu", images, augmented), ReferenceSolver)
    assert isinstance(choose("auto", model, replace(sgd, mixed_precision=True), "cpu", images), ReferenceSolver)
    assert choose("cohort", model, sgd, "cpu", images, augmented).takes_images


@pytest.mark.parametrize(
    ("name", "model", "sgd", "augments", "expected"),
    [
        ("auto", LOGISTIC, SGD, False, "cpu"),
        ("auto", LOGISTIC, replace(SGD, momentum=0.5), False, "cuda:1"),
        ("auto", LOGISTIC, replace(SGD, mixed_precision=True), False, "cuda:1"),
        ("auto", LOGISTIC, SGD, True, "cuda:1"),
        ("auto", cnn((8, 8), 10), SGD, False, "cuda:1"),
        ("reference", LOGISTIC, SGD, False, "cuda:1"),
        ("cohort", LOGISTIC, SGD, False, "cuda:1"),
    ],
)
def test_what_the_compiled_solver_takes_stays_on_the_cpu(name, model, sgd, augments, expected):
    assert fastest_device(name, model, sgd, "cuda:1", augments=augments) == expected
