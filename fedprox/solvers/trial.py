"""A short trial of several solvers on the device that a run uses."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedprox.solvers.problem import BatchedSolver, LocalProblem, LocalWork, Params, Solver

_STEPS = 8  # of each client: three until a graph is captured, and five of it
_REPETITIONS = 2  # that count, after a first one in which memory is allocated and graphs are captured
_ONE_BY_ONE = 2  # clients that suffice if they are computed one after another


def seconds_per_step(
    solvers: Mapping[str, Solver],
    params: Params,
    examples: Tensor,
    labels: Tensor,
    batch_size: int,
    num_clients: int,
) -> dict[str, float]:
    """Return the seconds that each solver needs for one step of all clients of a cohort; inf if it fails.

    Args:
        solvers: By any names.
        params: A state dict of the model, on the device that computes.
        examples: Some model inputs on the device, shape (n, *input_shape), which make up all batches.
        labels: Their labels.
        batch_size: B.
        num_clients: K.
    """
    found = {}
    for name, solver in solvers.items():
        num_tried = num_clients if isinstance(solver, BatchedSolver) else min(num_clients, _ONE_BY_ONE)
        problems = [_problem(params, examples, labels, batch_size) for _ in range(num_tried)]
        try:
            times = [_seconds(solver, problems) for _ in range(1 + _REPETITIONS)]
        except RuntimeError:  # such as too little memory; a user's mistake shows in the run
            found[name] = float("inf")
        else:
            found[name] = min(times[1:]) / _STEPS * num_clients / num_tried
    return found


def _problem(params: Params, examples: Tensor, labels: Tensor, batch_size: int) -> LocalProblem:
    """Return a problem of full batches."""
    orders = np.tile(np.arange(batch_size), (_STEPS, 1))
    positions = np.resize(np.arange(len(examples)), batch_size)
    return LocalProblem(params, examples, labels, LocalWork(orders, _STEPS, mu=1.0), positions=positions)


def _seconds(solver: Solver, problems: Sequence[LocalProblem]) -> float:
    _wait(problems[0].features.device)
    begin = time.perf_counter()
    if isinstance(solver, BatchedSolver):
        solver.solve_all(problems)
    else:
        for problem in problems:
            solver.solve(problem)
    _wait(problems[0].features.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
