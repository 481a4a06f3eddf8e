"""Which solver a run uses."""

from torch import nn

from fedprox.solvers.logistic import LogisticSolver
from fedprox.solvers.problem import SgdSettings, Solver
from fedprox.solvers.reference import ReferenceSolver


def choose(name: str, model: nn.Module, sgd: SgdSettings, device: str) -> Solver:
    """Return the solver of that name; "auto" is the fastest that accepts the model.

    Args:
        name: "auto" or "reference".
        model: The architecture.
        sgd: Settings of the local solver.
        device: Where clients compute, such as "cpu" or "cuda".
    """
    if name == "auto" and LogisticSolver.accepts(model, sgd, device):
        return LogisticSolver(sgd)
    return ReferenceSolver(model, sgd, device)
