"""Choice of the solver that a run uses."""

import torch
from torch import Tensor, nn

from fedprox.errors import UserError
from fedprox.solvers.batches import ImageInput
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
    image_input: ImageInput | None = None,
) -> Solver:
    """Return the solver of a name; "auto" decides by the model and the device.

    "auto" is the compiled solver for logistic regression on the CPU, the cohort solver on a GPU, and otherwise the
    reference solver.

    Args:
        name: "auto", "reference" or "cohort".
        model: The architecture.
        sgd: Settings of the local solver.
        device: Device on which clients compute, such as "cpu" or "cuda".
        examples: Three or more model inputs, shape (n, *input_shape), to try the model on; without them the cohort
            solver is not considered, and the reference solver uses one thread.
        image_input: How stored images become model input; None if the examples are not stored images.

    Raises:
        UserError: If the solver of that name cannot solve the model's problems.
    """
    augments = image_input is not None and image_input.augmentation is not None
    if name == "auto" and is_compiled(model, sgd, device, augments=augments):
        return LogisticSolver(sgd)
    if name == "cohort" or (name == "auto" and torch.device(device).type == "cuda"):
        if examples is not None and CohortSolver.accepts(model, sgd, device, examples):
            return CohortSolver(model, sgd, device, image_input)
        if name == "cohort":
            raise UserError(
                "solver=cohort needs a model that computes all clients in one batch, without batch norm and recurrent "
                "layers, and draws random numbers only in nn.Dropout and nn.Dropout2d, which this "
                f"{type(model).__name__} does not; use solver=auto or reference"
            )
    return ReferenceSolver(model, sgd, device, examples, image_input)


def fastest_device(name: str, model: nn.Module, sgd: SgdSettings, device: str, *, augments: bool = False) -> str:
    """Return the device on which clients compute: the CPU for models that "auto" computes faster there.

    The compiled solver for logistic regression needs less time for a step than a GPU needs to begin one.

    Args:
        name: "auto", "reference" or "cohort".
        model: The architecture.
        sgd: Settings of the local solver.
        device: The device that the settings name.
        augments: Whether training images are changed.
    """
    return "cpu" if name == "auto" and is_compiled(model, sgd, "cpu", augments=augments) else device


def is_compiled(model: nn.Module, sgd: SgdSettings, device: str, *, augments: bool) -> bool:
    """Return whether the compiled solver can do the work; it neither changes images nor computes in bfloat16."""
    return LogisticSolver.accepts(model, sgd, device) and not augments and not sgd.mixed_precision
