"""The compiled solver of logistic regression, against the reference solver."""

import copy
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from torch import Tensor, nn

from fedprox.models.logistic import logistic
from fedprox.solvers.kernels import compile
from fedprox.solvers.kernels.logistic import exponential, padded, unpadded
from fedprox.solvers.logistic import LogisticSolver, descend
from fedprox.solvers.problem import LocalProblem, LocalSolution, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver

# Both solvers compute in float32 and round differently: 6e-8 relative per operation, at most 90 steps of sums of at
# most 40 terms, at steps too small to be expansive. Relative to the largest number of an array, as a weight near 0
# is a difference of larger ones.
FLOAT32 = 1e-5


@dataclass(frozen=True)
class Case:
    """A local problem: what a solver is made with and what it is given."""

    sgd: SgdSettings
    start: Params
    features: Tensor
    labels: Tensor
    work: LocalWork
    personal: Params | None = None

    @property
    def problem(self) -> LocalProblem:
        return LocalProblem(self.start, self.features, self.labels, self.work, start=self.personal)

    def solve(self) -> LocalSolution:
        return LogisticSolver(self.sgd).solve(self.problem)

    def solve_by_definition(self) -> LocalSolution:
        num_classes, num_features = self.start["1.weight"].shape
        solver = ReferenceSolver(logistic((num_features,), num_classes), self.sgd)
        return solver.solve(self.problem)


def params(rng: np.random.Generator, num_classes: int, num_features: int, scale: float) -> Params:
    """Return parameters of both signs."""
    return {
        "1.weight": torch.from_numpy(rng.normal(0, scale, (num_classes, num_features)).astype(np.float32)),
        "1.bias": torch.from_numpy(rng.normal(0, scale, num_classes).astype(np.float32)),
    }


def make_case(
    num_classes: int = 7,
    num_features: int = 12,
    num_examples: int = 23,
    batch_size: int = 4,
    num_epochs: int = 3,
    num_steps: int | None = None,
    mu: float = 0.5,
    weight_decay: float = 0.0,
    corrected: bool = False,
    seed: int = 0,
    learning_rate: float = 0.05,
    last_batch: str = "keep",
    personal: bool = False,
) -> Case:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(num_examples, num_features)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(num_classes, size=num_examples))
    start = params(rng, num_classes, num_features, 0.5)
    work = LocalWork(
        orders=[rng.permutation(num_examples) for _ in range(num_epochs)],
        num_steps=num_epochs * -(-num_examples // batch_size) if num_steps is None else num_steps,
        mu=mu,
        correction=params(rng, num_classes, num_features, 0.2) if corrected else None,
    )
    sgd = SgdSettings(learning_rate, batch_size, weight_decay=weight_decay, last_batch=last_batch)
    own = params(rng, num_classes, num_features, 0.5) if personal else None
    return Case(sgd, start, features, labels, work, own)


def assert_agree(one: LocalSolution, other: LocalSolution, tolerance: float = FLOAT32) -> None:
    assert one.num_steps == other.num_steps
    assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance, abs=tolerance)
    assert one.params.keys() == other.params.keys()
    for name, expected in other.params.items():
        assert one.params[name].dtype == expected.dtype
        largest = float(expected.abs().max())
        torch.testing.assert_close(one.params[name], expected, rtol=tolerance, atol=tolerance * largest)


# Against the definition


@settings(max_examples=60, deadline=None)  # the first call loads or compiles the loop
@given(
    num_classes=st.integers(2, 40),  # up to three times sixteen columns
    num_features=st.integers(1, 40),
    num_examples=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    num_epochs=st.integers(1, 3),
    share=st.floats(0, 1),
    mu=st.sampled_from([0.0, 0.01, 1.0, 3.0]),
    weight_decay=st.sampled_from([0.0, 0.001, 0.3]),
    corrected=st.booleans(),
    last_batch=st.sampled_from(["keep", "drop", "merge"]),
    personal=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_agrees_with_the_reference_solver(num_examples, batch_size, num_epochs, share, last_batch, **shape):
    num_batches = -(-num_examples // batch_size) if last_batch == "keep" else max(1, num_examples // batch_size)
    num_steps = round(share * num_epochs * num_batches)
    numbers = {"num_examples": num_examples, "batch_size": batch_size, "num_epochs": num_epochs}
    case = make_case(**numbers, num_steps=num_steps, last_batch=last_batch, **shape)
    solution = case.solve()
    assert solution.num_steps == num_steps
    assert_agree(solution, case.solve_by_definition())


@pytest.mark.parametrize("num_classes", [2, 15, 16, 17, 33])
def test_every_class_is_trained_whether_its_sixteen_columns_are_full_or_not(num_classes):
    case = make_case(num_classes=num_classes, corrected=True, weight_decay=0.01)
    solution = case.solve()
    assert_agree(solution, case.solve_by_definition())
    assert bool((solution.params["1.weight"] != case.start["1.weight"]).any(dim=1).all())


def test_mu_decay_and_correction_each_change_the_result():
    case = make_case(mu=0.0)
    others = [make_case(mu=0.5), make_case(mu=0.0, weight_decay=0.1), make_case(mu=0.0, corrected=True)]
    plain = case.solve().params["1.weight"]
    # Far above the tolerance of the comparisons, so that none of them would pass without the term.
    assert all(float((other.solve().params["1.weight"] - plain).abs().max()) > 1e-3 for other in others)


def test_features_may_be_images_and_neither_they_nor_parameters_need_be_contiguous():
    case = make_case()
    images = replace(case, features=case.features.view(-1, 3, 4))
    assert torch.equal(images.solve().params["1.weight"], case.solve().params["1.weight"])
    start = {"1.weight": case.start["1.weight"].T.contiguous().T, "1.bias": case.start["1.bias"]}
    strided = replace(case, features=case.features.T.contiguous().T, start=start)
    assert not strided.features.is_contiguous()
    compiled = len(descend.signatures)
    assert_agree(strided.solve(), case.solve_by_definition())
    assert len(descend.signatures) == compiled  # which would take ten seconds


NOT_COMPILED = """
from tests_of_logistic import assert_agree, make_case
for num_classes in (2, 15, 16, 17, 33):
    case = make_case(num_classes=num_classes, num_features=2, num_examples=5, batch_size=2, corrected=True)
    assert_agree(case.solve(), case.solve_by_definition())
print("no access outside an array")
"""


def test_no_access_is_outside_its_array(environment, tmp_path):
    # The compiled loop does not check bounds. Plain Python does, and must compute the same.
    (tmp_path / "tests_of_logistic.py").write_text(Path(__file__).read_text())
    ended = subprocess.run(
        [sys.executable, "-c", NOT_COMPILED],
        cwd=tmp_path,
        env=environment(NUMBA_DISABLE_JIT="1"),
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "no access outside an array\n", ended.stderr


# Rounding


def test_the_gradient_of_a_nearly_certain_class_is_not_lost_in_the_sum_of_exponentials():
    # Nine classes have 4.8e-8 each beside 1. In float32 1 + 4.8e-8 is 1 (the next number is 1.2e-7 away), so a float32
    # sum is 1, and the label's softmax - 1 is 0. It is minus the sum of the others: -4.3e-7.
    small = 4.8e-8
    weight = torch.zeros(10, 1)
    weight[0] = -math.log(small)
    start = {"1.weight": weight, "1.bias": torch.zeros(10)}  # a bias of 0 keeps all digits of a step of 1e-7
    case = replace(make_case(), sgd=SgdSettings(1.0, 1), start=start, features=torch.ones(1, 1))
    case = replace(case, labels=torch.zeros(1, dtype=torch.int64), work=LocalWork([np.zeros(1, np.int64)], 1, 0.0))
    solution = case.solve()
    # The total and the quotient are rounded to float32: half of 1.2e-7 and half of 6e-8.
    assert float(solution.params["1.bias"][0]) == pytest.approx(9 * small, abs=9.1e-8)
    assert solution.train_loss == pytest.approx(9 * small, rel=1e-5)  # -ln p of the label, in float64


def test_the_exponential_is_that_of_float64_to_one_unit_in_the_last_place():
    x = np.linspace(-87, 0, 1_000_001).astype(np.float32)
    values = x.copy()
    exponential(values)
    exact = np.exp(x.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(values - exact) / unit) < 1
    ends = np.array([0, -1000, -np.inf], np.float32)
    exponential(ends)
    assert ends[0] == 1
    assert np.all((ends[1:] >= 0) & (ends[1:] < 1.7e-38))  # e^-87


@pytest.mark.parametrize("num_classes", [2, 16, 17])
def test_unpadding_inverts_padding(num_classes):
    start = params(np.random.default_rng(0), num_classes, 5, 1.0)
    both = padded(start)
    assert both.shape == (6, 16 if num_classes <= 16 else 32)
    assert not both[:, num_classes:].any()
    again = unpadded(both, num_classes)
    assert all(torch.equal(again[name], start[name]) for name in start)


@pytest.mark.parametrize("largest", [90.0, 1e4, 3e38])
def test_large_logits_neither_overflow_nor_give_nan(largest):
    # e^89 is above float32's largest number; a label that is not the largest costs the difference.
    start = {"1.weight": torch.zeros(3, 2), "1.bias": torch.tensor([largest, 0.0, 0.0])}
    case = replace(make_case(), sgd=SgdSettings(0.5, 2), start=start, features=torch.zeros(1, 2))
    case = replace(case, labels=torch.ones(1, dtype=torch.int64), work=LocalWork([np.zeros(1, np.int64)], 1, 0.0))
    solution = case.solve()
    assert solution.train_loss == pytest.approx(largest, rel=1e-6)
    # p = (1, e^-largest, e^-largest), and the second is the label.
    assert solution.params["1.bias"][1:].tolist() == pytest.approx([0.5, 0.0], abs=1e-30)


@pytest.mark.parametrize("level", [-1.0, -90.0, -1e4, -3e38])
def test_logits_far_below_zero_are_those_of_any_other_level(level):
    # Columns that are not classes have the logit 0, which is then the largest. Sums of logits stay near 0 under
    # averages, but not under every strategy.
    start = {"1.weight": torch.zeros(3, 2), "1.bias": torch.full((3,), level)}
    case = replace(make_case(), sgd=SgdSettings(0.5, 2), start=start, features=torch.zeros(1, 2))
    case = replace(case, labels=torch.ones(1, dtype=torch.int64), work=LocalWork([np.zeros(1, np.int64)], 1, 0.0))
    solution = case.solve()
    assert solution.train_loss == pytest.approx(np.log(3), rel=1e-6)
    step = solution.params["1.bias"] - level  # 0.5 * (onehot - p), as far as float32 holds it at that level
    assert step.tolist() == pytest.approx([-1 / 6, 1 / 3, -1 / 6] if level > -1e5 else [0.0] * 3, abs=1e-3)
    assert solution.drift == pytest.approx(float(torch.linalg.vector_norm(step)), rel=1e-6)


# Arguments stay unchanged


def test_arguments_are_neither_changed_nor_shared():
    case = make_case(corrected=True, weight_decay=0.1)
    given_ = (case.start, case.work.correction, case.features, case.labels, case.work.orders)
    before = copy.deepcopy(given_)
    first = case.solve()
    kept = copy.deepcopy(first.params)
    second = case.solve()
    for now, then in zip(given_, before, strict=True):
        if isinstance(now, dict):
            assert all(torch.equal(now[name], then[name]) for name in then)
        elif isinstance(now, list):
            assert all(np.array_equal(one, other) for one, other in zip(now, then, strict=True))
        else:
            assert torch.equal(now, then)
    # The same call gives the same result, as a copy.
    assert all(torch.equal(first.params[name], kept[name]) for name in kept)
    assert all(torch.equal(second.params[name], kept[name]) for name in kept)
    assert first.params["1.weight"].data_ptr() != second.params["1.weight"].data_ptr()
    assert not torch.equal(kept["1.weight"], case.start["1.weight"])


# Models that it accepts


SGD = SgdSettings(0.1, 10)


def with_tanh() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh())


def frozen() -> nn.Module:
    model = logistic((6,), 3)
    model[1].weight.requires_grad_(False)
    return model


class TwiceTheLogits(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class HalfTheLogits(nn.Sequential):
    """An nn.Sequential that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize("shape", [(6,), (1, 28, 28)])
def test_it_accepts_logistic_regression_on_the_cpu_without_momentum(shape):
    assert LogisticSolver.accepts(logistic(shape, 4), replace(SGD, weight_decay=0.1), "cpu")


@pytest.mark.parametrize(
    ("model", "sgd", "device"),
    [
        pytest.param(logistic((6,), 3), SGD, "cuda", id="CUDA"),
        pytest.param(logistic((6,), 3), replace(SGD, momentum=0.9), "cpu", id="momentum"),
        pytest.param(nn.Linear(6, 3), SGD, "cpu", id="without Flatten"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False)), SGD, "cpu", id="without bias"),
        pytest.param(nn.Sequential(nn.Flatten(2), nn.Linear(6, 3)), SGD, "cpu", id="Flatten from the second"),
        pytest.param(with_tanh(), SGD, "cpu", id="Tanh after it"),
        pytest.param(nn.Sequential(nn.Flatten(), TwiceTheLogits(6, 3)), SGD, "cpu", id="another linear"),
        pytest.param(HalfTheLogits(nn.Flatten(), nn.Linear(6, 3)), SGD, "cpu", id="another sequence"),
        pytest.param(frozen(), SGD, "cpu", id="frozen weights"),
        pytest.param(logistic((6,), 3).double(), SGD, "cpu", id="float64"),
    ],
)
def test_it_does_not_accept_other_models(model, sgd, device):
    assert not LogisticSolver.accepts(model, sgd, device)


def test_without_a_writable_folder_the_solver_is_still_compiled(monkeypatch):
    def refuse(*args, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)

    monkeypatch.setattr(compile, "njit", refuse)
    assert compile.compiled(lambda a, b: a * b)(3, 4) == 12


def test_without_the_compiler_the_results_are_plain_numbers(monkeypatch):
    # NUMBA_DISABLE_JIT=1 gives NumPy scalars, which Flower's records refuse.
    monkeypatch.setattr("fedprox.solvers.logistic.descend", lambda *_: (np.float32(3.0), 4, 1, np.float64(0.5)))
    solution = make_case().solve()
    assert (solution.train_loss, solution.drift) == (0.75, 0.5)
    assert {type(solution.train_loss), type(solution.drift)} == {float}
