"""Choice of the solver that a run uses."""

import math
from dataclasses import replace
from types import SimpleNamespace

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
    assert type(choose(name, model, sgd, "cpu", EXAMPLES).solver) is expected


def test_cohort_for_a_model_that_it_cannot_batch_is_an_error():
    with pytest.raises(UserError, match=r"solver=cohort .*Dropout.* this Sequential does not; use solver=auto"):
        choose("cohort", DRAWING, SGD, "cpu", EXAMPLES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_auto_takes_the_fastest_of_a_trial():
    chosen = choose("auto", cnn((8, 8), 10), SGD, "cuda", EXAMPLES, clients_per_round=4)
    assert chosen.ms_per_step.keys() == {"cohort", "cohort, one client after another", "reference"}
    assert chosen.ms_per_step[chosen.name] == min(chosen.ms_per_step.values())
    assert type(choose("auto", DRAWING, SGD, "cuda", EXAMPLES).solver) is ReferenceSolver


@pytest.mark.parametrize("fastest", ["cohort", "cohort, one client after another", "reference"])
def test_auto_takes_the_fastest_solver_and_says_what_all_of_them_took(monkeypatch, caplog, fastest):
    # This works without a GPU, because the trial is a fake.
    def seconds(solvers, params, examples, labels, batch_size, num_clients):
        assert [solver.at_once for name, solver in solvers.items() if name != "reference"] == [None, 1]
        assert (len(examples), labels.tolist(), batch_size, num_clients) == (3, [0, 0, 0], 10, 7)
        return {name: {fastest: 0.001}.get(name, math.inf if name == "cohort" else 0.0025) for name in solvers}

    pretend_gpu(monkeypatch)
    monkeypatch.setattr("fedprox.solvers.choice.seconds_per_step", seconds)
    caplog.set_level("INFO")
    chosen = choose("auto", LOGISTIC, SGD, "cuda:1", EXAMPLES, clients_per_round=7)
    assert (chosen.name, chosen.ms_per_step[fastest]) == (fastest, 1.0)
    assert fastest == "cohort" or "cohort" not in chosen.ms_per_step  # it failed
    assert type(chosen.solver) is (ReferenceSolver if fastest == "reference" else CohortSolver)
    assert f"solver=auto takes {fastest}; a step of 7 clients took: " in caplog.text
    assert f"{fastest} 1 ms" in caplog.text


def test_on_a_gpu_auto_takes_the_reference_solver_for_a_model_that_cannot_be_batched(monkeypatch):
    pretend_gpu(monkeypatch)
    assert choose("auto", DRAWING, SGD, "cuda:1", EXAMPLES).ms_per_step == {}


def pretend_gpu(monkeypatch) -> None:
    """Let everything compute on the CPU that asks for a GPU."""
    monkeypatch.setattr("fedprox.solvers.choice.LogisticSolver.accepts", lambda *_: False)
    monkeypatch.setattr("fedprox.solvers.choice.clients_at_once", lambda *_: None)
    real = torch.device
    monkeypatch.setattr(
        "fedprox.solvers.choice.torch",
        SimpleNamespace(device=lambda name: SimpleNamespace(type="cuda") if name == "cuda:1" else real(name)),
    )
    for solver in (CohortSolver, ReferenceSolver):
        first = solver.__init__
        monkeypatch.setattr(
            solver,
            "__init__",
            lambda self, model, sgd, device="cpu", *more, first=first, **settings: first(
                self, model, sgd, "cpu", *more, **settings
            ),
        )
    accepts = CohortSolver.accepts
    monkeypatch.setattr(CohortSolver, "accepts", lambda model, sgd, _, *examples: accepts(model, sgd, "cpu", *examples))
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *where, **how: self if "cuda:1" in where else to(self, *where, **how)
    )


def test_the_compiled_solver_neither_augments_nor_computes_in_mixed_precision():
    model, sgd = logistic((4, 4), 3), SgdSettings(0.1, 5)
    images = torch.zeros(3, 4, 4)
    plain, augmented = (
        ImageInput(np.zeros((), np.float32), np.ones((), np.float32), augmentation)
        for augmentation in (None, PadCropFlip(2))
    )
    assert isinstance(choose("auto", model, sgd, "cpu", images, plain).solver, LogisticSolver)
    assert isinstance(choose("auto", model, sgd, "cpu", images, augmented).solver, ReferenceSolver)
    mixed = replace(sgd, mixed_precision=True)
    assert isinstance(choose("auto", model, mixed, "cpu", images).solver, ReferenceSolver)
    assert choose("cohort", model, sgd, "cpu", images, augmented).solver.takes_images


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
