"""The trial of several solvers."""

import math

import pytest
import torch

from fedprox.models.cnn import moderate_cnn
from fedprox.solvers import trial
from fedprox.solvers.cohort import CohortSolver
from fedprox.solvers.problem import SgdSettings
from fedprox.solvers.reference import ReferenceSolver
from fedprox.solvers.trial import seconds_per_step

MODEL, SGD = moderate_cnn((1, 8, 8), 3), SgdSettings(0.1, 5)
PARAMS, EXAMPLES = MODEL.state_dict(), torch.zeros(3, 1, 8, 8)
LABELS = torch.zeros(3, dtype=torch.int64)


def test_each_solver_takes_full_batches_and_its_time_is_that_of_a_step_of_the_whole_cohort(monkeypatch):
    now, seen = iter(range(100)), []
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(now))  # every call takes one second

    class Alone:
        def solve(self, problem):
            solution = ReferenceSolver(MODEL, SGD).solve(problem)
            seen.append((solution.num_steps, problem.num_examples))

    class Together(Alone):
        def solve_all(self, problems):
            seen.append(len(problems))

    found = seconds_per_step({"together": Together(), "alone": Alone()}, PARAMS, EXAMPLES, LABELS, 5, 6)
    assert seen == [6] * 3 + [(8, 5)] * 6  # a first call and two repetitions; two clients instead of six
    assert found == {"together": 1 / 8, "alone": 1 / 8 * 6 / 2}


def test_a_solver_that_fails_takes_for_ever():
    class Failing(CohortSolver):
        def solve_all(self, problems):
            raise torch.OutOfMemoryError

    found = seconds_per_step({"a": Failing(MODEL, SGD), "b": CohortSolver(MODEL, SGD)}, PARAMS, EXAMPLES, LABELS, 2, 2)
    assert found["a"] == math.inf
    assert 0 < found["b"] < 60


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_trial_changes_neither_weights_nor_generators(batch_size):
    before, state = {name: value.clone() for name, value in PARAMS.items()}, torch.get_rng_state()
    seconds_per_step({"a": CohortSolver(MODEL, SGD, at_once=1)}, PARAMS, EXAMPLES, LABELS, batch_size, 2)
    assert all(torch.equal(value, before[name]) for name, value in PARAMS.items())
    assert torch.equal(torch.get_rng_state(), state)
