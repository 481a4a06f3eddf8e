"""Which solver a run uses."""

import torch
from torch import Tensor, nn

from fedprox.errors import UserError
from fedprox.solvers.batches import PictureInput
from fedprox.solvers.cohort import CohortSolver
from fedprox.solvers.logistic import LogisticSolver
from fedprox.solvers.problem import SgdSettings, Solver
from fedprox.solvers.reference import ReferenceSolver


def choose(
    name: str,
    model: nn.Module,
    sgd: SgdSettings,
    device: str,
    examples: Tensor | None = None,
    pictures: PictureInput | None = None,
) -> Solver:
    """Return the solver of that name; "auto" is chosen by the model and the device, without a trial of their speed.

    It is the compiled one for logistic regression on the CPU, the cohort solver on a GPU, and otherwise the
    reference solver, which alone augments pictures and computes in mixed precision.

    Args:
        name: "auto", "reference" or "cohort".
        model: The architecture.
        sgd: Settings of the local solver.
        device: Where clients compute, such as "cpu" or "cuda".
        examples: Three or more of the model's inputs, shape (n, *input_shape), to try a model on; without them the
            cohort solver is not considered, and the reference solver uses one thread.
        pictures: How stored pictures become model input, where the examples are such.

    Raises:
        UserError: If the solver of that name cannot solve the model's problems.
    """
    is_augmented = pictures is not None and pictures.augmentation is not None
    if name == "cohort" and (is_augmented or sgd.mixed_precision):
        setting = "augmentation" if is_augmented else "mixed_precision"
        raise UserError(f"solver=cohort goes without {setting}; use solver=auto or reference")
    if is_augmented or sgd.mixed_precision:
        return ReferenceSolver(model, sgd, device, examples, pictures)
    if name == "auto" and LogisticSolver.accepts(model, sgd, device):
        return LogisticSolver(sgd)
    if name == "cohort" or (name == "auto" and torch.device(device).type == "cuda"):
        if examples is not None and CohortSolver.accepts(model, sgd, device, examples):
            return CohortSolver(model, sgd, device)
        if name == "cohort":
            raise UserError(
                "solver=cohort needs a model whose clients can be computed in one batch, without batch norm, dropout "
                f"and recurrent layers, which this {type(model).__name__} is not; use solver=auto or reference"
            )
    return ReferenceSolver(model, sgd, device, examples, pictures)
